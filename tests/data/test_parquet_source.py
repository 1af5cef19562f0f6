"""Row groups as pages: where they are, what they cost, and that both sides agree on them."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedgpt2.config import Data
from fedgpt2.data import Corpus, Manifest, Pool, open_source
from fedgpt2.data.hub import WAY_OUT
from fedgpt2.data.manifest import build
from fedgpt2.data.parquet import REFINEDWEB_COMMIT, ParquetSource, Place
from fedgpt2.data.retry import Patience
from fedgpt2.data.store import Store
from fedgpt2.errors import CorpusError, EmptyShareError, Reason, Refused, UsageError

from .hub import Fault, LoopbackHub
from .refinedweb import repository, rows, shard

UNEVEN = ([40, 7, 25], [1, 60], [12] * 8, [30, 30, 5], [9] * 6)  # 22 row groups
KEY = bytes(32)


def config_of(folder: Path, **changes: object) -> Data:
    fields = {"source": "refinedweb", "cache": str(folder / "cache"), "max_slots": 2, "max_pages": 3, "windows": 4}
    return Data(**{**fields, **changes})


def written(folder: Path, shape: object) -> LoopbackHub:
    """The files of a repository in a folder of this machine."""
    hub = repository(shape)
    for name, data in hub.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return hub


@pytest.fixture
def hub(serve) -> LoopbackHub:
    return serve(repository(UNEVEN))


def opened(folder: Path, **changes: object) -> ParquetSource:
    source = open_source(config_of(folder, **changes), Patience(sleep=lambda _: None))
    assert isinstance(source, ParquetSource)
    return source


def test_pages_are_row_groups_dealt_like_small_corpora(hub: LoopbackHub, tmp_path: Path):
    source = opened(tmp_path)
    assert source.pools == {Pool.ASSIGN: 20, Pool.SCORE: 1, Pool.REPORT: 1}
    sizes = [size for groups in UNEVEN for size in groups]
    places = [Place(file, group) for file, groups in enumerate(UNEVEN) for group in range(len(groups))]
    assert source.place(Pool.SCORE, 0) == places[9]
    assert source.place(Pool.REPORT, 0) == places[19]
    assert [source.place(Pool.ASSIGN, page) for page in range(20)] == [
        p for i, p in enumerate(places) if i not in (9, 19)
    ]
    everything = rows(0, sum(sizes), 3)
    for number, (place, size) in enumerate(zip(places, sizes, strict=True)):
        pool, page = {9: (Pool.SCORE, 0), 19: (Pool.REPORT, 0)}.get(
            number, (Pool.ASSIGN, number - (number > 9) - (number > 19))
        )
        first = sum(sizes[:number])
        assert source.documents(pool, page) == everything[first : first + size], place


def test_what_a_page_costs(hub: LoopbackHub, tmp_path: Path):
    source = opened(tmp_path)
    hub.requests.clear()
    hub.sent = 0
    for page in range(20):
        source.documents(Pool.ASSIGN, page)
    chunks = [source.footer(p.file).groups[p.group] for p in (source.place(Pool.ASSIGN, page) for page in range(20))]
    assert hub.sent == sum(group.stop - group.start for group in chunks)  # the text column of the page, to the byte
    assert len(hub.requests) == 20 * 2


def test_opening_reads_each_small_footer_once(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened(tmp_path)
    assert len(hub.requests) == 1 + 2 * (len(UNEVEN) + 2)  # the listing; a footer a file, two of them over 8 KiB
    assert hub.sent < 8192 * (len(UNEVEN) + 2)
    hub.requests.clear()
    monkeypatch.setattr(Store, "put", lambda _, kind, name, data: pytest.fail(f"{kind} written again"))
    opened(tmp_path)
    assert hub.requests == []  # all of it is kept


def test_a_large_footer_takes_two_ranges_and_no_byte_twice(serve, tmp_path: Path):
    hub = serve(repository([[3] * 60]))
    source = opened(tmp_path)
    spans = sorted((start, stop) for _, start, stop in hub.ranges())
    assert len(spans) == 2
    assert spans[0][1] == spans[1][0]
    assert sum(group.rows for group in source.footer(0).groups) == 180


def test_two_processes_with_caches_of_their_own_give_the_same_windows(hub: LoopbackHub, tmp_path: Path):
    """The test's process, and one that starts from nothing but the settings."""
    program = (
        "import sys\n"
        "from fedgpt2.config import Data\n"
        "from fedgpt2.data import Corpus\n"
        "c = Corpus.open(Data(cache=sys.argv[1], max_slots=2, max_pages=3, windows=4), 32, 5)\n"
        "for r in range(6):\n"
        "    a = c.assign(r, r % 2, 4)\n"
        "    print(c.manifest.digest(), a.pages, a.windows, c.windows(a).tobytes().hex())\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    other = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "other")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    corpus = Corpus.open(config_of(tmp_path), 32, 5)
    expected = []
    for round in range(6):
        share = corpus.assign(round, round % 2, 4)
        tokens = corpus.windows(share).tobytes().hex()
        expected.append(f"{corpus.manifest.digest()} {share.pages} {share.windows} {tokens}")
    assert other.stdout.splitlines() == expected


def test_the_same_files_on_disk_are_the_same_pages(serve, tmp_path: Path):
    hub = serve(written(tmp_path, UNEVEN))
    local = opened(tmp_path, source=f"parquet:{tmp_path}/data/*.parquet")
    remote = opened(tmp_path, source=f"parquet:hf://datasets/{hub.repo}@{hub.commit}/data/*.parquet")
    named = opened(tmp_path, source=f"parquet:hf://datasets/{hub.repo}/data/*.parquet")
    assert named.files() == remote.files()  # main is that commit
    assert local.pools == remote.pools
    assert local.name == remote.name == "parquet:content"
    assert all(local.documents(Pool.ASSIGN, page) == remote.documents(Pool.ASSIGN, page) for page in range(20))
    assert [file.path for file in local.files()] == sorted(
        name.removeprefix("data/") for name in hub.files if "/" in name
    )


def test_a_local_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path, UNEVEN)
    files = opened(tmp_path, source=f"parquet:{tmp_path}/data/*.parquet").files()
    monkeypatch.setattr("fedgpt2.data.shards._sha256", None)
    assert opened(tmp_path, source=f"parquet:{tmp_path}/data/*.parquet").files() == files


