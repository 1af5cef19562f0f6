"""Who starts first does not matter."""

import pytest

from .federation import free_port
from .program import Spawned


def test_miners_first(federation, miners):
    validator = federation.validator(miners)
    validator.ended()
    rows = federation.rows()
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert all(m["status"] == "admitted" for row in rows for m in row["miners"])
    for row in rows:  # the clipped mean: an equal vote each, the longer gradient's shortened
        shorter, longer = sorted(row["miners"], key=lambda miner: miner["norm"])
        assert shorter["weight"] == pytest.approx(0.5)
        assert 0.25 < longer["weight"] <= 0.5
    assert all(row["applied"] and row["tokens"] == 2 * 4 * 64 for row in rows)
    assert validator.lines("3 rounds in")


def test_weights_and_gradients_in_half_the_bytes(federation, miners):
    validator = federation.validator(miners, "--codec.state", "bf16", "--codec.gradient", "bf16", rounds=2)
    validator.ended()
    first, second = federation.rows()
    assert second["parent"] == first["model"] != first["parent"]
    assert all(m["status"] == "admitted" for row in (first, second) for m in row["miners"])
    assert second["bytes"]["up"] < 2 * 2.1 * 811_712


def test_the_founding_commands_in_either_order(federation):
    """As in README, on a CPU, on the embedded text, as people start them: a miner before the validator, one after."""
    here = ("--device", "cpu", "--data.source", "sample", "--model.preset", "nano")
    common = ("--wallet.path", federation.folder / "wallets", "--run.threads", 1)
    ports = [free_port(), free_port()]

    def miner(number):
        key = ("--wallet.name", "miners", "--wallet.hotkey", f"M{number}", "--axon.port", ports[number - 1])
        return federation.start(f"M{number}", ["miner", *key, *here, *common], kind=Spawned)

    first = miner(1)
    first.wait_for("listening on")
    asked = ("--wallet.name", "validator", "--wallet.hotkey", "default", *here, "--axons", *ports)
    short = ("--rounds", 5, "--ranking.tokens", 256, "--round.min_miners", 2)
    validator = federation.start("validator", ["validator", *asked, *short, *common], kind=Spawned)
    validator.wait_for("looking for miners")
    second = miner(2)
    validator.ended()
    for started in (first, second):
        started.interrupt()
    rows = federation.rows("runs/default")
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["val_loss"] < rows[0]["initial_val_loss"]
    assert all(miner["status"] == "admitted" for row in rows for miner in row["miners"])
    assert {miner["axon"] for miner in rows[-1]["miners"]} == {f"127.0.0.1:{port}" for port in ports}
