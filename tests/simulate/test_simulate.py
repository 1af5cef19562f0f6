"""Whole simulations: the same round as a validator's, deterministic, and as good as one big batch."""

import asyncio
import json
import textwrap
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgpt2.config import PRESETS
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import NoMinersError, Reason, Refused, SetupError, UsageError
from fedgpt2.event_loop import Stop
from fedgpt2.gradient.exact import Exact
from fedgpt2.identity.keys import is_hotkey
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.state import FlatState
from fedgpt2.observe.board import Board, Recorder
from fedgpt2.simulate import honest_miners as crowd
from fedgpt2.simulate import program
from fedgpt2.simulate.attacks.base import Submission
from fedgpt2.simulate.attacks.buffers import seal
from fedgpt2.simulate.program import run_simulation, simulate
from fedgpt2.storage import checkpoints as checkpoints
from fedgpt2.validator import program as validator_program
from fedgpt2.validator import round as validator_round
from fedgpt2.validator import training_loop as validator_rounds

SGD = {"name": "sgd", "lr": 0.3, "min_lr": 0.3, "warmup": 0, "clip": 0.0}
MEAN = {"rule": "mean", "gate": False}
KEYS = {"settings", "val_loss", "final_val_loss", "unigram_loss", "miners", "rounds"}
MINER = {"hotkey", "hostile", "rank", "rating", "weight", "pay"}
ROUND = {"round", "applied", "reason", "train_loss", "val_loss", "hostile_share", "cosine", "seconds"}


def timeless(result):
    """The document without its seconds, as JSON."""
    document = result.document()
    return json.dumps({**document, "rounds": [{**row, "seconds": 0} for row in document["rounds"]]}, allow_nan=False)


class Told:
    """Liars who send what `reply(scene, i)` says, and keep their scenes."""

    def __init__(self, reply):
        self.reply = reply
        self.scenes = []

    def __call__(self, scene):
        self.scenes.append(scene)
        return [self.reply(scene, i) for i in range(scene.f)]


def lie(small, reply, **changes):
    """A simulation of `reply`; its result and the liars."""
    told = Told(reply)
    return simulate(small(**{"byzantine": 1, **changes}), attack=lambda: told), told


def minus_the_mean(scene, i):
    return seal(scene.orders[i], -scene.honest().mean(0) * (1 + 0.1 * i))


def test_the_round_is_the_validators_own():
    assert program.run_rounds is validator_rounds.run_rounds is validator_program.run_rounds
    assert validator_rounds.train_round is validator_round.train_round
    assert validator_rounds.finish_round is validator_round.finish_round
    assert program.build_context is validator_program.build_context


def test_the_document_has_the_names_of_the_design(small):
    document = simulate(small(byzantine=1)).document()
    assert set(document) == KEYS
    assert document["settings"] == asdict(small(byzantine=1))
    assert [set(row) for row in document["rounds"]] == [ROUND] * 2
    assert [set(miner) for miner in document["miners"]] == [MINER] * 4
    assert sorted(miner["rank"] for miner in document["miners"]) == [1, 2, 3, 4]
    assert all(miner["rating"] is not None for miner in document["miners"])
    assert document["val_loss"] == [row["val_loss"] for row in document["rounds"]]
    assert document["final_val_loss"] == document["val_loss"][-1]
    assert all(is_hotkey(miner["hotkey"]) for miner in document["miners"])
    assert all(row["cosine"] > 0.9 and row["hostile_share"] == 0.0 for row in document["rounds"])


@pytest.mark.parametrize("attack", ["none", "sign_flip"])
def test_a_seed_decides_everything(small, attack):
    config = small(attack=attack, byzantine=1)
    first, again = simulate(config), simulate(config)
    other = simulate(replace(config, run=replace(config.run, seed=2)))
    assert timeless(first) == timeless(again)
    assert first.val_loss != other.val_loss
    assert {m.hotkey for m in first.miners} != {m.hotkey for m in other.miners}


def test_which_miners_are_hostile_is_drawn(small):
    drawn = [
        [m.hostile for m in simulate(small(attack="late", byzantine=2, rounds=1, run={"seed": seed})).miners]
        for seed in range(3)
    ]
    assert all(sum(hostile) == 2 for hostile in drawn)
    assert len(set(map(tuple, drawn))) > 1


