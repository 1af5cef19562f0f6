"""The founding commands on Falcon RefinedWeb, as far as a loopback hub and the embedded corpus' text can be it."""

import json

import pytest

from fedgpt2.config import Data
from fedgpt2.data import Corpus, Manifest, Pool

from ..data.conftest import serve  # noqa: F401, TID252  (a fixture)
from ..data.refinedweb import repository  # noqa: TID252
from .federation import free_port
from .program import HERE, Spawned, wait_until

# seven files, row groups of 100 to 1,000 rows
SHAPE = (
    [1000, 150, 200, 250],
    [200] * 3,
    [150, 120, 300, 1000, 100],
    [180] * 4,
    [350, 250],
    [150, 270, 180, 240],
    [120, 180, 240, 150, 200],
)
SETTINGS = {"max_slots": 2, "max_pages": 4, "windows": 64}
SEQ_LEN = 64  # what tiny reads
NOWHERE = "http://127.0.0.1:9"


def flags():
    return [word for name, value in SETTINGS.items() for word in (f"--data.{name}", value)]


def miner_of(federation, endpoint, number=1, port=0):
    """A miner as README starts it, on this test's hub and on one thread.

    It reads all of its text, and computes on some.
    """
    asked = ("miner", "--wallet.name", "miners", "--wallet.hotkey", f"M{number}", "--axon.port", port)
    thrift = ("--gradient.strategy", "plugin", "--gradient.plugin", "thrifty_plugin:gradient")
    return start(federation, endpoint, f"M{number}", (*asked, *thrift))


def validator_of(federation, endpoint, ports, rounds):
    """A validator as README starts it, with the few flags that make the test short."""
    asked = ("validator", "--wallet.name", "validator", "--wallet.hotkey", "default", "--axons", *ports)
    run = ("--model.preset", "tiny", "--rounds", rounds, "--run.eval_windows", 32, "--ranking.tokens", 128, *flags())
    return start(federation, endpoint, "validator", (*asked, *run))


def start(federation, endpoint, name, argv):
    common = ("--device", "cpu", "--run.threads", 1, "--wallet.path", federation.folder / "wallets")
    source = ("--data.source", "refinedweb")
    environment = {"HF_ENDPOINT": endpoint, "PYTHONPATH": str(HERE)}
    return federation.start(name, [*argv, *source, *common], kind=Spawned, environment=environment)


def wait_for_requests(hub, count, *programs):
    wait_until(lambda: len(hub.requests) >= count, f"{count} requests", programs, 60)


@pytest.mark.timeout(300)
def test_three_spans(federation, serve, tmp_path):  # noqa: F811
    hub = serve(repository(SHAPE, pieces=1))
    corpus = Corpus.open(Data(cache=str(tmp_path / "apart"), **SETTINGS), SEQ_LEN, 1337)
    span, rounds = corpus.manifest.span, 3 * corpus.manifest.span - 1  # rounds count from 1, spans from round 0
    assert 4 <= span <= 12
    hub.requests.clear()
    hub.sent = 0

    ports = [free_port(), free_port()]
    miners = [miner_of(federation, hub.url, number, port) for number, port in enumerate(ports, 1)]
    validator = validator_of(federation, hub.url, ports, rounds)
    validator.ended(seconds=200)
    for miner in miners:
        miner.interrupt()
    asked, sent, requests = hub.ranges(), hub.sent, len(hub.requests)

    rows = federation.rows("runs/default")
    assert [row["round"] for row in rows] == list(range(1, rounds + 1))
    assert all(miner["status"] == "admitted" for row in rows for miner in row["miners"])
    assert rows[-1]["val_loss"] < rows[0]["initial_val_loss"]
    assert "Open Data Commons Attribution License" in validator.out
    manifest = Manifest.from_bytes(corpus.manifest.to_bytes())
    stored = json.loads((federation.folder / "runs/default/manifest.json").read_text())
    assert stored == json.loads(manifest.to_bytes())

    shares = [corpus.assign(round, slot, SETTINGS["windows"]) for round in range(1, rounds + 1) for slot in (0, 1)]
    assert [row["tokens"] for row in rows] == [
        (a.n_windows + b.n_windows) * SEQ_LEN for a, b in zip(shares[::2], shares[1::2], strict=True)
    ]
    cost_what_they_hold(asked, sent, requests, corpus, {page for share in shares for page in share.pages})
    trained = sum(row["tokens"] for row in rows)
    (folder,) = (federation.folder / ".cache/fedgpt2/text/pages").iterdir()
    fetched = sum(path.stat().st_size // 2 for path in folder.glob("assign-*.u16"))
    assert trained / fetched >= 0.8


def cost_what_they_hold(asked, sent, requests, corpus, pages):
    """One cache for three processes: each chunk once, little beside them, few requests."""
    source = corpus.source

    def chunk(pool, page):
        place = source.place(pool, page)
        group = source.footer(place.file).groups[place.group]
        return source.shards.entries[place.file].path, group.start, group.stop

    def size(ranges):
        return sum(stop - start for _, start, stop in ranges)

    everything = {pool: {chunk(pool, page) for page in range(corpus.manifest.pools[pool])} for pool in Pool}
    assigned = [found for found in asked if found in everything[Pool.ASSIGN]]
    held_out = [found for found in asked if found in everything[Pool.SCORE] | everything[Pool.REPORT]]
    assert {chunk(Pool.ASSIGN, page) for page in pages} <= set(assigned)
    assert len(set(asked)) == len(asked)
    assert sent == size(asked)
    bound = 1.15 * size(chunk(Pool.ASSIGN, page) for page in pages)
    assert sent - size(held_out) <= bound
    assert requests / len(assigned + held_out) <= 6


def test_without_network_both_end_at_once_with_the_way_out(federation):
    begun = [miner_of(federation, NOWHERE), validator_of(federation, NOWHERE, [free_port()], 3)]
    for program in begun:
        said = program.complaint(1, seconds=30)
        assert "--data.source sample" in said
        assert "fedgpt2 data prefetch" in said


@pytest.mark.parametrize("which", ["miner", "validator"])
def test_interrupted_while_the_text_is_opened(federation, serve, which):  # noqa: F811
    hub = serve(repository(SHAPE, pieces=1))
    hub.bytes_per_second = 2_000
    ports = [free_port()]
    program = miner_of(federation, hub.url) if which == "miner" else validator_of(federation, hub.url, ports, 3)
    wait_for_requests(hub, 4, program)
    program.interrupt()


def test_interrupted_while_the_first_pages_come(federation, serve):  # noqa: F811
    hub = serve(repository(SHAPE, pieces=1))
    port = free_port()
    working = miner_of(federation, hub.url, port=port)
    working.wait_for("listening on")
    validator = validator_of(federation, hub.url, [port], 3)
    validator.wait_for("looking for miners")
    hub.bytes_per_second = 1_000
    wait_for_requests(hub, len(hub.requests) + 2, validator, working)
    validator.interrupt()
    working.interrupt()
