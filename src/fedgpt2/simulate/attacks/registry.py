"""The attacks, each a factory of liars who remember; what each does is told in `names`."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from fedgpt2.errors import UsageError
from fedgpt2.simulate.attacks import low_effort as effort
from fedgpt2.simulate.attacks.base import Attack
from fedgpt2.simulate.attacks.from_gradients import AIMS, Copies, Noise, Together, opt_alie, opt_ipm
from fedgpt2.simulate.attacks.malformed import HEADERS, VALUES, Headers, Late, Oversize, Stale, Values
from fedgpt2.simulate.attacks.multi_round import ScoreAware, TimeCoupled
from fedgpt2.simulate.attacks.names import NAMES
from fedgpt2.simulate.attacks.replays import REPLAYS, Replay

__all__ = ["ARENA", "liars"]

_FACTORIES: dict[str, Callable[[], Attack]] = {
    **{name: partial(Together, aim) for name, aim in AIMS.items()},
    "sign_flip_copies": partial(Together, AIMS["sign_flip_1"], alike=True),
    "mimic_copies": partial(Together, AIMS["mimic"], alike=True),
    "gaussian": Noise,
    "opt_ipm": opt_ipm,
    "opt_alie": opt_alie,
    **{name: partial(Values, fill) for name, fill in VALUES.items()},
    "scale": partial(effort.Working, effort.scaled),
    "scale_bound": partial(effort.Working, effort.bound),
    "stale": Stale,
    "stale_hidden": effort.Old,
    "constant_replay": effort.First,
    **{name: partial(Replay, *what) for name, what in REPLAYS.items()},
    "copy": Copies,
    "copy_noise": partial(Copies, 0.01),
    "sybils": effort.Sybils,
    "sybils_apart": partial(effort.SybilsApart, effort.first),
    "sybils_pool": partial(effort.SybilsApart, effort.pooled),
    "sybils_split": partial(effort.Working, effort.split),
    "tiny_batch": partial(effort.Working, effort.scrap),
    "wrong_data": partial(effort.Working, effort.random_tokens),
    "time_coupled": TimeCoupled,
    "score_aware": ScoreAware,
    "slow_drip": partial(Late, "the answer was still coming at the deadline"),
    "late": partial(Late, "no answer by the deadline"),
    "oversize": Oversize,
    **{name: partial(Headers, header) for name, header in HEADERS.items()},
}

ARENA: Mapping[str, Callable[[], Attack]] = MappingProxyType({name: _FACTORIES[name] for name in NAMES})


def liars(name: str) -> Attack:
    """New liars of the attack called `name`. Raises UsageError."""
    if name not in ARENA:
        raise UsageError(f"--attack {name}: no such attack; one of {', '.join(ARENA)}")
    return ARENA[name]()
