"""Every rule against every attack on synthetic gradients.

The setting of the literature: n independent gradients = signal + noise, the noise of each 3 times as long as the
signal; f of them are replaced by the attack's rows.

`kappa` is |aggregate - honest mean|^2 over the mean squared distance of honest gradients from their mean: a lower bound
of the kappa of (f, kappa)-robustness (arXiv 2302.01772, definition 2). `cosine` is to the signal, the true gradient.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from fedgpt2.aggregation.registry import RULES
from fedgpt2.simulate.attacks import formulas
from tests.aggregation import attacked_rows
from tests.aggregation.attacked_rows import Attack, Defence, apart, gaussian, rows, zero

N, F, D = 16, 4, 1024
NOISE = 3.0


def equal(attack: Attack) -> Callable[..., torch.Tensor]:
    """Ignores the defence."""
    return lambda honest, f, rng, defence: attack(honest, f, rng)


def spread(attack: Attack) -> Callable[..., torch.Tensor]:
    """Ignores the defence; noise keeps the rows out of one cluster."""
    return lambda honest, f, rng, defence: apart(attack(honest, f, rng), honest, rng)


ATTACKS: Mapping[str, Callable[..., torch.Tensor]] = {
    "none": equal(lambda honest, f, rng: gradients(f, rng)),
    "sign_flip": spread(rows(formulas.minus_mean)),
    "sign_flip, copies": equal(rows(formulas.minus_mean)),
    **{f"ipm {x:g}": spread(rows(formulas.ipm, strength=x)) for x in (0.1, 0.5, 2.0, 100.0)},
    "alie z_max": spread(rows(formulas.alie)),
    **{f"alie {x:g}": spread(rows(formulas.alie, strength=x)) for x in (-4.0, -1.5, -0.5, 0.5, 1.5, 4.0)},
    "opt_ipm": attacked_rows.opt_ipm,
    "opt_alie": attacked_rows.opt_alie,
    "min_max": spread(rows(formulas.min_max)),
    "mimic": spread(rows(formulas.mimic)),
    "mimic, copies": equal(rows(formulas.mimic)),
    "gaussian": equal(gaussian),
    "gaussian 100": equal(partial(gaussian, strength=100.0)),
    "zero": equal(zero),
    "scale 1e6": spread(rows(formulas.ipm, strength=-1e6)),
    "huge": equal(partial(gaussian, strength=1e30)),
}


def signal() -> torch.Tensor:
    """The true gradient, [d], of length 1."""
    direction = torch.randn(D, generator=torch.Generator().manual_seed(1))
    return direction / direction.norm()


def gradients(count: int, rng: torch.Generator) -> torch.Tensor:
    """Honest ones, [count, d]."""
    return signal() + torch.randn(count, D, generator=rng) * (NOISE / D**0.5)


def defence(rule: str) -> Defence:
    """The rule as a function of rows and f."""

    def aggregate(rows: torch.Tensor, f: int) -> torch.Tensor:
        out = torch.empty(rows.shape[1])
        RULES[rule](list(rows), None, f, out)
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
