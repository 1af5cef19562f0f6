"""The run directory: whose run it holds, and where that run stands.

A directory is new, or holds a run of the same model, text and seed, which is then resumed; anything else is refused
with one line and left untouched.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from fedgpt2 import __version__
from fedgpt2.config import ValidatorConfig, path_of
from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pools import key_digest, new_key
from fedgpt2.errors import CheckpointError, DiskFullError, RunDirectoryError
from fedgpt2.ledger.ledger import Ledger, Receipts
from fedgpt2.ledger.round_lines import RoundLines
from fedgpt2.storage import checkpoints as checkpoints
from fedgpt2.storage.checkpoints import Checkpoint
from fedgpt2.storage.mapped import BufferPool
from fedgpt2.storage.files import disk_errors, write_durably
from fedgpt2.types import Hotkey, Schema
from fedgpt2.validator.training import Training

__all__ = ["RunDirectory", "open_run_directory"]

_KEY = re.compile(rb"[0-9a-f]{64}")
_PACKAGES = ("torch", "numpy", "tiktoken", "aiohttp", "bittensor", "msgspec", "blake3", "openskill")


class RunDirectory:
    """An opened run directory; only one process holds it at a time."""

    def __init__(
        self, path: Path, ledger: Ledger, key: bytes, identity: Mapping[str, object], earlier: Mapping[str, object]
    ) -> None:
        """`earlier`: what config.json says as it was found."""
        self.path = path
        self.ledger = ledger
        self.key = key
        self._identity = identity
        self._earlier = earlier
        self.lines = RoundLines(path / "rounds.jsonl")
        self.run_id = ledger.meta("run_id") or ""
        self.buffers = BufferPool(path / "contributions")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def resume(self, config: ValidatorConfig, training: Training, notice: Callable[[str], None]) -> int:
        """Bring `training` to the last round that can be continued from; returns its number, 0 for a new run.

        Rounds after the last checkpoint are taken back and run again under the next attempt, so that no miner
        mistakes an order for one it has answered. Raises CheckpointError for a damaged or foreign checkpoint, and when
        none of those that should be there is.
        """
        number = self._restore(training, notice)
        if unread := self.ledger.unread():
            notice(f"{unread} receipts that were not delivered are of another version: not sent by this one")
        orders = _order_settings(config)
        changed = self.ledger.meta("orders") not in (None, orders)
        last = self.ledger.last_round()
        if number < last:
            notice(_taken_back(number, last))
        if number < last or changed:
            self.ledger.commit_resume(number, self.ledger.attempt() + 1)
        self.ledger.set_meta({"orders": orders})
        self.write_facts(config)
        self.lines.rewrite(self.ledger.rounds())
        return number

    def write_facts(self, config: ValidatorConfig) -> None:
        """Write config.json: with these settings, and this key, the run goes on after its last round."""
        earlier = _earlier_keys(self._earlier, self.key, self.ledger.last_round())
        facts = _facts(config, self.ledger, self.key, self._identity)
        _write_json(self.path / "config.json", {**facts, "earlier_keys": earlier})

    def _restore(self, training: Training, notice: Callable[[str], None]) -> int:
        named = self.ledger.checkpoints()
        if not named:
            return 0
        for number, name in named:
            if (self.checkpoints / name).is_dir():
                if number < named[0][0]:
                    notice(f"checkpoint {named[0][1]} is gone; going on from {name}")
                training.restore(self._reader(number, name))
                return number
        raise CheckpointError(
            f"{self.checkpoints / named[0][1]} is gone, and so is every checkpoint before it; "
            "put one back or choose another --run.dir"
        )

    def _reader(self, number: int, name: str) -> Callable[[Schema, Schema, Schema], Checkpoint]:
        def read(model: Schema, optimizer: Schema, optional: Schema) -> Checkpoint:
            try:
                checkpoint = checkpoints.load(self.checkpoints, name, model, optimizer, optional)
                self._check_origin(checkpoint, number)
            except CheckpointError as error:
                way_out = f"remove {self.checkpoints / name} to go on from the checkpoint before it"
                raise CheckpointError(f"{error}; {way_out}") from error
            return checkpoint

        return read

    def _check_origin(self, checkpoint: Checkpoint, number: int) -> None:
        """Raise CheckpointError unless it holds this run's weights after round `number`."""
        state = checkpoint.state
        if (state.get("run_id"), state.get("round")) != (self.run_id, number):
            raise CheckpointError(
                f"{self.checkpoints / checkpoints.checkpoint_name(number)} is of another run or round"
            )
        if state.get("model") != self.ledger.model_after(number):
            raise CheckpointError(f"{self.checkpoints / checkpoints.checkpoint_name(number)} is not the ledger's model")

    def save(self, number: int, training: Training, facts: Mapping[str, object]) -> str:
        """Write a checkpoint after round `number`; returns its name, which the ledger must then commit."""
        state = {"run_id": self.run_id, "round": number, **facts}
        return checkpoints.save(self.checkpoints, number, training.capture(state))

    def commit(
        self,
        number: int,
        attempt: int,
        row: Mapping[str, object],
        checkpoint: str | None,
        keep: int,
        ratings: Mapping[Hotkey, Mapping[str, object]] | None = None,
        receipts: Receipts | None = None,
    ) -> None:
        """Commit a finished round: the ledger first, receipts and all, then what derives from it."""
        self.ledger.commit_round(number, attempt, row, checkpoint, ratings, receipts)
        self.lines.append(json.dumps(row, separators=(",", ":"), allow_nan=False))
        if checkpoint is not None:
            self._prune(keep)

    def save_last(self, training: Training, keep: int) -> None:
        """Write a checkpoint of the last committed round, unless there is one or nothing happened yet."""
        number, attempt = self.ledger.last_round(), self.ledger.attempt()
        named = [at for at, name in self.ledger.checkpoints() if (self.checkpoints / name).is_dir()]
        if number and number not in named:
            self.ledger.commit_checkpoint(number, attempt, self.save(number, training, {"attempt": attempt}))
            self._prune(keep)

    def _prune(self, keep: int) -> None:
        checkpoints.prune(self.checkpoints, [name for _, name in self.ledger.checkpoints(max(1, keep))])

    def reveal_key(self) -> None:
        """Publish the evaluation key: the run is over, and anyone may check what was scored on what."""
        facts = json.loads((self.path / "config.json").read_text())
        _write_json(self.path / "config.json", {**facts, "evaluation_key": self.key.hex()})


