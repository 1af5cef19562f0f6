"""The attacks by name: what each does, and where it is from. No torch: `--help` lists them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["ADAPTIVE", "ALONE", "FIXED", "NAMES", "PROFILES", "SYBILS", "Profile"]


@dataclass(frozen=True)
class Profile:
    """What is said of an attack: one line, and a source (a paper, or "here")."""

    about: str
    source: str = "here"
    adaptive: bool = False  # it looks at the defence, or at what became of it before


_RSA = "Li et al. 2019, arXiv 1811.03761"
_IPM = "Xie et al. 2019, arXiv 1903.03936"
_ALIE = "Baruch et al. 2019, arXiv 1902.06156"
_BYZFL = "González et al. 2025, arXiv 2505.24802"
_MIN_MAX = "Shejwalkar, Houmansadr, NDSS 2021"
_MIMIC = "Karimireddy et al. 2022, arXiv 2006.09365"
_HISTORY = "after Karimireddy et al. 2021, arXiv 2012.10333"
_RIDERS = "after Lin et al. 2019, arXiv 1911.12560"
_REPLAYED = {
    "": "the last {what}",
    "_negative": "minus the last {what}",
    "_sign": "the sign of each value of the last {what}",
    "_mean": "the running mean (over about four rounds) of each {what}",
}
_SENT = {
    "": "{row} as a gradient, as long as an honest one; nearly alike, so one vote",
    "_noise": "{row} plus noise as long as itself, each liar its own",
    "_padded": "a gradient of a scrap of text plus {row}, equally long",
}


def _replays(name: str, what: str) -> dict[str, Profile]:
    return {
        f"replay_{name}{shape}{manner}": Profile(sent.format(row=row.format(what=what)), _RIDERS)
        for shape, row in _REPLAYED.items()
        for manner, sent in _SENT.items()
        if shape != "_negative" or not manner
    }


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        # vectors made of the honest gradients
        "sign_flip": Profile(
            "minus the honest mean, h/f + 1 times as long, which turns a plain mean; each with a vote of its own", _RSA
        ),
        "sign_flip_1": Profile("minus the honest mean, as long as it is; each with a vote of its own", _RSA),
        "sign_flip_copies": Profile("the same, nearly alike: one vote", _RSA),
        "ipm": Profile("-0.5 times the honest mean: slips past rules of distance", _IPM),
        "ipm_100": Profile("-100 times the honest mean: turns any mean", _IPM),
        "alie": Profile("the mean plus z_max standard deviations of each coordinate", _ALIE),
        "mimic": Profile("one honest miner's gradient, the furthest out, each with noise enough for a vote", _MIMIC),
        "mimic_copies": Profile("one honest miner's gradient, the furthest out, nearly alike: one vote", _MIMIC),
        "gaussian": Profile("noise as long as an honest gradient", _BYZFL),
        "opt_ipm": Profile(
            "ipm of the strength, of 20 tried against the rule itself, that does most harm", _BYZFL, adaptive=True
        ),
        "opt_alie": Profile(
            "alie of the strength and sign, of 20 tried against the rule itself, that does most harm",
            _BYZFL,
            adaptive=True,
        ),
        "min_max": Profile(
            "against the standard deviation as far as no honest gradient is further away than two are apart",
            _MIN_MAX,
            adaptive=True,
        ),
        # values
        "zero": Profile("as good as nothing: a free rider"),
        "scale": Profile("a million times the gradient of random tokens: a mean learns that words mean nothing"),
        "scale_bound": Profile("the same, as long as --limits.gradient_norm lets pass by default"),
        "nan": Profile("one NaN"),
        "inf": Profile("one infinity"),
        "denormal": Profile("numbers so small that arithmetic on them is slow"),
        # old work
        "stale": Profile("an answer over the weights of the round before, which it names"),
        "stale_hidden": Profile("a gradient at weights up to ten rounds old, sent as if it were fresh"),
        "constant_replay": Profile("its own first gradient, for ever"),
        **_replays("update", "change of the weights"),
        **_replays("aggregate", "aggregate"),
        # others' work, little work, other work
        "copy": Profile("an honest miner's answer, bit by bit"),
        "copy_noise": Profile("an honest miner's gradient with 1 % noise"),
        "sybils": Profile("one gradient, honestly computed, in everybody's name"),
        "sybils_apart": Profile("the same, each with noise enough for a vote"),
        "sybils_pool": Profile("one miner's work: a gradient of a part of each one's text, each with noise for a vote"),
        "sybils_split": Profile("one miner's work: from each a gradient of a part of its own text"),
        "tiny_batch": Profile("an honest gradient of an eighth of the text assigned"),
        "wrong_data": Profile("the gradient of random tokens"),
        # patience
        "time_coupled": Profile(
            "the honest mean plus the same direction every round, no further out than an honest gradient",
            _HISTORY,
            adaptive=True,
        ),
        "score_aware": Profile(
            "honest until its weight is an honest miner's, then sign_flip for two rounds, then honest again",
            adaptive=True,
        ),
        # the wire
        "slow_drip": Profile("an answer that keeps coming and is never complete"),
        "late": Profile("no answer by the deadline"),
        "oversize": Profile("a body longer than the order allows"),
        "wrong_names": Profile("a tensor under another name"),
        "wrong_shapes": Profile("a tensor transposed"),
        "wrong_dtypes": Profile("integers of the same size"),
    }
)

NAMES: tuple[str, ...] = tuple(PROFILES)
ADAPTIVE: tuple[str, ...] = tuple(name for name, profile in PROFILES.items() if profile.adaptive)
FIXED: tuple[str, ...] = tuple(name for name, profile in PROFILES.items() if not profile.adaptive)

SYBILS = frozenset({"sybils", "sybils_apart", "sybils_pool", "sybils_split"})
"""Those in which one miner's work is sent in several names."""

_TOGETHER = frozenset({"sign_flip_copies", "mimic", "mimic_copies", "copy", "copy_noise"}) | SYBILS
ALONE: tuple[str, ...] = tuple(name for name in NAMES if name not in _TOGETHER)
"""Those for a miner that knows no other."""