def test_miners_at_one_step_are_one_big_batch(small, tmp_path):
    config = small(rounds=5, optimizer=SGD, aggregation=MEAN, run={"dir": str(tmp_path / "run"), "eval_every": 9})
    assert simulate(config).finished
    shape = PRESETS["tiny"]
    name = checkpoints.checkpoint_name(5)
    kept = checkpoints.load(tmp_path / "run" / "checkpoints", name, shape.schema(), None).model
    weights = initialise(shape, config.run.seed)
    before = weights.clone()
    _big_batch(config, weights)
    apart = max(float((kept[name] - view).abs().max()) for name, view in weights.views.items())
    assert apart <= 1e-6
    assert float((weights.flat - before.flat).abs().max()) > 0.01


def _big_batch(config, weights):
    """Plain gradient descent over all miners' windows at once."""
    corpus = Corpus.open(config.data, 64, config.run.seed)
    gradient = FlatState(weights.schema)
    for number in range(1, config.rounds + 1):
        windows = [corpus.windows(corpus.assign(number, slot, config.data.windows)) for slot in range(config.miners)]
        Exact(64, "fp32")(
            GPT2(config.model.shape, weights), np.concatenate(windows), out=gradient, stop=threading.Event()
        )
        weights.flat.sub_(gradient.flat, alpha=0.3)
    corpus.close()


@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_both_codecs_learn(small, codec):
    result = simulate(small(rounds=6, codec={"state": codec, "gradient": codec}, optimizer={"warmup": 0, "lr": 1e-2}))
    assert result.val_loss[-1] < result.val_loss[0] - 0.05


def test_without_the_hostile_the_honest_train_on_the_same_text(small):
    windows = {"absent": {}, "late": {}}
    for attack, seen in windows.items():

        def note(task, seen=seen):
            seen[task.order.receiver] = task.windows
            return crowd.as_asked(task)

        simulate(small(attack=attack, byzantine=2, rounds=1), behaviours=dict.fromkeys(range(4), note))
    assert len(windows["late"]) == 2
    for hotkey, kept in windows["absent"].items():
        assert np.array_equal(kept, windows["late"][hotkey])


def test_absent_miners_are_not_asked_and_none_are_honest(small):
    absent = simulate(small(attack="absent", byzantine=2))
    assert sorted(m.weight > 0 for m in absent.miners) == [False, False, True, True]
    assert sum(len(a.statuses) for a in absent.board.miners.values()) == 2
    honest = simulate(small(attack="none", byzantine=2))
    assert all(m.weight > 0 and not m.hostile for m in honest.miners)


# --- what liars are shown, and what becomes of what they send ---


def test_the_scene_is_the_round(small):
    result, told = lie(small, minus_the_mean, byzantine=2, aggregation=MEAN, miners=5)
    first, second = told.scenes
    assert (first.round, second.round, first.f) == (1, 2, 2)
    assert [o.receiver for o in first.orders] == [o.receiver for o in second.orders]
    assert {o.receiver for o in first.orders} == {m.hotkey for m in result.miners if m.hostile}
    assert first.before is None
    assert first.aggregate is None
    assert first.shares == (0.0, 0.0)
    assert second.shares == pytest.approx((0.2, 0.2))
    assert torch.equal(second.honest(), second.honest())
    assert second.honest().shape == (3, second.weights.numel())
    assert second.windows(1).shape == (2, 33)
    assert second.pipeline is None
    rows = torch.randn(3, 7)
    assert torch.equal(second.defence(rows, 1), rows.mean(0))
    assert [row.hostile_share for row in result.rounds] == pytest.approx([0.4, 0.4])


def test_liars_know_the_weights_before_and_the_aggregate_as_it_was_formed(small):
    kept = []

    def reply(scene, i):
        before, formed = (None if t is None else t.clone() for t in (scene.before, scene.aggregate))
        kept.append((scene.weights.clone(), before, formed))
        return seal(scene.orders[i], scene.honest()[0] * 0.5)

    lie(small, reply, optimizer={**SGD, "clip": 1e-3}, aggregation=MEAN)
    (start, _, _), (moved, before, formed) = kept
    assert torch.equal(before, start)
    step = (start - moved) / 0.3
    assert float(step.norm()) == pytest.approx(1e-3, rel=1e-3)
    assert float(formed.norm()) > 0.1
    assert float(torch.nn.functional.cosine_similarity(step, formed, dim=0)) == pytest.approx(1.0, abs=1e-4)


