"""The miner of examples/, written from the documents alone, in a federation with a real validator."""

import json
from pathlib import Path

import pytest

from fedgpt2.identity.signing import open_envelope
from fedgpt2.protocol.messages import Envelope, Receipt

from .program import Spawned

ASSETS = Path(__file__).parents[2] / "src" / "fedgpt2" / "data" / "assets"
PROGRAM = "../examples/numpy_miner"  # from src, where the commands lie
ROUNDS = 3


def numpy_miner(federation):
    hotkey = federation.folder / "hotkey"
    hotkey.write_text(json.dumps({"secretSeed": "0x" + "17" * 32}))
    argv = [PROGRAM, "--port", 0, "--assets", ASSETS, "--hotkey-file", hotkey]
    started = federation.start("numpy", argv, kind=Spawned, environment={"OPENBLAS_NUM_THREADS": "1"})
    *_, place, _, started.hotkey = started.wait_for("listening on").split()
    started.port = int(place.rpartition(":")[2])
    return started


def test_the_numpy_miner_is_admitted_every_round_beside_an_ordinary_one(federation):
    federation.source = "sample"
    numpy, ordinary = numpy_miner(federation), federation.miner("N1", "--gradient.precision", "fp32")
    validator = federation.validator([numpy, ordinary], "--round.min_miners", 2, rounds=ROUNDS, kind=Spawned)
    validator.ended()
    rows = federation.rows()
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    assert all(row["applied"] and row["tokens"] == 2 * 4 * 64 for row in rows)
    for row in rows:
        weights = {miner["hotkey"]: miner["weight"] for miner in row["miners"] if miner["status"] == "admitted"}
        assert set(weights) == {numpy.hotkey, ordinary.hotkey}
        assert max(weights.values()) == pytest.approx(0.5)  # a clipped mean: the longer gradient's is less
        assert min(weights.values()) > 0.25

    numpy.wait_for(": receipt ", times=ROUNDS)
    printed = [Envelope(**json.loads(line.partition(" receipt ")[2])) for line in numpy.lines(": receipt ")]
    receipts = [open_envelope(envelope, "receipt", Receipt, signer=printed[0].signer) for envelope in printed]
    assert [receipt.status for receipt in receipts] == ["admitted"] * ROUNDS
    assert {receipt.receiver for receipt in receipts} == {numpy.hotkey}
    assert [receipt.model for receipt in receipts] == [row["model"] for row in rows]
    assert numpy.err == ""
