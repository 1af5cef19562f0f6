"""Start the cells of a seed from one attack-free training, copied for each.

Attacks on an untrained model are easier to resist: its gradients are large and noise hides little. The cells attack a
model that learns from small gradients, and share the rounds before.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgpt2.errors import SetupError
from trials.cells import NONE, Cell

__all__ = ["AttackFreeStarts"]


@dataclass(frozen=True)
class AttackFreeStarts:
    """Run directories under `folder`: one a seed after `rounds` rounds, and a copy for each running cell."""

    folder: Path
    common: tuple[str, ...]
    rounds: int

    def prepare(self, seeds: Sequence[int], say: Callable[[str], None]) -> None:
        """Train the missing seeds side by side. Raises SetupError with the last line of one that fails."""
        missing = [seed for seed in seeds if not self._base(seed).exists()]
        if missing:
            say(f"training {self.rounds} attack-free rounds for seed {', '.join(map(str, missing))}")
        children = {seed: self._train(seed) for seed in missing}
        try:
            for seed, child in children.items():
                _, err = child.communicate()
                if child.returncode:
                    raise SetupError(f"seed {seed}: {(err.strip().splitlines() or ['no output'])[-1]}")
                self._part(seed).rename(self._base(seed))
        finally:
            for child in children.values():
                child.kill()
                child.wait()

    def flags(self, cell: Cell) -> tuple[str, ...]:
        """Copy the start for the cell and return the flags that name the copy."""
        self.release(cell)
        shutil.copytree(self._base(cell.seed), self._copy(cell))
        return ("--run.dir", str(self._copy(cell)))

    def release(self, cell: Cell) -> None:
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
