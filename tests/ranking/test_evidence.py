"""Evidence: what it refuses, and that it reads back to the bit."""

import json
import math

import msgspec
import numpy as np
import pytest
from fedgpt2.ranking.evidence import Evidence, MinerEvidence, Products, Trial, as_row, read_evidence, rule_of, rule_row
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.config import Ranking
from tests.ranking.worlds import AGGREGATE, MOMENT, evidence, noisy_rounds, refused, rule

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, min_size=2, max_size=6), FLOATS, FLOATS)
def test_any_finite_float_reads_back_to_the_bit(values: list[float], loss: float, weight: float) -> None:
    names = tuple(f"m{i}" for i in range(len(values)))
    made = Evidence(
        round=3,
        applied=False,
        reason="loss_gate",
        rule=rule_row(Ranking()),
        picks=((1, 2),),
        miners=tuple(
            MinerEvidence(hotkey=n, status="admitted", norm=v, weight=weight)
            for n, v in zip(names, values, strict=True)
        ),
        products=Products(
            miners=names,
            free=(AGGREGATE,),
            gradient_norm=abs(loss),
            gradient=tuple(values),
            gradient_free=(loss,),
            contributions_free=tuple((v,) for v in values),
            free_gram=((loss,),),
            gram=tuple(tuple(values[: i + 1]) for i in range(len(values))),
        ),
        trials=(Trial(hotkey="m0", before=loss, after=weight),),
    )
    for text in (json.dumps(as_row(made), allow_nan=False), msgspec.json.encode(made)):
        again = read_evidence(text)
        assert again == made
        assert repr(again) == repr(made)  # equality takes -0.0 for 0.0, repr does not
    assert read_evidence(as_row(made)) == made


def test_a_round_of_sixteen_is_small() -> None:
    quality = {f"5{'miner':0<40}{i:07}": 1.0 for i in range(16)}
    body = json.dumps(as_row(noisy_rounds(quality, 1)[0]), separators=(",", ":"))
    assert len(body) < 12_000


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_evidence(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        MinerEvidence(hotkey="a", status="admitted", norm=value)
    with pytest.raises(ValueError, match="NaN or Inf"):
        Trial(hotkey="a", before=1.0, after=value)
    with pytest.raises(ValueError, match="NaN or Inf"):
        Products(
            miners=("a",), free=(), gradient_norm=1.0, gradient=(value,), gradient_free=(),
            contributions_free=((),), free_gram=(),
        )  # fmt: skip
    with pytest.raises(msgspec.DecodeError):
        read_evidence(
            '{"v":1,"round":1,"applied":true,"rule":{},"miners":[{"hotkey":"a","status":"failed","seconds":null}]}'
        )


def test_shapes_and_names_must_fit() -> None:
    x = np.ones(4)
    made = evidence(1, {"a": x, "b": x}, x, [(MOMENT, x)])
    row = as_row(made)
    for path, value in (
        (("products", "gradient"), [1.0]),
        (("products", "free_gram"), []),
        (("products", "gram"), [[1.0]]),
        (("products", "gram"), [[1.0], [1.0]]),
        (("products", "contributions_free"), [[1.0], []]),
        (("products", "miners"), ["a", "a"]),
        (("products", "miners"), ["a", "stranger"]),
    ):
        broken = json.loads(json.dumps(row))
        broken[path[0]][path[1]] = value
        with pytest.raises(msgspec.ValidationError):
            read_evidence(broken)
    with pytest.raises(ValueError, match="twice"):
        evidence(1, {"a": x}, x, others=[refused("a")])
    with pytest.raises(msgspec.ValidationError):
        read_evidence({**row, "surprise": 1})


def test_settings_travel_with_the_round() -> None:
    own = rule(tau=0.3, score="raw", recent=4)
    made = evidence(1, {"a": np.ones(3)}, np.ones(3), rule=own)
    assert rule_of(read_evidence(json.dumps(as_row(made)))) == own
    assert rule_of(made, {"tau": 0.5}) == rule(tau=0.5, score="raw", recent=4)
    with pytest.raises(msgspec.ValidationError):
        rule_of(made, {"tau": "much"})
