"""Skip runs without the loss gate whose result is known from the same run with it.

`fedgpt2 simulate` is deterministic, and a gate that passes every step whole changes nothing. So a cell without the gate
runs only if the gate of its twin acted; otherwise the twin's result is its result. The attack-free cells run in any
case, as a check of this claim.
"""

from collections.abc import Mapping

from trials.cells import REFERENCES, Cell
from trials.table import Result

__all__ = ["completed", "differing", "known_from_twin"]

_ACTS = frozenset({"halved", "loss_gate"})  # reasons of rounds in which the gate acted


def known_from_twin(cell: Cell, results: Mapping[Cell, Result]) -> bool:
    """Whether the twin's result is also the cell's."""
    return not cell.gate and cell.attack not in REFERENCES and _gate_idle(results.get(cell.twin))


def completed(results: Mapping[Cell, Result], cells: list[Cell]) -> dict[Cell, Result]:
    """`results` and those of `cells` that are known from a twin."""
    missing = [cell for cell in cells if cell not in results and known_from_twin(cell, results)]
    return {**results, **{cell: results[cell.twin] for cell in missing}}


def differing(results: Mapping[Cell, Result]) -> list[str]:
    """Names of cells without the gate that differ from a twin whose gate never acted: none are expected."""
    pairs = [(cell, results.get(cell.twin)) for cell in results if not cell.gate]
    return [cell.name for cell, twin in pairs if _gate_idle(twin) and twin and twin.rounds != results[cell].rounds]


def _gate_idle(result: Result | None) -> bool:
    """Whether the gate passed every step whole."""
    if result is None or result.final_val_loss is None:
        return False
    return not any(row["reason"] in _ACTS for row in result.rounds)