def test_the_defence_is_the_runs_own_rule(small):
    _, told = lie(small, minus_the_mean, miners=5, rounds=1, aggregation={"rule": "median"})
    rows = torch.randn(5, 9)
    assert torch.equal(told.scenes[0].defence(rows, 1), rows.median(0).values)
    assert told.scenes[0].pipeline is not None


def test_liars_can_compute_at_any_weights_on_any_windows(small):
    found = []

    def reply(scene, i):
        found.append(
            (scene.gradient(scene.weights, scene.windows(i)), scene.gradient(scene.weights * 0.5, scene.windows(i)))
        )
        return seal(scene.orders[i], found[-1][0])

    result, _ = lie(small, reply, rounds=1, aggregation=MEAN)
    assert not torch.equal(*found[0])
    assert result.rounds[0].hostile_share == pytest.approx(0.25)  # an honest answer as any other


def test_the_honest_gradients_are_copied_for_nobody(small, monkeypatch):
    asked = []
    gradients = crowd.HonestMiners.gradients
    monkeypatch.setattr(crowd.HonestMiners, "gradients", lambda self: asked.append(1) or gradients(self))
    late = Refused(Reason.LATE, "no answer by the deadline")
    lie(small, lambda scene, i: late, rounds=1)
    assert not asked
    storages = []
    lie(small, lambda scene, i: storages.append(scene.honest().untyped_storage().data_ptr()) or late)
    assert len(set(storages)) == 1