@contextlib.contextmanager
def open_run_directory(
    config: ValidatorConfig, manifest: Manifest, draw: Callable[[int], bytes] = secrets.token_bytes
) -> Iterator[RunDirectory]:
    """Create or open `--run.dir`. Raises RunDirectoryError, one line, when it holds another run or is in use.

    The name and the evaluation key of a new run come from `draw`; only a simulation may draw what can be guessed.
    """
    path = path_of("--run.dir", config.run.dir)
    with disk_errors(path):
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("w")
    with lock:
        _take(lock.fileno(), path)
        facts = _existing(path)
        identity = _identity(config, manifest)
        if facts is not None:
            _check_identity(path, facts, identity)
        ledger = Ledger(path / "ledger.sqlite")
        try:
            key = _evaluation_key(path, draw, revealed=facts is not None and "evaluation_key" in facts)
            if ledger.meta("run_id") is None:
                ledger.set_meta({"run_id": draw(32).hex()})
            _write_json(path / "manifest.json", json.loads(manifest.to_bytes()))
            directory = RunDirectory(path, ledger, key, identity, facts or {})
            if facts is None:  # what there is already is left until the run goes on
                directory.write_facts(config)
            yield directory
            with contextlib.suppress(DiskFullError):  # they would be sent once more, no more than that
                ledger.settle()
        finally:
            ledger.close()


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RunDirectoryError(f"{path} is in use by another validator; choose another --run.dir") from error


