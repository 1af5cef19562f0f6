"""Every attack: what it sends, whether the validator refuses it, and that the seed determines it."""

import pytest
import torch

from fedgpt2.aggregation.registry import RULES
from fedgpt2.errors import PeerError, Reason, SetupError, UsageError
from fedgpt2.simulate.attacks.base import Submission
from fedgpt2.simulate.attacks.registry import ADAPTIVE, ALONE, ATTACKS, NAMES, SYBILS, build_attack
from tests.simulate.stage import D, Stage, cosine, judged, moved, play, rows

# of three hostile miners, in the second round
REFUSED = {
    "scale": [Reason.NORM_BOUND] * 3,
    "nan": [Reason.NON_FINITE] * 3,
    "inf": [Reason.NON_FINITE] * 3,
    "stale": [Reason.WRONG_PARENT] * 3,
    "sybils": [None, Reason.DUPLICATE, Reason.DUPLICATE],
    "slow_drip": [Reason.LATE] * 3,
    "late": [Reason.LATE] * 3,
    "oversize": [Reason.TOO_LARGE] * 3,
    "wrong_names": [Reason.WRONG_NAMES] * 3,
    "wrong_shapes": [Reason.WRONG_SHAPE] * 3,
    "wrong_dtypes": [Reason.WRONG_DTYPE] * 3,
}


def test_every_attack_has_a_line_and_a_source():
    assert set(ADAPTIVE) == {"opt_ipm", "opt_alie", "min_max", "time_coupled", "score_aware"}
    assert {name for name in NAMES if name.startswith("sybils")} == SYBILS
    assert not SYBILS & set(ALONE)
    assert all("\n" not in ATTACKS[name].about and ATTACKS[name].source for name in NAMES)


def test_an_unknown_attack_is_a_bad_flag():
    with pytest.raises(UsageError, match="--attack flip: no such attack; one of sign_flip, "):
        build_attack("flip")


