"""Attacks that compute, remember or wait."""

import numpy as np
import pytest
import torch

from fedgpt2.config import Limits
from fedgpt2.simulate.attacks.multi_round import ScoreAware
from fedgpt2.simulate.attacks.registry import build_attack
from tests.simulate.stage import SHAPE, Stage, cosine, moved, play, rows


def own(stage: Stage, number: int, miner: int) -> torch.Tensor:
    """A hostile miner's honest gradient of a round."""
    return stage.gradient(stage.weights(number), stage.windows(miner))


def test_the_first_gradient_for_ever():
    stage = Stage()
    sent = play(build_attack("constant_replay"), stage, 3)
    assert torch.equal(sent[0][1], own(stage, 1, 1))
    assert torch.equal(sent[2], sent[0])


def test_the_first_gradient_is_each_ones_own_whoever_else_is_there():
    stage, attack = Stage(), build_attack("constant_replay")
    views = [stage.view(number) for number in (1, 2, 3)]
    sent = [rows(attack(moved(views[0], orders=views[0].orders[:2]))), rows(attack(views[1])), rows(attack(views[2]))]
    assert torch.equal(sent[1], torch.stack([*sent[0], own(stage, 2, 2)]))
    assert torch.equal(sent[2], sent[1])


def test_hidden_staleness_uses_weights_of_up_to_ten_rounds_ago():
    stage = Stage()
    play(build_attack("stale_hidden"), stage, 13)
    used = [stage.asked[3 * i][0] for i in range(13)]
    ages = [
        next(age for age in range(number + 1) if torch.equal(weights, stage.weights(number - age)))
        for number, weights in enumerate(used, 1)
    ]
    assert ages == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2]


def test_sybils_compute_once():
    stage = Stage()
    (sent,) = play(build_attack("sybils"), stage, 1)
    assert len(stage.asked) == 1
    assert torch.equal(sent[0], sent[2])
    assert torch.equal(sent[0], own(stage, 1, 0))


def test_sybils_apart_send_one_gradient_behind_noise_of_their_own():
    stage = Stage()
    (sent,) = play(build_attack("sybils_apart"), stage, 1)
    assert len(stage.asked) == 1
    row = own(stage, 1, 0)
    assert [float((each - row).norm() / row.norm()) for each in sent] == pytest.approx([0.25] * 3, rel=0.05)
    assert cosine(sent[0] - row, sent[1] - row) == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize(("n", "length", "pool"), [(6, 17, (6, 17)), (2, 16, (3, 11)), (1, 2, (3, 2))])
def test_a_pool_of_sybils_computes_on_a_part_of_each_ones_text(n, length, pool):
    stage = Stage()
    texts = [np.full((n, length), i, np.uint16) for i in range(3)]
    (sent,) = [rows(build_attack("sybils_pool")(moved(stage.view(1), windows=lambda i: texts[i])))]
    ((_, asked),) = stage.asked
    assert asked.shape == pool
    assert sorted(set(asked[:, 0].tolist())) == [0, 1, 2]
    assert len(sent) == 3


def test_a_pool_takes_as_much_from_each_where_texts_are_unequal():
    stage = Stage()
    texts = [np.full((n, 17), i, np.uint16) for i, n in enumerate((6, 2, 7))]
    build_attack("sybils_pool")(moved(stage.view(1), windows=lambda i: texts[i]))
    ((_, asked),) = stage.asked
    assert asked.shape == (3, 11)


def test_split_sybils_do_one_miners_work_in_all():
    stage = Stage()
    texts = [np.full((6, 17), i, np.uint16) for i in range(3)]
    build_attack("sybils_split")(moved(stage.view(1), windows=lambda i: texts[i]))
    assert [(asked.shape, int(asked[0, 0])) for _, asked in stage.asked] == [((2, 17), i) for i in range(3)]


@pytest.mark.parametrize(
    ("n", "length", "shape"), [(16, 17, (2, 17)), (8, 17, (1, 17)), (2, 17, (1, 5)), (1, 5, (1, 2))]
)
def test_a_tiny_batch_is_an_eighth(n, length, shape):
    stage = Stage()
    windows = np.zeros((n, length), np.uint16)
    build_attack("tiny_batch")(moved(stage.view(1), windows=lambda i: windows))
    assert [asked.shape for _, asked in stage.asked] == [shape] * 3


def test_wrong_data_is_as_much_of_other_tokens():
    stage = Stage()
    play(build_attack("wrong_data"), stage, 1)
    tokens = [windows for _, windows in stage.asked]
    assert all(each.shape == (2, 17) and each.dtype == np.uint16 and each.max() < SHAPE.vocab_size for each in tokens)
    assert not np.array_equal(tokens[0], tokens[1])


def test_a_scaled_gradient_is_of_random_tokens_and_too_long_or_just_not():
    (wrong,) = play(build_attack("wrong_data"), Stage(), 1)
    (million,) = play(build_attack("scale"), Stage(), 1)
    assert torch.equal(million, 1e6 * wrong)
    assert float(million[0].norm()) > 1e5
    (most,) = play(build_attack("scale_bound"), Stage(), 1)
    assert most.norm(dim=1).tolist() == pytest.approx([0.999 * Limits().gradient_norm] * 3, rel=1e-5)
    assert torch.cosine_similarity(most, wrong, dim=1).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("source", ["update", "aggregate"])