def test_a_local_file_that_changes_or_goes_is_named(tmp_path: Path):
    written(tmp_path, UNEVEN)
    source = opened(tmp_path, source=f"parquet:{tmp_path}/data/*.parquet")
    path = tmp_path / "data" / source.files()[0].path
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(CorpusError, match="has changed"):
        source.documents(Pool.ASSIGN, 0)
    path.unlink()
    with pytest.raises(CorpusError, match="cannot be read any more"):
        source.documents(Pool.ASSIGN, 0)


def test_the_last_files_of_many_are_held_out(serve, tmp_path: Path):
    serve(repository([[2]] * 18 + [[2, 2, 2], [2, 2]], pieces=1))
    source = opened(tmp_path)
    assert source.pools == {Pool.ASSIGN: 18, Pool.SCORE: 3, Pool.REPORT: 2}
    assert {source.place(Pool.SCORE, page).file for page in range(3)} == {18}
    assert {source.place(Pool.REPORT, page).file for page in range(2)} == {19}
    assert {source.place(Pool.ASSIGN, page).file for page in range(18)} == set(range(18))


def test_of_very_many_files_four_footers_are_read(serve, tmp_path: Path):
    shape = [[2, 2, 2]] + [[2, 2, 2, 2]] * 20 + [[2]] * 10 + [[2, 2, 2, 2, 2]] * 40 + [[2, 2, 2, 2], [2, 2]]
    hub = serve(repository(shape, pieces=1))
    source = opened(tmp_path)
    assert {path for path, _, _ in hub.ranges()} == {source.shards.entries[n].path for n in (0, 36, 71, 72)}
    assert source.pools == {Pool.ASSIGN: 71 * 3, Pool.SCORE: 4, Pool.REPORT: 2}  # the least of 3 and 5, for each
    assert source.place(Pool.ASSIGN, 22 * 3 + 1) == Place(22, 1)
    assert source.documents(Pool.ASSIGN, 22 * 3) != []
    assert source.documents(Pool.ASSIGN, 22 * 3 + 1) == []  # that file has one row group
    assert [len(source.documents(Pool.ASSIGN, page)) for page in (3, 4, 5, 6)] == [2, 2, 2, 2]  # its fourth is unused


def test_a_slot_whose_pages_are_missing_has_no_share(serve, tmp_path: Path):
    serve(repository([[2, 2]] + [[2]] * 33 + [[2, 2]] * 33 + [[2, 2], [2, 2]], pieces=1))
    corpus = Corpus.open(config_of(tmp_path, max_pages=1, max_slots=24, span=1), seq_len=8, seed=1)
    shares = 0
    for slot in range(24):
        with suppress(EmptyShareError):
            shares += bool(corpus.assign(0, slot, 4).pages)
    assert 0 < shares < 24


