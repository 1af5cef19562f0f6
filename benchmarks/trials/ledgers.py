"""Keep the ledgers of finished cells, so that a changed ranking rule is applied to them in seconds.

A ledger's evidence was measured under the rule of its run, which chose the audited miners and the weights. A replay
says how another rule ranks the same evidence, not how its own run would have gone; records are made of runs.
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
from trials.table import Result

__all__ = ["KeptLedgers"]


@dataclass(frozen=True)
class KeptLedgers:
    """A folder of ledgers, one a cell of `whole` rounds; implements `trials.running.RunDirectories`."""

    folder: Path
    whole: int
    rounds: int = 0

    def prepare(self, seeds: Sequence[int], say: Callable[[str], None]) -> None:
        """Create the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def flags(self, cell: Cell) -> tuple[str, ...]:
        """Flags that name an empty run directory for the cell."""
        shutil.rmtree(self._run(cell), ignore_errors=True)
        return ("--run.dir", str(self._run(cell)))

    def release(self, cell: Cell) -> None:
        """Keep the ledger of a finished cell and remove its run directory."""
        file = self._run(cell) / "ledger.sqlite"
        if file.exists():
            with contextlib.closing(Ledger(file)) as ledger:
                over = ledger.last_round() == self.whole
            if over:
                file.replace(self._path(cell))
        shutil.rmtree(self._run(cell), ignore_errors=True)

    def replayed(self, cell: Cell) -> Result | None:
        """Ranks and pay of the cell under today's rule; None without a ledger."""
        if not self._path(cell).exists():
            return None
        with contextlib.closing(Ledger(self._path(cell), reading=True)) as ledger:
            lines = {line.hotkey: line for line in ranks(replay(ledger.records()).table)}
        roster = draw_participants(MINERS, BYZANTINE, cell.seed)
        sides = {"hostile": sorted(roster.hostile), "honest": roster.honest}
        found = {side: [lines.get(roster.hotkeys[i]) for i in indices] for side, indices in sides.items()}
        places = {side: [line.rank if line else None for line in each] for side, each in found.items()}
        pay = {side: [line.weight if line else 0.0 for line in each] for side, each in found.items()}
        return Result(cell.name, None, [], None, commit(), 0.0, 0.0, hardware(), places, pay)

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.sqlite"

    def _run(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.run"
