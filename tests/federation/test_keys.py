"""Whose key answers at an axon."""

from bittensor.sp_core import Keypair

STRANGER = Keypair.create_from_uri("//Stranger").ss58_address


def test_another_key_on_an_axon_is_refused_until_it_is_accepted(federation, miners):
    first = federation.miner("A")
    validator = federation.validator([miners[0], first], rounds=0)
    validator.wait_for("round 2 ")
    first.kill()
    other = federation.miner("B", port=first.port)
    notice = validator.wait_for("key_changed")
    assert notice == (
        f"127.0.0.1:{first.port}: key_changed: shows {other.hotkey}, recorded: {first.hotkey}; "
        "--axons.accept_new takes the new key on; going on without it"
    )
    seen = len(federation.rows())
    validator.wait_for(f"round {seen + 2} ")
    validator.interrupt()
    rows = federation.rows()
    assert rows[0]["miners"][1]["hotkey"] == first.hotkey
    assert other.hotkey not in {miner["hotkey"] for row in rows for miner in row["miners"]}
    assert len(validator.lines("key_changed")) == 1

    last = len(rows)
    alone = federation.validator([first], "--axons.wait_seconds", 1, rounds=last + 1)
    complaint = alone.complaint(1)
    assert "no miner answered within 1 s" in complaint
    assert f"key_changed: shows {other.hotkey}" in complaint
    assert len(federation.rows()) == last

    accepting = federation.validator([first], "--axons.accept_new", rounds=last + 1)
    accepting.ended()
    assert federation.rows()[-1]["miners"][0]["hotkey"] == other.hotkey
    assert federation.rows()[-1]["applied"]
    remembered = federation.validator([first], rounds=last + 2)
    remembered.ended()
    assert federation.rows()[-1]["miners"][0]["status"] == "admitted"


def test_a_pinned_key_that_does_not_answer_is_gone_on_without(federation, miners):
    good, wrong = miners
    pinned = f"{STRANGER}@127.0.0.1:{wrong.port}"
    validator = federation.validator([f"{good.hotkey}@127.0.0.1:{good.port}", pinned])
    validator.ended()
    assert validator.lines("key_changed") == [
        f"127.0.0.1:{wrong.port}: key_changed: shows {wrong.hotkey}, pinned: {STRANGER}; going on without it"
    ]
    assert all([m["hotkey"] for m in row["miners"]] == [good.hotkey] for row in federation.rows())
    alone = federation.validator([pinned], "--axons.wait_seconds", 1, rounds=5)
    assert f"key_changed: shows {wrong.hotkey}, pinned: {STRANGER}" in alone.complaint(1)


def test_two_axons_with_one_hotkey_are_one_miner(federation, miners):
    twin = federation.miner("H1", run="twin")
    assert twin.hotkey == miners[0].hotkey
    validator = federation.validator([miners[0], twin])
    validator.ended()
    assert len(validator.lines("duplicate_hotkey")) == 1
    assert "going on without it" in validator.lines("duplicate_hotkey")[0]
    assert all(len(row["miners"]) == 1 for row in federation.rows())


def test_an_axon_where_nobody_is_is_gone_on_without(federation, miners):
    validator = federation.validator([miners[0], 1])
    validator.ended()
    assert validator.lines("127.0.0.1:1") == ["127.0.0.1:1: unreachable: connection refused; going on without it"]
    assert [len(row["miners"]) for row in federation.rows()] == [1, 1, 1]