REFUSALS = {
    "NaN": (lambda scene, i: seal(scene.orders[i], scene.weights * float("nan")), "refused", "non_finite"),
    "stale": (lambda scene, i: replace(minus_the_mean(scene, i), parent="0" * 64), "refused", "wrong_parent"),
    "oversize": (
        lambda scene, i: replace(minus_the_mean(scene, i), data=memoryview(bytearray(1 << 23))),
        "refused",
        "too_large",
    ),
    "wrong shape": (
        lambda scene, i: replace(
            minus_the_mean(scene, i),
            header=minus_the_mean(scene, i).header.replace(b"[50257,16]", b"[16,50257]"),
        ),
        "refused",
        "wrong_shape",
    ),
    "not offered": (lambda scene, i: replace(minus_the_mean(scene, i), codec="int8"), "refused", "unsupported_codec"),
    "a copy": (lambda scene, i: seal(scene.orders[i], scene.honest()[0].clone()), "refused", "duplicate"),
    "late": (lambda scene, i: Refused(Reason.LATE, "no answer by the deadline"), "failed", "late"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_lie_that_admission_knows_is_refused_for_what_it_is(small, case):
    reply, status, reason = REFUSALS[case]
    result, told = lie(small, reply, rounds=1)
    (account,) = [a for a in result.board.miners.values() if a.hotkey == told.scenes[0].orders[0].receiver]
    assert (dict(account.statuses), dict(account.reasons)) == ({status: 1}, {reason: 1})
    assert result.rounds[0].hostile_share == 0.0


def test_a_reply_may_be_memory_nobody_may_write_to(small):
    def reply(scene, i):
        sent = minus_the_mean(scene, i)
        return Submission(sent.header, memoryview(bytes(sent.data)), sent.codec, sent.parent)

    result, _ = lie(small, reply, rounds=1, aggregation=MEAN)
    assert result.rounds[0].hostile_share == pytest.approx(0.25)


# --- honest miners that do otherwise ---


def test_a_behaviour_takes_the_place_of_one_miners_gradient(small):
    tasks, plain = [], simulate(small(rounds=1))

    def half(task):
        tasks.append(task)
        return task.gradient(task.weights, task.windows[:1])

    result = simulate(small(rounds=1), behaviours={2: half})
    (task,) = tasks
    assert (task.round, task.windows.shape) == (1, (2, 33))
    assert result.final_val_loss != plain.final_val_loss
    assert simulate(small(rounds=1), behaviours={2: crowd.as_asked}).final_val_loss == plain.final_val_loss


def test_a_behaviour_may_send_what_it_likes_or_nothing(small):
    def now_and_then(task):
        return None if task.round == 1 else torch.randn(task.weights.shape, generator=task.rng) * 1e-3

    result = simulate(small(miners=5), behaviours={0: now_and_then})
    account = result.board.miners["miner-0"]
    assert dict(account.statuses) == {"failed": 1, "admitted": 1}
    assert dict(account.reasons) == {"unreachable": 1}
    assert all(row.cosine is not None for row in result.rounds)


def test_a_loss_that_is_no_number_is_no_answer(small):
    def broken(task):
        return task.gradient(task.weights * float("inf"), task.windows)

    result = simulate(small(rounds=1), behaviours={1: broken})
    assert dict(result.board.miners["miner-1"].reasons) == {"compute_failed": 1}


def test_a_quorum_is_met_by_others_every_round(small):
    result = simulate(small(rounds=4, round={"quorum": 0.5}, aggregation={"rule": "mean"}))
    accounts = result.board.miners.values()
    assert sum(a.statuses["admitted"] for a in accounts) == 8
    assert sum(a.reasons["cancelled"] for a in accounts) == 8
    assert len([a for a in accounts if a.statuses["admitted"]]) > 2


# --- limits ---


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"attack": "nonsense", "byzantine": 1}, "--attack nonsense: no such attack; one of none, absent, sign_flip, "),
        ({"byzantine": 4}, "--byzantine 4: fewer than --miners 4, or nobody is honest"),
        ({"attack": "sign_flip"}, "--attack sign_flip: --byzantine says how many of the miners it is; at least 1"),
        ({"aggregation": {"rule": "vote"}}, "--aggregation.rule vote: no such rule"),
        ({"codec": {"gradient": "int8"}}, "--codec.gradient int8: no such codec"),
        ({"model": {"preset": "giant"}}, "--model.preset giant: no such preset"),
        ({"gradient": {"strategy": "guess"}}, "--gradient.strategy guess: no such strategy; one of"),
        ({"data": {"seq_len": 65}}, "--data.seq_len 65: tiny reads 64 tokens"),
    ],
)
def test_settings_that_make_no_run_are_one_line(small, changes, line):
    with pytest.raises(UsageError) as caught:
        simulate(small(**changes))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_something_is_left_alone(small, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty, and no simulation of --run\.seed 1337"):
        simulate(small(run={"dir": str(tmp_path)}))
    (tmp_path / "config.json").write_text('{"run_id": "0123"}')
    with pytest.raises(UsageError, match="choose a new folder"):
        simulate(small(run={"dir": str(tmp_path)}))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_simulation_goes_on_where_it_ended(small, tmp_path):
    """As if there had been no end: the schedule, the text, the windows it is scored on are those of the whole."""
    schedule = {"horizon": 4}
    whole = simulate(small(rounds=4, optimizer=schedule, run={"dir": str(tmp_path / "whole")}))
    parts = [
        simulate(small(rounds=rounds, optimizer=schedule, run={"dir": str(tmp_path / "parts")})) for rounds in (2, 4)
    ]
    assert [row.round for row in parts[1].rounds] == [1, 2, 3, 4]
    assert parts[1].val_loss == whole.val_loss
    assert parts[1].miners == whole.miners
    assert [row.cosine is None for row in parts[1].rounds] == [True, True, False, False]
    with pytest.raises(UsageError, match=r"no simulation of --run\.seed 7"):
        simulate(small(rounds=6, run={"dir": str(tmp_path / "parts"), "seed": 7}))


def test_a_simulation_that_is_over_is_reported_whole_again(small, tmp_path):
    once, again = (simulate(small(run={"dir": str(tmp_path)})) for _ in range(2))
    assert again.final_val_loss == once.final_val_loss is not None
    assert (again.miners, again.board) == (once.miners, replace(once.board, start=again.board.start))
    assert again.rounds == tuple(replace(row, cosine=None) for row in once.rounds)


def test_more_miners_wanted_than_take_part(small):
    with pytest.raises(NoMinersError, match=r"4 miners take part, --round\.min_miners is 5"):
        simulate(small(round={"min_miners": 5}))


def test_a_training_that_diverges_says_so(small):
    with pytest.raises(SetupError, match="training has diverged"):
        simulate(small(rounds=3, optimizer={**SGD, "lr": 1e9, "min_lr": 1e9}, aggregation=MEAN))


@pytest.mark.parametrize("attack", ["copy", "gaussian", "replay_aggregate", "time_coupled"])
def test_liars_who_look_at_honest_gradients_have_none_to_look_at_then(small, attack):
    config = small(
        byzantine=1,
        attack=attack,
        optimizer={**SGD, "lr": 1e30, "min_lr": 1e30},
        aggregation=MEAN,
        run={"eval_every": 9},
    )
    with pytest.raises(SetupError, match="training has diverged"):
        simulate(config)


def test_fifty_miners_each_have_text_of_their_own(small):
    text = {"source": "sample", "windows": 1}
    result = simulate(small(miners=50, byzantine=12, attack="nan", rounds=1, data=text))
    fates = [status for account in result.board.miners.values() for status in account.statuses]
    assert (fates.count("admitted"), fates.count("refused")) == (38, 12)
    assert (result.rounds[0].hostile_share, result.rounds[0].cosine) == (0.0, pytest.approx(1.0, abs=0.1))


def test_the_embedded_corpus_has_a_page_for_each_of_a_thousand():
    source = program.open_source(replace(program.SimulationConfig().data))
    assert program._enough_pages(source, 128) is source
    finer = program._enough_pages(source, 3000)
    assert finer.pools[program.Pool.ASSIGN] >= 3000
    assert sum(map(len, finer.texts.values())) == sum(map(len, source.texts.values()))


async def test_told_to_stop_it_ends_soon_with_what_there_is(small):
    stop, began = Stop(), threading.Event()

    def slow(task):
        if task.round == 2:
            began.set()
            while True:
                task.gradient(task.weights, task.windows)  # until it is called off
        return task.gradient(task.weights, task.windows)

    running = asyncio.create_task(run_simulation(small(rounds=9), stop, Recorder(Board()), behaviours={1: slow}))
    assert await asyncio.to_thread(began.wait, 30)
    stop.set()
    result = await asyncio.wait_for(running, 5)
    assert not result.finished
    assert [row.round for row in result.rounds] == [1]


async def test_told_to_stop_while_it_reads_what_was_before(small, monkeypatch):
    stop, began, release = Stop(), threading.Event(), threading.Event()

    def long(*parts):
        began.set()
        release.wait(30)

    monkeypatch.setattr(program, "build_context", long)
    running = asyncio.create_task(run_simulation(small(), stop, Recorder(Board())))
    assert await asyncio.to_thread(began.wait, 30)
    stop.set()
    result = await asyncio.wait_for(running, 5)
    release.set()
    assert (result.finished, result.rounds) == (False, ())


async def test_told_to_stop_before_it_began(small):
    stop = Stop()
    stop.set()
    result = await run_simulation(small(), stop, Recorder(Board()))
    assert (result.finished, result.rounds, result.final_val_loss) == (False, (), None)


async def test_inside_an_event_loop_it_says_what_to_do_and_that_works(small):
    with pytest.raises(UsageError, match=r"inside an event loop.*await run_simulation"):
        simulate(small())
    result = await run_simulation(small(rounds=1))
    assert len(result.rounds) == 1


def test_the_behaviours_of_the_document_work(small):
    text = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
    code = textwrap.dedent(
        text[text.index("    def half(") : text.index("    simulate(SimulationConfig(miners=6), beh")]
    )
    names = {}
    exec(code, names)  # noqa: S102
    behaviours = {0: names["half"], 1: names["now_and_then"], 2: names["Stale"]()}
    result = simulate(small(miners=6), behaviours=behaviours)
    assert dict(result.board.miners["miner-1"].statuses) == {"admitted": 1, "failed": 1}
    assert dict(result.board.miners["miner-2"].statuses) == {"admitted": 2}


def test_liars_who_sat_out_know_the_weights_of_the_round_before(small):
    weights, rounds = {}, {}

    def note(task):
        weights[task.round] = task.weights.clone()
        return crowd.as_asked(task)

    def late(scene, i):
        rounds[scene.round] = None if scene.before is None else scene.before.clone()
        return Refused(Reason.LATE, "no answer by the deadline")

    config = small(miners=5, byzantine=1, rounds=6, data={"windows": 1})
    simulate(config, attack=lambda: Told(late), behaviours=dict.fromkeys(range(5), note))
    assert list(rounds) == [1, 2, 6]  # whoever is late again sits out
    assert torch.equal(rounds[6], weights[5])