def test_neighbours_are_dealt_together(hub: LoopbackHub, tmp_path: Path):
    corpus = Corpus.open(config_of(tmp_path), seq_len=8, seed=3)
    for round in (0, 9, 40):
        pages = corpus.assign(round, 1, 10_000).pages
        assert all(b == a + 1 for a, b in pairwise(pages))
        assert pages[0] % 3 == 0


def test_a_span_lasts_as_long_as_its_pages(hub: LoopbackHub, tmp_path: Path):
    config = config_of(tmp_path, max_pages=4)
    source = opened(tmp_path, max_pages=4)
    manifest = build(source, config, seq_len=8, seed=1)
    windows = source.page_tokens / 8
    assert manifest.span == int(windows * 3) // 4  # three of four pages, four windows a round
    assert build(source, dataclasses.replace(config, span=7), seq_len=8, seed=1).span == 7
    assert build(source, config, seq_len=1024, seed=1).span == 1
    actual = np.mean([len(corpus_tokens) for corpus_tokens in map(_tokens(source), range(20))])
    assert 0.6 < source.page_tokens / actual < 1.6


def _tokens(source: ParquetSource):
    from fedgpt2.data.tokens import pack

    return lambda page: pack(source.documents(Pool.ASSIGN, page))


def test_over_a_span_most_of_what_is_fetched_is_trained_on(serve, tmp_path: Path):
    serve(repository([[300, 1000, 500, 700], [600] * 5, [450, 350, 900, 1000], [500] * 7], pieces=2))
    corpus = Corpus.open(config_of(tmp_path, max_pages=4, max_slots=2, windows=8), seq_len=64, seed=3)
    span = corpus.manifest.span
    assert span > 50
    trained = sum(corpus.assign(round, slot, 8).n_windows for round in range(3 * span) for slot in range(2)) * 64
    assert trained / corpus.cache.fetched >= 0.8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"revision": "d" * 40}, r"answers 404.*--data\.source sample"),
        ({"source": "parquet:hf://datasets/no/such/*.parquet"}, "answers 404"),
        ({"source": "parquet:hf://datasets/tiiuae/falcon-refinedweb/other/*.parquet"}, "no such file"),
        (
            {"source": "parquet:hf://datasets/tiiuae/falcon-refinedweb/data/*.parquet", "column": "text"},
            "--data.column",
        ),
        ({"source": "parquet:hf://datasets/tiiuae/falcon-refinedweb/data/train-00001*"}, "2 row groups, at least 20"),
        ({"source": "parquet:hf://datasets/tiiuae/falcon-refinedweb/README.md"}, "README.md: not a parquet file"),
        ({"source": "parquet:nowhere/*.parquet"}, "names no file"),
    ],
)
def test_what_cannot_be_opened_says_why_in_one_line(hub: LoopbackHub, tmp_path: Path, changes: dict, said: str):
    with pytest.raises(CorpusError, match=said) as caught:
        opened(tmp_path, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["parquet:s3://bucket/x.parquet", "parquet:hf://models/a/b/c", "parquet:hf://datasets/a"]
)
def test_an_unknown_scheme_is_a_usage_error(source: str, tmp_path: Path):
    with pytest.raises(UsageError, match="hf://datasets/OWNER/NAME"):
        opened(tmp_path, source=source)


def test_the_pinned_commit_is_asked_for_and_may_be_overridden(hub: LoopbackHub, tmp_path: Path):
    assert opened(tmp_path).shards.name == f"hf://datasets/tiiuae/falcon-refinedweb@{REFINEDWEB_COMMIT}/data/*.parquet"
    hub.commit = "d" * 40
    assert "@" + "d" * 40 in opened(tmp_path, revision="d" * 40).shards.name
    assert "@" + "d" * 40 in opened(tmp_path, revision="main").shards.name


def test_the_manifest_is_small_however_many_files(serve, tmp_path: Path):
    serve(repository([[1]] * 70, pieces=1))
    config = config_of(tmp_path)
    manifest = build(opened(tmp_path), config, seq_len=8, seed=1)
    assert len(manifest.to_bytes()) < 1000
    (file,) = manifest.files
    assert file.path == f"hf://datasets/tiiuae/falcon-refinedweb@{REFINEDWEB_COMMIT}/data/*.parquet"
    local = written(tmp_path, [[1]] * 70)
    source = opened(tmp_path, source=f"parquet:{tmp_path}/data/*.parquet")
    assert [entry.path for entry in source.files()] == ["*.parquet"]
    assert source.files()[0].size == sum(map(len, local.files.values())) - len(local.files["README.md"])


