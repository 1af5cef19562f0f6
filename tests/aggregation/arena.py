"""Every rule against every attack on made-up gradients: how robust it shows itself.

The setting of research on such rules: n independent gradients = signal + noise, the noise of each 3 times as long as
the signal; f of them are replaced by the attack's.

`kappa` is |aggregate - honest mean|^2 over the mean squared distance of honest gradients from their mean: the least
kappa of the (f, kappa)-robustness of arXiv 2302.01772, definition 2, that the attack leaves possible. `cosine` is to
the signal, the true gradient.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from fedgpt2.aggregation.mean import weighted_mean
from fedgpt2.aggregation.pipeline import PIPELINES
from fedgpt2.simulate.attacks import formulas as attacks

N, F, D = 16, 4, 1024
NOISE = 3.0
RULES = ("mean", *PIPELINES)


def equal(attack: attacks.Attack) -> Callable[..., torch.Tensor]:
    """Ignores the defence."""
    return lambda honest, f, rng, defence: attack(honest, f, rng)


def spread(attack: attacks.Attack) -> Callable[..., torch.Tensor]:
    """Ignores the defence, dodges the clusters."""
    return lambda honest, f, rng, defence: attacks.apart(attack(honest, f, rng), honest, rng)


ATTACKS: Mapping[str, Callable[..., torch.Tensor]] = {
    "none": equal(lambda honest, f, rng: gradients(f, rng)),
    "sign_flip": spread(attacks.sign_flip),
    "sign_flip, copies": equal(attacks.sign_flip),
    **{f"ipm {x:g}": spread(partial(attacks.ipm, strength=x)) for x in (0.1, 0.5, 2.0, 100.0)},
    "alie z_max": spread(attacks.alie),
    **{f"alie {x:g}": spread(partial(attacks.alie, strength=x)) for x in (-4.0, -1.5, -0.5, 0.5, 1.5, 4.0)},
    "opt_ipm": attacks.opt_ipm,
    "opt_alie": attacks.opt_alie,
    "min_max": spread(attacks.min_max),
    "mimic": spread(attacks.mimic),
    "mimic, copies": equal(attacks.mimic),
    "gaussian": equal(attacks.gaussian),
    "gaussian 100": equal(partial(attacks.gaussian, strength=100.0)),
    "zero": equal(attacks.zero),
    "scale 1e6": spread(attacks.scale),
    "huge": equal(partial(attacks.gaussian, strength=1e30)),
}


def signal() -> torch.Tensor:
    """The true gradient, [d], of length 1."""
    direction = torch.randn(D, generator=torch.Generator().manual_seed(1))
    return direction / direction.norm()


def gradients(count: int, rng: torch.Generator) -> torch.Tensor:
    """Honest ones, [count, d]."""
    return signal() + torch.randn(count, D, generator=rng) * (NOISE / D**0.5)


def defence(rule: str) -> attacks.Defence:
    """The rule as liars know it."""

    def aggregate(rows: torch.Tensor, f: int) -> torch.Tensor:
        out = torch.empty(rows.shape[1])
        if rule == "mean":
            return weighted_mean(list(rows), [1 / len(rows)] * len(rows), out)
        PIPELINES[rule](list(rows), None, f, out)
        return out

    return aggregate


def measure(rule: str, attack: str) -> dict[str, float]:
    """kappa and cosine of one rule under one attack."""
    rng = torch.Generator().manual_seed(0)
    honest = gradients(N - F, rng)
    hostile = ATTACKS[attack](honest, F, rng, defence(rule))
    aggregate = defence(rule)(torch.cat([honest, hostile]), F).double()
    mean = honest.double().mean(0)
    spread_of_honest = (honest.double() - mean).square().sum(1).mean()
    kappa = float((aggregate - mean).square().sum() / spread_of_honest)
    cosine = float(aggregate @ signal().double() / aggregate.norm().clamp(min=1e-30))
    return {"kappa": float(f"{kappa:.4g}"), "cosine": round(cosine, 4)}


def table(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """For each rule its worst kappa and cosine, and the attacks that were: Markdown."""
    lines = ["| rule | kappa | by | cosine | by |", "|---|---|---|---|---|"]
    for rule, row in measured.items():
        kappa = max(row, key=lambda attack: row[attack]["kappa"])
        cosine = min(row, key=lambda attack: row[attack]["cosine"])
        worst = f"{row[kappa]['kappa']:.3g} | {kappa} | {row[cosine]['cosine']:.2f} | {cosine}"
        lines.append(f"| {rule} | {worst} |".replace("e+", "e"))
    return "\n".join(lines)
