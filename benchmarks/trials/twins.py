"""Runs that need not run: without its gate a training is to the bit the one with it, if the gate let all of it pass.

`fedgpt2 simulate` is deterministic, and a gate that lets a step pass whole leaves no trace. So a cell without the gate
is run only where its twin's gate acted; elsewhere the twin's result is its result. The attack-free ones are run all the
same: what is said here has to show in them.
"""

from collections.abc import Mapping

from trials.cells import REFERENCES, Cell
from trials.running import Result

__all__ = ["completed", "differing", "spared"]

_ACTS = frozenset({"halved", "loss_gate"})  # reasons of rounds in which the gate acted


def spared(cell: Cell, results: Mapping[Cell, Result]) -> bool:
    """Whether the cell's result is known from its twin's."""
    return not cell.gate and cell.attack not in REFERENCES and _untouched(results.get(cell.twin))


def completed(results: Mapping[Cell, Result], cells: list[Cell]) -> dict[Cell, Result]:
    """`results`, and those of `cells` that are known from a twin."""
    missing = [cell for cell in cells if cell not in results and spared(cell, results)]
    return {**results, **{cell: results[cell.twin] for cell in missing}}


def differing(results: Mapping[Cell, Result]) -> list[str]:
    """Names of cells that ran without the gate and differ from a twin whose gate never acted: there should be none."""
    pairs = [(cell, results.get(cell.twin)) for cell in results if not cell.gate]
    return [cell.name for cell, twin in pairs if _untouched(twin) and twin and twin.rounds != results[cell].rounds]


def _untouched(result: Result | None) -> bool:
    """Whether the gate is known to have let every step pass whole."""
    if result is None or result.final_val_loss is None:
        return False
    return not any(row["reason"] in _ACTS for row in result.rounds)
