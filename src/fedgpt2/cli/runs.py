"""Read a run directory: its model, rounds and facts."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedgpt2.config import path_of
from fedgpt2.errors import CheckpointError, RunDirectoryError
from fedgpt2.ledger.ledger import FORMAT, Ledger
from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.types import ModelShape

if TYPE_CHECKING:
    from fedgpt2.model.gpt2 import GPT2
    from fedgpt2.model.state import FlatState

__all__ = ["StoredRun", "open_model", "open_run"]


@dataclass(frozen=True)
class StoredRun:
    """A run on disk: only what the ledger names."""

    path: Path
    facts: Mapping[str, object]
    shape: ModelShape
    codec: str  # of the broadcast weights
    checkpoints: Mapping[int, str]  # round -> folder name, newest first
    head: str  # of the ledger's hash chain

    def records(self) -> Iterator[RoundRecord]:
        """The committed rounds; none of a run of an older format, whose checkpoints alone can be read.

        Raises RunDirectoryError for a damaged record.
        """
        with closing(Ledger(self.path / "ledger.sqlite", reading=True)) as ledger:
            if ledger.format == FORMAT:
                yield from ledger.records()

    def load_model(self, round_: int | None = None) -> tuple["GPT2", int]:
        """Load the weights broadcast after a round (None: the newest checkpoint) to the CPU; return model and round.

        Raises CheckpointError if there is no such checkpoint, it is damaged, or it is not the ledger's model.
        """
        from fedgpt2 import codec
        from fedgpt2.model.gpt2 import GPT2
        from fedgpt2.storage.checkpoints import load

        if not self.checkpoints:
            raise CheckpointError(f"{self.path} has no checkpoint yet")
        number = next(iter(self.checkpoints)) if round_ is None else round_
        if number not in self.checkpoints:
            kept = ", ".join(map(str, sorted(self.checkpoints)))
            raise CheckpointError(f"{self.path} has no checkpoint of round {number}; kept are those of {kept}")
        model = GPT2(self.shape)
        weights = load(self.path / "checkpoints", self.checkpoints[number], self.shape.schema(), None).model
        for name, view in model.weights.views.items():
            view.copy_(weights[name])
        codec.get(self.codec).round_(model.weights.flat)  # as miners received them: losses and digests refer to that
        self._check(model.weights, number)
        return model, number

    def _check(self, weights: "FlatState", number: int) -> None:
        """Raise CheckpointError if the ledger names other weights."""
        from fedgpt2.protocol.digests import model_digest

        with closing(Ledger(self.path / "ledger.sqlite", reading=True)) as ledger:
            named = ledger.model_after(number)
        if model_digest(weights.schema, weights.memory(), threads=2) != named:
            raise CheckpointError(
                f"{self.path / 'checkpoints' / self.checkpoints[number]} is not the model that the ledger names"
            )


def open_run(run_dir: str) -> StoredRun:
    """Open the run at `--run.dir`. Raises RunDirectoryError if there is none."""
    path = path_of("--run.dir", run_dir)
    file = path / "config.json"
    if not file.is_file() or not (path / "ledger.sqlite").is_file():
        raise RunDirectoryError(f"{path} holds no run; name one with --run.dir")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        shape, codec = ModelShape(**facts["model"]), str(facts["identity"]["codec.state"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{file} is damaged: {error}") from error
    with closing(Ledger(path / "ledger.sqlite", reading=True)) as ledger:
        named = {number: name for number, name in ledger.checkpoints() if (path / "checkpoints" / name).is_dir()}
        return StoredRun(path, facts, shape, codec, named, ledger.head)


def open_model(run: StoredRun, round_: int | None = None) -> tuple[StoredRun, "GPT2", int]:
    """`run.load_model(round_)` for a run that may be active; returns the run as reopened, model and round.

    A validator removes old checkpoints; if one cannot be read and the list has changed, reopen the run and retry.
    """
    while True:
        try:
            return run, *run.load_model(round_)
        except CheckpointError:
            later = open_run(str(run.path))
            if later.checkpoints == run.checkpoints:
                raise
            run = later