@pytest.mark.parametrize("answer", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_validator_says_to_each_what_it_should(name, answer):
    stage, attack = Stage(answer=answer), build_attack(name)
    attack(stage.view(1))
    view = stage.view(2)
    assert judged(view, attack(view)) == REFUSED.get(name, [None] * 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_everything(name):
    def bodies() -> list[object]:
        stage, attack = Stage(), build_attack(name)
        return [_plain(reply) for number in range(1, 5) for reply in attack(stage.view(number))]

    assert bodies() == bodies()


def _plain(reply: Submission | PeerError) -> object:
    if isinstance(reply, PeerError):
        return reply.reason
    return reply.header, bytes(reply.data), reply.codec, reply.parent


@pytest.mark.parametrize("name", NAMES)
def test_more_and_fewer_of_them_may_be_at_work_from_round_to_round(name):
    stage, attack = Stage(), build_attack(name)
    for number, f in enumerate((2, 3, 1, 3), 1):
        view = stage.view(number)
        assert len(attack(moved(view, orders=view.orders[-f:], shares=view.shares[-f:]))) == f


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("h", "f"), [(1, 1), (2, 1), (3, 5)])
def test_any_number_of_hostile_miners_finds_something_to_send(name, h, f):
    stage, attack = Stage(h=h, f=f), build_attack(name)
    for number in (1, 2):
        assert len(attack(stage.view(number))) == f


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_honest_gradients_are_left_as_they_were(name):
    stage, attack = Stage(), build_attack(name)
    kept = stage.honest(1)
    before = kept.clone()
    attack(moved(stage.view(1), honest=lambda: kept))
    assert torch.equal(kept, before)


@pytest.mark.parametrize(
    ("name", "strength"), [("sign_flip", -4.0), ("sign_flip_1", -1.0), ("ipm", -0.5), ("ipm_100", -100.0)]
)
def test_multiples_of_the_mean_are_sent_apart(name, strength):
    stage = Stage()
    (sent,) = play(build_attack(name), stage, 1)
    mean = stage.honest(1).mean(0)
    for row in sent:
        assert float(row @ mean / mean.norm() ** 2) == pytest.approx(strength, rel=0.05)
        assert float((row - strength * mean).norm()) == pytest.approx(
            0.25 * abs(strength) * float(mean.norm()), rel=0.1
        )
    assert votes(stage, sent) == 12


@pytest.mark.parametrize("h", [9, 5, 20])
def test_a_flipped_sign_turns_a_plain_mean(h):
    stage = Stage(h=h, noise=0.5)
    honest = stage.honest(1)
    (sent,) = play(build_attack("sign_flip"), stage, 1)
    assert cosine(torch.cat([honest, sent]).mean(0), honest.mean(0)) < -0.6
    (sent,) = play(build_attack("sign_flip_1"), stage, 1)
    assert cosine(torch.cat([honest, sent]).mean(0), honest.mean(0)) > 0.85


@pytest.mark.parametrize("name", ["sign_flip_copies", "mimic_copies", "copy_noise"])
def test_copies_have_one_vote_and_are_no_duplicates(name):
    stage = Stage()
    (sent,) = play(build_attack(name), stage, 1)
    assert votes(stage, sent) == {"sign_flip_copies": 10, "mimic_copies": 9, "copy_noise": 9}[name]
    assert not torch.equal(sent[0], sent[1])


def votes(stage: Stage, sent: torch.Tensor) -> int:
    """Groups the default rule finds among all rows."""
    aggregate = RULES["default"]([*stage.honest(1), *sent], None, 3, torch.empty(D))
    return len(aggregate.groups)


def test_alie_stays_within_its_deviations():
    stage = Stage()
    (sent,) = play(build_attack("alie"), stage, 1)
    honest = stage.honest(1)
    # n = 12, f = 3: 4 supporters, z = quantile at 5/9
    wanted = honest.mean(0) + 0.1397 * honest.std(0)
    assert cosine(sent.mean(0), wanted) > 0.98
    assert float((sent[0] - wanted).norm() / wanted.norm()) == pytest.approx(0.25, rel=0.1)


def test_mimic_is_an_honest_miners_gradient():
    stage = Stage()
    (sent,) = play(build_attack("mimic_copies"), stage, 1)
    assert any(torch.equal(sent[0], row) for row in stage.honest(1))
    assert votes(stage, play(build_attack("mimic"), stage, 1)[0]) == 12


def test_noise_is_as_long_as_a_gradient_and_new_every_round():
    stage = Stage()
    first, second = play(build_attack("gaussian"), stage, 2)
    typical = float(stage.honest(1).norm(dim=1).median())
    assert float(first.norm(dim=1).mean()) == pytest.approx(typical, rel=0.1)
    assert abs(cosine(first[0], first[1])) < 0.1
    assert abs(cosine(first[0], second[0])) < 0.1


def test_min_max_reaches_as_far_as_honest_rows_are_apart():
    stage = Stage()
    (sent,) = play(build_attack("min_max"), stage, 1)
    honest = stage.honest(1)
    limit = float(torch.cdist(honest, honest).max())
    assert float((honest - sent.mean(0)).norm(dim=1).max()) == pytest.approx(limit, rel=0.03)


def test_values_that_are_none():
    (zero,), (tiny,) = play(build_attack("zero"), Stage(), 1), play(build_attack("denormal"), Stage(), 1)
    assert float(zero.norm()) < 1e-29
    assert float(tiny.abs().max()) < 2.0**-126
    assert bool((tiny != 0).all())


def test_copies_of_an_honest_answer_are_bit_by_bit():
    stage = Stage()
    (sent,) = play(build_attack("copy"), stage, 1)
    assert torch.equal(sent, stage.honest(1)[:3])
    (noisy,) = play(build_attack("copy_noise"), stage, 1)
    assert float((noisy - sent).norm() / sent.norm()) == pytest.approx(0.01, rel=0.1)


def test_a_copier_is_refused_where_its_original_came_first():
    stage = Stage(h=3)
    view = stage.view(1)
    honest = stage.honest(1)
    originals = [
        Submission(r.header, memoryview(row.numpy()).cast("B"), r.codec, r.parent)
        for r, row in zip(build_attack("copy")(view), honest, strict=True)
    ]
    twice = moved(view, orders=(*view.orders, *view.orders))
    verdicts = judged(twice, [*originals, *build_attack("copy")(view)])
    assert verdicts == [None] * 3 + [Reason.DUPLICATE] * 3


def test_shapes_of_the_wire_do_not_depend_on_gradients():
    stage = Stage()
    for name in ("oversize", "wrong_names", "wrong_shapes", "wrong_dtypes", "stale", "nan", "zero", "late"):
        build_attack(name)(moved(stage.view(1), honest=lambda: pytest.fail("computed for nothing")))
    assert stage.asked == []


def test_an_old_answer_names_the_round_before():
    attack, stage = build_attack("stale"), Stage()
    attack(stage.view(1))
    (reply, *_) = attack(stage.view(2))
    assert isinstance(reply, Submission)
    assert reply.parent == stage.view(1).orders[0].parent


def test_every_row_of_a_reply_has_memory_of_its_own():
    sent = rows(build_attack("sign_flip")(Stage().view(1)))
    assert len({bytes(row.numpy().tobytes()) for row in sent}) == 3


OWN = "tests.simulate.own_attacks:"


def test_a_function_of_plain_tensors_is_an_attack():
    stage = Stage()
    kept = stage.honest(1)
    sent = rows(build_attack(OWN + "flipped")(moved(stage.view(1), honest=lambda: kept)))
    torch.testing.assert_close(sent, -stage.honest(1).mean(0).expand(3, -1))
    assert torch.equal(kept, stage.honest(1))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("too_few", f"returned shape (0, {D}), expected (3, {D})"),
        ("raises", "ValueError: no"),
        ("nothing", "AttributeError: 'NoneType' object has no attribute 'detach'"),
    ],
)
def test_a_function_that_fails_ends_the_simulation_with_one_line(name, said):
    with pytest.raises(SetupError) as caught:
        build_attack(OWN + name)(Stage().view(1))
    assert str(caught.value) == f"--attack {OWN}{name}: {said}"


def test_what_is_no_function_is_bad_usage():
    with pytest.raises(UsageError, match="own_attacks:NUMBER: TypeError: expected a function"):
        build_attack(OWN + "NUMBER")