def test_replays_are_honest_before_there_is_anything_to_replay(source):
    stage = Stage()
    (sent,) = play(build_attack(f"replay_{source}"), stage, 1)
    assert torch.equal(sent[2], own(stage, 1, 2))


def traces(stage: Stage, source: str, rounds: int) -> list[torch.Tensor]:
    """What there was to replay in rounds 2, 3, …, as gradients."""
    if source == "aggregate":
        return [stage.aggregate(number - 1) for number in range(2, rounds + 1)]
    return [stage.weights(number - 1) - stage.weights(number) for number in range(2, rounds + 1)]


@pytest.mark.parametrize("source", ["update", "aggregate"])
@pytest.mark.parametrize(("manner", "sign"), [("", 1.0), ("_negative", -1.0)])
def test_a_replay_is_the_last_step_as_long_as_a_gradient(source, manner, sign):
    stage = Stage()
    sent = play(build_attack(f"replay_{source}{manner}"), stage, 4)
    wanted = sign * traces(stage, source, 4)[-1]
    assert cosine(sent[3][0], wanted) == pytest.approx(1.0, abs=1e-6)
    assert cosine(sent[3][1], wanted) == pytest.approx(1.0, abs=1e-3)
    assert float(sent[3][0].norm()) == pytest.approx(float(stage.honest(4).norm(dim=1).median()), rel=1e-5)


@pytest.mark.parametrize("source", ["update", "aggregate"])
def test_a_replayed_sign_is_of_each_value(source):
    stage = Stage()
    sent = play(build_attack(f"replay_{source}_sign"), stage, 4)
    assert cosine(sent[3][0], traces(stage, source, 4)[-1].sign()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("source", ["update", "aggregate"])
def test_a_replayed_mean_forgets_slowly(source):
    stage = Stage()
    sent = play(build_attack(f"replay_{source}_mean"), stage, 4)
    first, second, third = traces(stage, source, 4)
    assert cosine(sent[3][0], 0.75**2 * first + 0.75 * 0.25 * second + 0.25 * third) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("source", ["update", "aggregate"])
@pytest.mark.parametrize("shape", ["", "_mean", "_sign"])
def test_a_replay_with_noise_is_half_noise(source, shape):
    stage = Stage()
    sent = play(build_attack(f"replay_{source}{shape}_noise"), stage, 2)[1]
    (wanted,) = traces(stage, source, 2)
    wanted = wanted.sign() if shape == "_sign" else wanted
    assert [cosine(row, wanted) for row in sent] == pytest.approx([0.5**0.5] * 3, abs=0.08)
    assert cosine(sent[0], sent[1]) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("source", ["update", "aggregate"])
@pytest.mark.parametrize("shape", ["", "_mean", "_sign"])
def test_a_padded_replay_is_half_a_scrap(source, shape):
    stage = Stage()
    sent = play(build_attack(f"replay_{source}{shape}_padded"), stage, 2)[1]
    (wanted,) = traces(stage, source, 2)
    wanted = wanted.sign() if shape == "_sign" else wanted
    weights, windows = stage.asked[-1]
    assert windows.shape == (1, 5)
    scrap = stage.gradient(weights, windows)
    assert torch.allclose(sent[2], scrap + wanted * (scrap.norm() / wanted.norm()), atol=1e-6)


def test_a_round_that_left_the_weights_is_no_news():
    stage, attack = Stage(), build_attack("replay_update")
    before = play(attack, stage, 2)[1]
    still = moved(stage.view(3), before=stage.weights(3))
    assert cosine(rows(attack(still))[0], before[0]) == pytest.approx(1.0, abs=1e-6)


def test_a_bias_that_never_turns_stays_where_honest_gradients_are():
    stage = Stage()
    sent = play(build_attack("time_coupled"), stage, 3)
    bias = -stage.honest(1).mean(0)
    for number, three in enumerate(sent, 1):
        honest = stage.honest(number)
        mean = honest.mean(0)
        spread = (honest - mean).norm(dim=1)
        reach = (three - mean).norm(dim=1)
        assert reach.tolist() == pytest.approx([float(spread.median())] * 3, rel=0.05)
        assert cosine(three.mean(0) - mean, bias) > 0.95


class Watched:
    """When `score_aware` is honest, given its weight."""

    def __init__(self, share: float) -> None:
        self.stage, self.attack, self.share = Stage(), ScoreAware(), share

    def honest(self, number: int) -> bool:
        """Whether it sends its own gradients in a round."""
        sent = rows(self.attack(self.stage.view(number, [self.share] * 3)))
        return torch.equal(sent[0], own(self.stage, number, 0))


def test_who_waits_for_its_weight_attacks_in_bursts():
    watched = Watched(1 / 12)
    said = "".join("h" if watched.honest(number) else "A" for number in range(1, 17))
    assert said.startswith("hhhhAA")
    assert set(said.strip("h").split("h")) <= {"AA", ""}
    assert all(len(honest) >= 3 for honest in said.split("AA")[:-1])


def test_who_has_no_weight_never_attacks():
    watched = Watched(0.02)
    assert all(watched.honest(number) for number in range(1, 12))


def test_its_attack_is_a_flipped_sign():
    watched = Watched(1 / 12)
    number = next(number for number in range(1, 10) if not watched.honest(number))
    sent = rows(watched.attack(watched.stage.view(number + 1)))
    assert cosine(sent.mean(0), -watched.stage.honest(number + 1).mean(0)) > 0.95
