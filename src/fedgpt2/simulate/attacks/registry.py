"""The attacks by name, with what each sends and its source; a new one is a `register` line.

`--attack package.module:function` names a user's own function, `attack(honest [h, d], f) -> hostile [f, d]`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fedgpt2.errors import PeerError, SetupError
from fedgpt2.registry import Registry, plugin_errors
from fedgpt2.simulate.attacks import formulas, malformed
from fedgpt2.simulate.attacks import low_effort as effort
from fedgpt2.simulate.attacks.base import Attack, RoundView, Submission
from fedgpt2.simulate.attacks.buffers import seal
from fedgpt2.simulate.attacks.from_gradients import Copies, Noise, SameRow, opt_alie, opt_ipm
from fedgpt2.simulate.attacks.low_effort import Each, SybilsApart
from fedgpt2.simulate.attacks.malformed import Headers, Late, Values, fill_denormal, fill_one
from fedgpt2.simulate.attacks.multi_round import ScoreAware, TimeCoupled
from fedgpt2.simulate.attacks.replays import REPLAYS, Replay

__all__ = ["ADAPTIVE", "ALONE", "ATTACKS", "FLAG", "NAMES", "SYBILS", "Entry", "build_attack"]

FLAG = "--attack"


@dataclass(frozen=True)
class Entry:
    """An attack: how to build it, what it sends, and where it is from (a paper, or "here")."""

    build: Callable[[], Attack]
    about: str
    source: str = "here"
    adaptive: bool = False  # it depends on the rule, or on the result of earlier rounds
    colluding: bool = False  # it needs other miners' gradients, or several hotkeys
    sybil: bool = False  # one miner's work sent under several hotkeys

    @property
    def alone(self) -> bool:
        """Whether a miner that knows no other can do it."""
        return not (self.colluding or self.sybil)


@dataclass(frozen=True)
class PlainAttack:
    """A user's function of plain tensors as an attack."""

    name: str
    function: Callable[[Tensor, int], Tensor]

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The function's rows, one per hostile miner. Raises SetupError, one line, where it fails."""
        honest = view.honest().clone()
        with plugin_errors(self._failure):
            hostile = self.function(honest, view.f).detach().float().contiguous()
        if hostile.shape != (view.f, honest.shape[1]):
            raise self._failure(f"returned shape {tuple(hostile.shape)}, expected {(view.f, honest.shape[1])}")
        return [seal(order, row) for order, row in zip(view.orders, hostile, strict=True)]

    def _failure(self, what: str) -> SetupError:
        return SetupError(f"{FLAG} {self.name}: {what}")


def _adapt(name: str, loaded: object) -> Entry:
    if not callable(loaded):
        raise TypeError("expected a function (honest, f) -> hostile")
    return Entry(lambda: PlainAttack(name, loaded), "a user's own function")


_RSA = "Li et al. 2019, arXiv 1811.03761"
_IPM = "Xie et al. 2019, arXiv 1903.03936"
_ALIE = "Baruch et al. 2019, arXiv 1902.06156"
_BYZFL = "González et al. 2025, arXiv 2505.24802"
_MIN_MAX = "Shejwalkar, Houmansadr, NDSS 2021"
_MIMIC = "Karimireddy et al. 2022, arXiv 2006.09365"
_HISTORY = "after Karimireddy et al. 2021, arXiv 2012.10333"
_FREE_RIDER = "after Lin et al. 2019, arXiv 1911.12560"

ATTACKS: Registry[Entry] = Registry("attack", _adapt)


def _add(name: str, build: Callable[[], Attack], about: str, source: str = "here", **kind: bool) -> None:
    ATTACKS.register(name, Entry(build, about, source, **kind))


