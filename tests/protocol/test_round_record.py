"""The record of a round: it reads back to the same bits, and refuses what no round can be."""

import msgspec
import pytest

from fedgpt2.codec import get
from fedgpt2.errors import ProtocolError, Reason
from fedgpt2.protocol.round_record import Audit, Evidence, Products, decode_record, encode_record
from fedgpt2.types import Hotkey
from tests.records import miner_record, round_record

NOTHING = Evidence(revision=1, rule={})
A, B = miner_record("a", norm=0.1 + 0.2), miner_record("b", reason="late")


def audit(hotkey: str, slope: float = 1.0) -> Audit:
    return Audit(hotkey=Hotkey(hotkey), windows=(0,), slope=slope)


def products(*miners: str, gradient: tuple[float, ...] = (1.0,)) -> Products:
    return Products(
        miners=tuple(map(Hotkey, miners)),
        baseline=(),
        gradient_norm=1.0,
        gradient=gradient,
        gradient_baseline=(),
        contributions_baseline=((),) * len(miners),
        baseline_gram=(),
    )


def test_a_record_reads_back_to_the_same_bits() -> None:
    record = round_record(
        3, [A, B], evidence=Evidence(revision=1, rule={}, products=products("a"), audits=(audit("a"),))
    )
    assert decode_record(encode_record(record)) == record
    assert (A.admitted, A.at_fault, B.admitted, B.at_fault) == (True, False, False, True)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: products("a", gradient=(1.0, 2.0)), "have other shapes"),
        (lambda: products("a", "a", gradient=(1.0, 2.0)), "a miner has two contributions"),
        (lambda: products("a", gradient=(float("nan"),)), "inner products: holds NaN or Inf"),
        (lambda: audit("a", float("inf")), "a: holds NaN or Inf"),
        (lambda: miner_record("a", norm=float("nan")), "a: holds NaN or Inf"),
        (lambda: round_record(1, [A, A]), "round 1 names a miner twice"),
        (
            lambda: round_record(1, [A], evidence=msgspec.structs.replace(NOTHING, audits=(audit("a"), audit("a")))),
            "round 1 audits a miner twice",
        ),
        (
            lambda: round_record(1, [A, B], evidence=msgspec.structs.replace(NOTHING, audits=(audit("b"),))),
            "round 1 measures a contribution that was not admitted",
        ),
    ],
)
def test_what_no_round_can_be_is_refused(make, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


def test_a_body_of_another_length_than_its_header_means() -> None:
    schema, fp32 = {"w": (2,)}, get("fp32")
    with pytest.raises(ProtocolError) as refusal:
        fp32.open(fp32.header(schema)[8:], schema, 12)
    assert refusal.value.reason is Reason.WRONG_LENGTH
