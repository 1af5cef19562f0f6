"""Who is given no work although it answers: by what it says of itself, or because every slot is taken."""

from dataclasses import replace

import msgspec
import pytest

from fedgpt2.config import Codec, Data
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.protocol.messages import Info
from fedgpt2.validator.compatibility import check_miner

from .conftest import MINERS

INFO = Info(
    hotkey=MINERS[0],
    versions=(1, 2),
    package="x",
    state_codecs=("fp32", "bf16"),
    gradient_codecs=("fp32",),
    strategies=("mean_gradient",),
    message_bytes=1 << 20,
    challenge="0" * 64,
)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ({}, None),
        ({"versions": (2,)}, "it does not support protocol version 1 (it offers 2)"),
        ({"strategies": ()}, "it does not support strategy mean_gradient (it offers none)"),
        ({"state_codecs": ("fp32",)}, "it does not support state codec bf16 (it offers fp32)"),
        ({"strategies": ("\x1b[2Jx",)}, "it does not support strategy mean_gradient (it offers \ufffd[2Jx)"),
        ({"gradient_codecs": ("bf16", "int8")}, "it does not support gradient codec fp32 (it offers bf16, int8)"),
    ],
)
def test_a_miner_is_not_asked_for_what_it_does_not_offer(config, ledger, says, why):
    config = replace(config, codec=Codec(state="bf16"))
    assert check_miner(config, ledger, msgspec.structs.replace(INFO, **says), []) == why


def test_a_miner_without_a_slot_is_told_apart_from_one_that_has_one(config, ledger):
    config = replace(config, data=Data(max_slots=2))
    ledger.lease_slots(MINERS[:2], 1, 2, 100)
    assert check_miner(config, ledger, INFO, []) is None
    why = check_miner(config, ledger, msgspec.structs.replace(INFO, hotkey=MINERS[2]), [])
    assert why == "all 2 slots are leased to other miners; one is free again after 100 rounds without use"


def test_of_two_newcomers_to_the_last_slot_one_is_told(config, ledger):
    config = replace(config, data=Data(max_slots=2))
    ledger.lease_slots(MINERS[:1], 1, 2, 100)
    assert check_miner(config, ledger, msgspec.structs.replace(INFO, hotkey=MINERS[1]), [MINERS[0]]) is None
    second = msgspec.structs.replace(INFO, hotkey=MINERS[2])
    assert check_miner(config, ledger, second, [MINERS[0], MINERS[1]]) is not None
    assert check_miner(config, ledger, second, [MINERS[0]]) is None  # the other one has left