# rows made of the honest gradients; each has noise enough for a vote of its own unless it says "one vote"
_add("sign_flip", partial(SameRow, formulas.sign_flip), "minus the honest mean, h/f + 1 times as long", _RSA)
_add("sign_flip_1", partial(SameRow, formulas.minus_mean), "minus the honest mean, as long as it is", _RSA)
_add("sign_flip_copies", partial(SameRow, formulas.minus_mean, alike=True), "the same, one vote", _RSA, colluding=True)
_add("ipm", partial(SameRow, formulas.ipm), "-0.5 times the honest mean: too near for distances to exclude", _IPM)
_add(
    "ipm_100",
    partial(SameRow, partial(formulas.ipm, strength=100.0)),
    "-100 times the honest mean: turns any mean",
    _IPM,
)
_add("alie", partial(SameRow, formulas.alie), "the mean plus z_max standard deviations of each coordinate", _ALIE)
_add("mimic", partial(SameRow, formulas.mimic), "the honest gradient that is furthest out", _MIMIC, colluding=True)
_add("mimic_copies", partial(SameRow, formulas.mimic, alike=True), "the same, one vote", _MIMIC, colluding=True)
_add("gaussian", Noise, "noise as long as an honest gradient", _BYZFL)
_add("opt_ipm", opt_ipm, "ipm of the most harmful of 20 strengths tried on the rule", _BYZFL, adaptive=True)
_add("opt_alie", opt_alie, "alie of the most harmful of 20 strengths and signs", _BYZFL, adaptive=True)
_add(
    "min_max", partial(SameRow, formulas.min_max), "mean minus std, within the honest diameter", _MIN_MAX, adaptive=True
)
# invalid or useless values
_add("zero", partial(Values, fill_one(1e-30)), "almost zero: a free rider")
_add("scale", partial(Each, effort.scaled), "the gradient of random tokens, a million times as long")
_add("scale_bound", partial(Each, effort.scaled_to_bound), "the same, just below the default --limits.gradient_norm")
_add("nan", partial(Values, fill_one(float("nan"))), "one NaN")
_add("inf", partial(Values, fill_one(float("inf"))), "one infinity")
_add("denormal", partial(Values, fill_denormal), "denormal numbers, on which arithmetic is slow")
# old work
_add("stale", malformed.Stale, "a contribution that names the weights of the round before")
_add("stale_hidden", effort.HiddenStale, "a gradient at weights up to ten rounds old, sent as a fresh one")
_add("constant_replay", effort.ConstantReplay, "its own first gradient, every round")
for _name, _what, _about in REPLAYS:
    _add(_name, partial(Replay, *_what), _about, _FREE_RIDER)
# copied work, too little work, other work
_add("copy", Copies, "an honest miner's gradient, bit by bit", colluding=True)
_add("copy_noise", partial(Copies, 0.01), "an honest miner's gradient with 1 % noise", colluding=True)
_add("sybils", effort.Sybils, "one honest gradient from all of them", sybil=True)
_add("sybils_apart", partial(SybilsApart, effort.first_gradient), "the same, with a vote each", sybil=True)
_add("sybils_pool", partial(SybilsApart, effort.pooled_gradient), "one over 1/f of each one's text", sybil=True)
_add("sybils_split", partial(Each, effort.split_work), "from each, a gradient over 1/f of its own text", sybil=True)
_add("tiny_batch", partial(Each, effort.tiny_batch), "an honest gradient over an eighth of the assigned text")
_add("wrong_data", partial(Each, effort.random_tokens), "the gradient of random tokens")
# plans over many rounds
_add("time_coupled", TimeCoupled, "the honest mean plus the same bias every round", _HISTORY, adaptive=True)
_add("score_aware", ScoreAware, "honest until trusted, then sign_flip for two rounds, and again", adaptive=True)
# invalid messages
_add("slow_drip", partial(Late, "the contribution was incomplete at the deadline"), "a transfer that never completes")
_add("late", partial(Late, "no contribution by the deadline"), "nothing by the deadline")
_add("oversize", malformed.Oversize, "a body longer than the order allows")
_add("wrong_names", partial(Headers, malformed.wrong_names), "a tensor under another name")
_add("wrong_shapes", partial(Headers, malformed.wrong_shapes), "a transposed tensor")
_add("wrong_dtypes", partial(Headers, malformed.wrong_dtypes), "integers of the same size")

NAMES = ATTACKS.names
ADAPTIVE = tuple(name for name in NAMES if ATTACKS[name].adaptive)
ALONE = tuple(name for name in NAMES if ATTACKS[name].alone)
SYBILS = frozenset(name for name in NAMES if ATTACKS[name].sybil)


def build_attack(name: str) -> Attack:
    """The attack called `name`, before its first round. Raises UsageError, one line."""
    return ATTACKS.get(name, FLAG).build()
