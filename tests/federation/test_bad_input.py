"""Bad input: one clear line on stderr, a non-zero exit, nothing lost."""

import os
import re
import shutil
import socket

import pytest
from bittensor.wallet import Wallet

from .program import Spawned

STRANGER = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
NO_HUB = {"HF_HUB_OFFLINE": "1"}
SAMPLE = ("--device", "cpu", "--data.source", "sample")
ON_CPU = ("miner", "--device", "cpu", "--data.source")

# The two commands of README, as they stand.
MINER = ["miner", "--wallet.name", "miners", "--wallet.hotkey", "M1", "--device", "cuda:1", "--axon.port", "8091"]
VALIDATOR = ["validator", "--wallet.name", "validator", "--wallet.hotkey", "default", "--device", "cuda:0"]
VALIDATOR += ["--axons", "8091", "8092"]


def on(device, argv):
    """The command with another device."""
    return ["cpu" if word.startswith("cuda") else word for word in argv] if device == "cpu" else argv


CASES = {
    "a flag that is none": (["miner", "--axon.prot", "1"], 2, "unknown flag --axon.prot; did you mean --axon.port?"),
    "a flag of the other program": (["miner", "--axons", "1"], 2, "unknown flag --axons"),
    "an abbreviated flag": (
        ["validator", "--wallet.h", "x"],
        2,
        "unknown flag --wallet.h; did you mean --wallet.h",
    ),
    "an abbreviated undotted flag": (["miner", "--dev", "cpu"], 2, "unknown flag --dev; did you mean --device?"),
    "a value of another type": (["validator", "--rounds", "few"], 2, "--rounds few: not a whole number"),
    "no such device": (MINER, 1, "--device cuda:1: this machine has no CUDA device; use --device cpu"),
    "no such device at the validator": (VALIDATOR, 1, "--device cuda:0: .* use --device cpu"),
    "no such text": (on("cpu", MINER), 1, "--data.source sample"),
    "no such text at the validator": (on("cpu", VALIDATOR), 1, "--data.source sample"),
    "a device that is no name": (
        ["miner", "--device", "gpu"],
        2,
        "--device gpu: not a device; one of cpu, cuda",
    ),
    "no miners named": (["validator", *SAMPLE], 2, "no miners given; name them with --axons"),
    "an axon named twice": (["validator", *SAMPLE, "--axons", "1", "1"], 2, "--axons names an address twice"),
    "more axons than slots": (
        ["validator", *SAMPLE, "--axons", "1", "2", "3", "--data.max_slots", "2"],
        2,
        "--axons names 3 miners, --data.max_slots is 2: raise it",
    ),
    "an axon that is no address": (["validator", *SAMPLE, "--axons", "here:there"], 2, "--axons 'here:there': no port"),
    "an axon off loopback without its key": (
        ["validator", *SAMPLE, "--axons", "192.0.2.1:8091"],
        2,
        "--axons 192.0.2.1:8091: off loopback the miner's key must be given, as HOTKEY@192.0.2.1:8091",
    ),
    "no wallet off loopback": (
        ["validator", *SAMPLE, "--wallet.name", "v", "--axons", f"{STRANGER}@192.0.2.1:8091"],
        2,
        "no hotkey at .*; create it with: btcli wallet create --wallet v --wallet-hotkey default --wallet-path",
    ),
    "no wallet at a miner off loopback": (
        ["miner", *SAMPLE, "--wallet.name", "m", "--axon.host", "0.0.0.0", "--axon.validators", STRANGER],
        2,
        "no hotkey at .*; create it with: btcli wallet create --wallet m --wallet-hotkey default --wallet-path",
    ),
    "a miner off loopback that names no validator": (
        ["miner", *SAMPLE, "--axon.host", "0.0.0.0"],
        2,
        "--axon.host 0.0.0.0: off loopback name the validators you work for with --axon.validators",
    ),
    "a validator that is no hotkey": (["miner", *SAMPLE, "--axon.validators", "me"], 2, "'me' is not a hotkey"),
    "a source that is none": ([*ON_CPU, "wiki"], 2, "--data.source wiki: no such"),
    "a glob that names nothing": ([*ON_CPU, "text:none/*.txt"], 1, "names no file"),
    "text that is not UTF-8": (
        [*ON_CPU, "text:latin.txt"],
        1,
        "latin.txt: not UTF-8",
    ),
    "too little text": ([*ON_CPU, "text:short.txt"], 1, "short.txt: too small"),
    "a strategy that is none": (
        ["miner", *SAMPLE, "--gradient.strategy", "x"],
        2,
        "--gradient.strategy x: no such strategy; one of exact",
    ),
    "a plugin that cannot be imported": (
        ["miner", *SAMPLE, "--gradient.strategy", "plugin", "--gradient.plugin", "none:f"],
        2,
        "--gradient.plugin none:f: ModuleNotFoundError",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_is_refused_at_once(federation, case):
    argv, code, pattern = CASES[case]
    (federation.folder / "latin.txt").write_bytes("é".encode("latin-1") * 1000)
    (federation.folder / "short.txt").write_text("A few words.")
    started = federation.start("it", argv, environment=NO_GPU | NO_HUB)
    complaint = started.complaint(code, 20)
    assert complaint.startswith(f"fedgpt2 {argv[0]}: ")
    assert re.search(pattern, complaint), complaint
    assert not list(federation.folder.rglob("*.sqlite"))  # nothing was begun
    assert not (federation.folder / ".bittensor").exists()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_founding_commands_as_people_start_them(federation, device):
    """On this machine without a GPU each ends at once, naming the way out, and then the next one."""
    way_out = {"cuda": "use --device cpu", "cpu": "--data.source sample"}[device]
    started = [
        federation.start(argv[0], on(device, argv), kind=Spawned, environment=NO_GPU | NO_HUB)
        for argv in (MINER, VALIDATOR)
    ]
    assert all(way_out in program.complaint(1, 30) for program in started)


def test_a_hotkey_that_is_locked(federation):
    theirs = Wallet("locked", "M1", str(federation.folder / "own"))
    theirs.create_new_hotkey(suppress=True, hotkey_password="known")  # noqa: S106
    wallet = ("--wallet.name", "locked", "--wallet.hotkey", "M1", "--wallet.path", federation.folder / "own")
    started = [
        federation.start("miner", ["miner", *SAMPLE, *wallet, "--axon.port", 0]),
        federation.start("validator", ["validator", *SAMPLE, *wallet, "--axons", 1]),
    ]
    for program in started:
        assert "is encrypted; it signs every message, so it must be a plain keyfile" in program.complaint(2)


def test_a_hotkey_whose_secret_half_is_gone(federation):
    theirs = Wallet("half", "M1", str(federation.folder / "own"))
    theirs.create_new_hotkey(suppress=True)
    os.unlink(theirs.hotkey_file.path)
    wallet = ("--wallet.name", "half", "--wallet.hotkey", "M1", "--wallet.path", federation.folder / "own")
    started = federation.start("miner", ["miner", *SAMPLE, *wallet, "--axon.port", 0])
    assert "bring it back with: btcli wallet regen-hotkey --wallet half" in started.complaint(2)


def test_a_port_that_is_taken(federation):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        started = federation.start(
            "miner", ["miner", *SAMPLE, "--axon.port", port, "--wallet.path", federation.wallets]
        )
        complaint = started.complaint(1)
    assert complaint == f"fedgpt2 miner: port {port} of 127.0.0.1 is in use; choose another with --axon.port"


def test_no_miner_at_all(federation):
    validator = federation.validator([1, 2], "--axons.wait_seconds", 1)
    assert validator.complaint(1) == (
        "fedgpt2 validator: no miner answered within 1 s (127.0.0.1:1: unreachable: connection refused; "
        "127.0.0.1:2: unreachable: connection refused); start miners first"
    )
    assert len(validator.lines("going on without it")) == 2


@pytest.fixture(scope="module")
def finished(shared, miners):
    """A run directory that holds two rounds and their checkpoints."""
    shared.validator(miners, rounds=2, run="finished").ended()
    return shared.folder / "finished"


@pytest.fixture
def run(federation, finished):
    """A copy of it."""
    return shutil.copytree(finished, federation.folder / "run")


def state(run):
    """What may not be lost: the ledger's rounds, the journal, the checkpoints."""
    files = (path for path in run.rglob("*") if path.is_file() and "lock" not in path.name)
    return {path: path.read_bytes() for path in files if path.suffix in {".jsonl", ".safetensors"}}


def flip(path):
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_usable(federation, miners, run, name):
    flip(federation.checkpoint(2) / name)
    before = state(run)
    complaint = federation.validator(miners, rounds=3).complaint(1)
    assert re.search(rf"round-000002/{name} is damaged: .*; remove .*round-000002 to go on from", complaint)
    assert state(run) == before
    if name == "model.safetensors":
        shutil.rmtree(federation.checkpoint(2))
        recovered = federation.validator(miners, rounds=3)
        recovered.ended()
        assert recovered.lines("checkpoint round-000002 is gone; going on from round-000001")
        assert [row["round"] for row in federation.rows()] == [1, 2, 3]


def test_a_checkpoint_of_another_model(federation, shared, miners, run):
    other = shared.validator([miners[0]], "--model.preset", "nano", rounds=2, run="nano")
    other.ended()
    shutil.rmtree(federation.checkpoint(2))
    shutil.copytree(shared.checkpoint(2, "nano"), federation.checkpoint(2))
    before = state(run)
    complaint = federation.validator(miners, rounds=3).complaint(1)
    assert re.search(r"round-000002/model.safetensors is of another model: .*; remove ", complaint)
    assert state(run) == before


def test_a_checkpoint_of_another_run_of_the_same_model(federation, shared, miners, run):
    shared.validator([miners[0]], rounds=2, run="other").ended()
    shutil.rmtree(federation.checkpoint(2))
    shutil.copytree(shared.checkpoint(2, "other"), federation.checkpoint(2))
    before = state(run)
    complaint = federation.validator(miners, rounds=3).complaint(1)
    assert re.search(r"round-000002 is of another run or round; remove .* to go on from", complaint)
    assert state(run) == before


def test_no_checkpoint_left(federation, miners, run):
    shutil.rmtree(run / "checkpoints")
    before = state(run)
    complaint = federation.validator(miners, rounds=3).complaint(1)
    assert re.search(r"round-000002 is gone, and so is every checkpoint before it; put one back or choose", complaint)
    assert state(run) == before


OTHERS = {
    "another model": (("--model.preset", "nano"), "holds a run with --model.preset tiny, not nano"),
    "another seed": (("--run.seed", 1), "holds a run with --run.seed 1337, not 1"),
    "other text": (("--data.span", 2), "holds a run over other text or --data settings"),
    "another codec": (("--codec.state", "bf16"), "holds a run with --codec.state fp32, not bf16"),
    "another optimizer": (("--optimizer.name", "sgd"), "holds a run with --optimizer.name adamw, not sgd"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_directory_of(federation, run, case):
    flags, text = OTHERS[case]
    before = state(run), (run / "config.json").read_bytes()
    complaint = federation.validator([1], *flags).complaint(1)
    assert complaint == f"fedgpt2 validator: {run} {text}; choose another --run.dir"
    assert (state(run), (run / "config.json").read_bytes()) == before


DAMAGES = {
    "settings": ("config.json", b"{", "config.json is damaged"),
    "settings that are no object": ("config.json", b"[]", "config.json is damaged: not an object"),
    "ledger": ("ledger.sqlite", b"no database at all" * 99, "ledger.sqlite: file is not a database"),
    "key": ("evaluation.key", b"short", "evaluation.key is damaged: not 64 hex"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_run_directory_with_damaged(federation, run, case):
    name, content, text = DAMAGES[case]
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"evaluation_key":', '"other":'))  # as if it were not over yet
    (run / name).write_bytes(content)
    before = state(run)
    assert text in federation.validator([1]).complaint(1)
    assert state(run) == before


def test_a_miner_on_other_text_is_told_of_once_and_in_full(federation):
    there, here = federation.miner("M1"), federation.miner("M2", "--data.source", "sample")
    validator = federation.validator([there, here], rounds=2)
    validator.ended()
    said = "wrong_manifest: the miner says: source is text in the manifest, sample here"
    assert validator.lines("the miner says") == [f"127.0.0.1:{here.port}: {said}"]
    assert len(validator.lines(f"127.0.0.1:{here.port} failed: wrong_manifest (MINER)")) == 2


def test_a_run_directory_in_use(federation):
    first = federation.validator([1], rounds=0)
    first.wait_for("looking for miners")
    second = federation.validator([1])
    assert second.complaint(1) == (
        f"fedgpt2 validator: {federation.folder / 'run'} is in use by another validator; choose another --run.dir"
    )
    first.interrupt()


def test_a_run_directory_that_is_a_file(federation):
    (federation.folder / "run").write_text("")
    assert f"cannot use {federation.folder / 'run'}" in federation.validator([1]).complaint(1)
