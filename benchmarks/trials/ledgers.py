"""Ledgers of finished cells, kept: a changed rule of ranking is judged by them in seconds.

What a ledger holds was measured in a run of the rule as it was then: who was audited, and what was weighed. A replay by
another rule says what it makes of the same evidence, not what its own run would have been; a record is made of runs.
"""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.ranking.replay import replay
from fedgpt2.ranking.table import ranks
from fedgpt2.simulate.participants import draw_participants
from trials.cells import BYZANTINE, MINERS, Cell
from trials.running import Result

__all__ = ["Ledgers"]


@dataclass(frozen=True)
class Ledgers:
    """A folder of them, one a cell of `whole` rounds: a `trials.running.Place` in which none is begun."""

    folder: Path
    whole: int
    rounds: int = 0

    def prepare(self, seeds: Sequence[int], say: Callable[[str], None]) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def flags(self, cell: Cell) -> tuple[str, ...]:
        """Where the cell runs: in a folder of its own."""
        shutil.rmtree(self._run(cell), ignore_errors=True)
        return ("--run.dir", str(self._run(cell)))

    def drop(self, cell: Cell) -> None:
        """Keep the ledger of a cell that is over, and remove what else there is."""
        file = self._run(cell) / "ledger.sqlite"
        if file.exists():
            with contextlib.closing(Ledger(file)) as ledger:
                over = ledger.last_round() == self.whole
            if over:
                file.replace(self._path(cell))
        shutil.rmtree(self._run(cell), ignore_errors=True)

    def judged(self, cell: Cell) -> Result | None:
        """Ranks and pay of the cell by the rule as it is now; None where its ledger is not there."""
        if not self._path(cell).exists():
            return None
        with contextlib.closing(Ledger(self._path(cell), reading=True)) as ledger:
            lines = {line.hotkey: line for line in ranks(replay(ledger.records()).table)}
        roster = draw_participants(MINERS, BYZANTINE, cell.seed)
        sides = {"hostile": sorted(roster.hostile), "honest": roster.honest}
        found = {side: [lines.get(roster.hotkeys[i]) for i in indices] for side, indices in sides.items()}
        places = {side: [line.rank if line else None for line in told] for side, told in found.items()}
        pay = {side: [line.weight if line else 0.0 for line in told] for side, told in found.items()}
        return Result(cell.name, None, [], None, commit(), 0.0, 0.0, hardware(), places, pay)

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.sqlite"

    def _run(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.run"