def _existing(path: Path) -> dict[str, object] | None:
    """Contents of config.json, None for a new directory."""
    file = path / "config.json"
    if not file.exists():
        if (path / "ledger.sqlite").exists() and any((path / "checkpoints").iterdir()):
            raise RunDirectoryError(f"{file} is missing beside a ledger; restore it or choose another --run.dir")
        return None
    try:
        facts = json.loads(file.read_text())
    except ValueError as error:
        raise RunDirectoryError(f"{file} is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise RunDirectoryError(f"{file} is damaged: not an object")
    return facts


def _identity(config: ValidatorConfig, manifest: Manifest) -> dict[str, object]:
    """What makes a run that run: these may not change when it is resumed."""
    return {
        "model.preset": config.model.preset,
        "run.seed": config.run.seed,  # part of the manifest too, and the clearer of the two to name
        "manifest": manifest.digest(),
        "codec.state": config.codec.state,
        "optimizer.name": config.optimizer.name,
    }


def _check_identity(path: Path, facts: Mapping[str, object], identity: Mapping[str, object]) -> None:
    stored = facts.get("identity")
    if not isinstance(stored, dict):
        raise RunDirectoryError(f"{path / 'config.json'} is damaged: it names no run")
    for name, value in identity.items():
        if stored.get(name) != value:
            held = (
                f"with --{name} {stored.get(name)}, not {value}"
                if "." in name
                else "over other text or --data settings"
            )
            raise RunDirectoryError(f"{path} holds a run {held}; choose another --run.dir")


def _evaluation_key(path: Path, draw: Callable[[int], bytes], *, revealed: bool) -> bytes:
    """The secret key; a new one for a new run, and for one that goes on after its key was published."""
    file = path / "evaluation.key"
    if file.exists() and not revealed:
        text = file.read_bytes().strip()
        if not _KEY.fullmatch(text):
            raise RunDirectoryError(f"{file} is damaged: not 64 hex characters; remove it to go on with a new key")
        return bytes.fromhex(text.decode())
    key = new_key(draw)
    write_durably(file, key.hex().encode(), mode=0o600)
    return key


def _earlier_keys(facts: Mapping[str, object], key: bytes, last_round: int) -> list[object]:
    """Keys used before this one, each with its last round: what they drew stays checkable."""
    earlier, digest = facts.get("earlier_keys"), facts.get("evaluation_key_sha256")
    kept = earlier if isinstance(earlier, list) else []
    if digest in (None, key_digest(key)):
        return kept
    return [*kept, {"sha256": digest, "key": facts.get("evaluation_key"), "last_round": last_round}]


def _facts(config: ValidatorConfig, ledger: Ledger, key: bytes, identity: Mapping[str, object]) -> dict[str, object]:
    return {
        "run_id": ledger.meta("run_id"),
        "identity": identity,
        "seed": config.run.seed,
        "manifest_digest": identity["manifest"],
        "evaluation_key_sha256": key_digest(key),
        "settings": dataclasses.asdict(config),
        "model": dataclasses.asdict(config.model.shape),
        "versions": {"fedgpt2": __version__, **{name: metadata.version(name) for name in _PACKAGES}},
    }


def _taken_back(number: int, last: int) -> str:
    """What is said of the rounds after `number`, up to the `last` that was committed, which run again."""
    rounds = f"rounds {number + 1} to {last} have" if last > number + 1 else f"round {last} has"
    return f"{rounds} no checkpoint: " + (f"going on after round {number}" if number else "beginning again")


def _order_settings(config: ValidatorConfig) -> str:
    """Digest of the settings that orders carry: if they change, the same round is a different order."""
    carried = [config.round.deadline, config.data.windows, config.codec.gradient, config.limits.header_bytes]
    return hashlib.sha256(json.dumps(carried).encode()).hexdigest()


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    write_durably(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")