@pytest.mark.parametrize("change", ["file", "revision", "column", "less"])
def test_a_miner_with_other_files_is_told_what_differs(serve, tmp_path: Path, change: str):
    hub = serve(repository(UNEVEN))
    theirs = Corpus.open(config_of(tmp_path), seq_len=8, seed=1).manifest
    changes: dict[str, object] = {}
    if change == "file":
        name = sorted(hub.files)[2]
        hub.files[name] = shard(rows(5000, 61, 3), [1, 60])
    elif change == "revision":
        hub.commit = changes["revision"] = "d" * 40
    elif change == "less":
        del hub.files[sorted(hub.files)[-1]]
        hub.files["data/z.parquet"] = shard(rows(5000, 54, 3), [9] * 6)
    else:
        changes = {"source": f"parquet:hf://datasets/{hub.repo}@{hub.commit}/data/*.parquet", "column": "url"}
    ours = opened(tmp_path / "other", **changes)
    with pytest.raises(Refused) as caught:
        Corpus(ours, Manifest.from_bytes(theirs.to_bytes()))
    assert caught.value.reason is Reason.WRONG_MANIFEST
    expected = {"file": "differs", "less": "differs", "revision": "only", "column": "source is refinedweb"}
    assert expected[change] in caught.value.detail


def test_garbled_text_is_fetched_once_more(hub: LoopbackHub, tmp_path: Path):
    expected = opened(tmp_path / "right").documents(Pool.ASSIGN, 3)
    source = opened(tmp_path)
    hub.faults.append(Fault("/storage/", garble=True))
    assert source.documents(Pool.ASSIGN, 3) == expected
    hub.faults.append(Fault("/storage/", garble=True, times=2))
    with pytest.raises(CorpusError, match=r"row group 0 cannot be decoded"):
        source.documents(Pool.ASSIGN, 3)
    assert hub.faults == []


def test_a_garbled_footer_is_named_and_not_kept(hub: LoopbackHub, tmp_path: Path):
    hub.faults.append(Fault("/storage/", garble=True))
    with pytest.raises(CorpusError, match=r"train-00000.*not a parquet file"):
        opened(tmp_path)
    opened(tmp_path)


def test_without_network_what_is_kept_still_trains(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = serve(repository(UNEVEN))
    corpus = Corpus.open(config_of(tmp_path), seq_len=8, seed=1)
    windows = corpus.windows(corpus.assign(2, 1, 4))
    requests = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    again = Corpus.open(config_of(tmp_path), seq_len=8, seed=1)
    assert np.array_equal(again.windows(again.assign(2, 1, 4)), windows)
    monkeypatch.setattr(
        again.source.shards.read.__self__, "patience", Patience(tries=1), raising=False
    ) if False else None
    assert len(hub.requests) == requests


def test_without_network_or_cache_the_way_out_is_named(tmp_path: Path, serve, monkeypatch: pytest.MonkeyPatch):
    serve(repository(UNEVEN))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CorpusError) as caught:
        opened(tmp_path)
    said = str(caught.value)
    assert said.endswith(WAY_OUT)
    assert "--data.source sample" in said
    assert "fedgpt2 data prefetch" in said
    assert "\n" not in said


FETCH = """
import sys
from fedgpt2.config import Data
from fedgpt2.data import Corpus, Pool
corpus = Corpus.open(Data(cache=sys.argv[1], max_slots=2, max_pages=3, windows=4), 32, 5)
print("open", flush=True)
for page in range(4):
    print(corpus.tokens(Pool.ASSIGN, page).tobytes().hex()[:64], flush=True)
"""


def test_killed_while_it_fetches_a_process_leaves_nothing_wrong(hub: LoopbackHub, tmp_path: Path):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    argv = [sys.executable, "-c", FETCH, str(tmp_path / "killed")]
    expected = subprocess.run(
        [*argv[:-1], str(tmp_path / "whole")], env=environment, capture_output=True, text=True, check=True
    )
    hub.bytes_per_second = 20_000
    hub.requests.clear()
    killed = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while len(hub.requests) < 2 * len(UNEVEN) + 4 + 2 and time.monotonic() < end:  # in the second page
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    said = killed.communicate()[0].splitlines()
    hub.bytes_per_second = 0
    again = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert said == expected.stdout.splitlines()[: len(said)]
    assert len(said) < 5
    assert again.stdout == expected.stdout
