"""Where the cells of a seed begin: after rounds in which nobody lies, trained once and copied for each of them.

What liars can do to a model that knows nothing yet is one question, what they can do to one that learns from faint
gradients another, and the harder: noise is what they hide in. The second is asked here; and a cell need not repeat
what is the same in all of them.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgpt2.errors import SetupError
from trials.cells import NONE, Cell

__all__ = ["Starts"]


@dataclass(frozen=True)
class Starts:
    """Run directories under `folder`: one a seed, after `rounds` rounds, and a copy for each running cell."""

    folder: Path
    common: tuple[str, ...]
    rounds: int

    def prepare(self, seeds: Sequence[int], say: Callable[[str], None]) -> None:
        """Train those that are not there, side by side. Raises SetupError with the last words of one that fails."""
        missing = [seed for seed in seeds if not self._base(seed).exists()]
        if missing:
            say(f"training {self.rounds} rounds without liars for seed {', '.join(map(str, missing))}")
        children = {seed: self._train(seed) for seed in missing}
        try:
            for seed, child in children.items():
                _, said = child.communicate()
                if child.returncode:
                    raise SetupError(f"seed {seed}: {(said.strip().splitlines() or ['no word'])[-1]}")
                self._part(seed).rename(self._base(seed))
        finally:
            for child in children.values():
                child.kill()
                child.wait()

    def flags(self, cell: Cell) -> tuple[str, ...]:
        """Where the cell runs: in a copy of its own."""
        self.drop(cell)
        shutil.copytree(self._base(cell.seed), self._copy(cell))
        return ("--run.dir", str(self._copy(cell)))

    def drop(self, cell: Cell) -> None:
        """Remove the cell's copy, if there is one."""
        shutil.rmtree(self._copy(cell), ignore_errors=True)

    def _train(self, seed: int) -> subprocess.Popen[str]:
        shutil.rmtree(self._part(seed), ignore_errors=True)
        flags = (*Cell("default", True, NONE, seed).flags(), *self.common, "--rounds", str(self.rounds))
        command = [sys.executable, "-m", "fedgpt2", "simulate", *flags, "--run.dir", str(self._part(seed))]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def _base(self, seed: int) -> Path:
        return self.folder / f"start-{seed}"

    def _part(self, seed: int) -> Path:
        return self.folder / f"start-{seed}.part"

    def _copy(self, cell: Cell) -> Path:
        return self.folder / cell.name
