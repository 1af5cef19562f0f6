"""`fedgpt2 simulate`: train with many miners, some of them hostile, in one process."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from fedgpt2.cli.parsing import parse
from fedgpt2.config import SimulationConfig, setting

if TYPE_CHECKING:
    from fedgpt2.event_loop import Stop
    from fedgpt2.simulate.result import Result

__all__ = ["Simulate", "main"]

_INTERRUPTED = 130
_MOST_MINERS = 24  # that the live console has room for


@dataclass(frozen=True)
class Simulate(SimulationConfig):
    """Settings of `fedgpt2 simulate`."""

    json: bool = setting(False, "print JSON instead of tables", common=True)

    def config(self) -> SimulationConfig:
        """The settings of the simulation, without those of the command."""
        return SimulationConfig(**{field.name: getattr(self, field.name) for field in fields(SimulationConfig)})


def main(argv: Sequence[str]) -> int:
    """Run a simulation and print its results; if interrupted, print those so far and return 130."""
    settings = parse(
        Simulate,
        argv,
        prog="fedgpt2 simulate",
        about="Train a GPT-2 with miners in this process, some of them hostile, in the validator's own rounds.",
        example="fedgpt2 simulate --miners 8 --attack sign_flip --byzantine 2 --rounds 20",
    )
    from fedgpt2.cli.simulate_report import show
    from fedgpt2.event_loop import run

    results: list[Result] = []
    code = run(lambda stop: _simulate(settings, stop, results))
    for result in results:
        if settings.json:
            print(json.dumps(result.document(), allow_nan=False))
        else:
            show(result, sys.stdout)
    return code


async def _simulate(settings: Simulate, stop: "Stop", results: "list[Result]") -> int:
    from fedgpt2.observe.factory import observer_for
    from fedgpt2.simulate.program import run_simulation

    plain = settings.run.plain or settings.miners > _MOST_MINERS
    with observer_for(sys.stderr, plain=plain) as observer:
        result = await run_simulation(settings.config(), stop, observer)
        if not result.finished:
            observer.notice(f"stopped after {len(result.rounds)} of {settings.rounds} rounds")
    results.append(result)
    return 0 if result.finished else _INTERRUPTED
