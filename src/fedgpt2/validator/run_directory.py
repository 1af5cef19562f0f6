"""The run directory: which run it holds, and where that run stands.

A directory is new, or holds a run of the same model, text and seed, which is then resumed. Anything else is refused in
one line and stays untouched.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fedgpt2 import __version__
from fedgpt2.config import ValidatorConfig, path_of
from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pools import key_digest, new_key
from fedgpt2.errors import CheckpointError, DiskFullError, RunDirectoryError
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.ledger.round_lines import RoundLines
from fedgpt2.protocol.messages import Receipt
from fedgpt2.protocol.round_record import RoundRecord, encode_record
from fedgpt2.storage import checkpoints
from fedgpt2.storage.checkpoints import Checkpoint
from fedgpt2.storage.files import disk_errors, write_durably
from fedgpt2.storage.mapped import BufferPool
from fedgpt2.types import Hotkey, Schema, WorkId
from fedgpt2.validator.training import Training

__all__ = ["RESUMABLE", "RunDirectory", "open_run_directory", "scratch_folder"]

# Settings that a resumed run may change; docs/settings.md lists them. `_identity` names those that make a run that run.
RESUMABLE = (
    "axons",
    "round",
    "ranking",
    "aggregation",
    "checkpoint",
    "limits",
    "codec.gradient",
    "data.windows",
    "data.max_slots",
    "data.lease",
    "optimizer (all but its name)",
    "rounds",
)

_KEY = re.compile(rb"[0-9a-f]{64}")
_PACKAGES = ("torch", "numpy", "tiktoken", "aiohttp", "bittensor", "msgspec", "blake3", "openskill")


@dataclass(frozen=True)
class _Found:
    """What config.json says as it was found."""

    facts: Mapping[str, object]
    new: bool = False  # there was none

    def past(self, name: str) -> list[object]:
        """A list of earlier values, each with the last round it was used in."""
        value = self.facts.get(name)
        return value if isinstance(value, list) else []


class RunDirectory:
    """An open run directory; only one process holds it at a time. Every method blocks on the disk."""

    def __init__(
        self, path: Path, scratch: Path, ledger: Ledger, key: bytes, identity: Mapping[str, object], found: _Found
    ) -> None:
        """`scratch`: folder for contributions in flight."""
        self.path = path
        self.ledger = ledger
        self.key = key
        self.buffers = BufferPool(scratch)
        self.outbox = Outbox(ledger.waiting_receipts())
        self.lines = RoundLines(path / "rounds.jsonl")
        self.run_id = ledger.meta("run_id") or ""
        self._identity = identity
        self._found = found

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
        if unreadable := self.ledger.unreadable_receipts():
            notice(f"{unreadable} undelivered receipts are of another version: this one does not send them")
        orders = _order_settings(config, str(self._identity["manifest"]))
        changed = self.ledger.meta("orders") not in (None, orders)
        last = self.ledger.last_round()
        if number < last:
            notice(_taken_back(number, last))
        if number < last or changed:
            self.ledger.commit_resume(number, self.ledger.attempt() + 1)
        self.ledger.set_meta({"orders": orders})
        self.write_facts(config)
        self.lines.rewrite(self.ledger.lines())
        return number

    def write_facts(self, config: ValidatorConfig) -> None:
        """Write config.json: with these settings, key and manifest the run goes on after its last round."""
        last = self.ledger.last_round()
        history = {
            "earlier_keys": _earlier_keys(self._found, self.key, last),
            "earlier_manifests": _earlier_manifests(self._found, str(self._identity["manifest"]), last),
        }
        facts = _facts(config, self.ledger, self.key, self._identity)
        _write_json(self.path / "config.json", {**facts, **history})

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

    def save(self, number: int, attempt: int, training: Training) -> str:
        """Write a checkpoint after round `number`; returns its name, which the ledger must then commit."""
        state = {"run_id": self.run_id, "round": number, "attempt": attempt}
        return checkpoints.save(self.checkpoints, number, training.capture(state))

    def commit(
        self,
        record: RoundRecord,
        checkpoint: str | None,
        *,
        keep: int,
        sender: Hotkey,
        ratings: Mapping[Hotkey, bytes],
        delivered: tuple[WorkId, ...],
    ) -> list[Receipt]:
        """Commit a round: the ledger with the receipts first, then what derives from it. Returns the receipts."""
        receipts = self.ledger.commit_round(
            record, sender=sender, checkpoint=checkpoint, ratings=ratings, delivered=delivered
        )
        self.lines.append(encode_record(record).decode())
        if checkpoint is not None:
            self._prune(keep)
        return receipts

    def save_last(self, training: Training, keep: int) -> None:
        """Write a checkpoint of the last committed round, unless there is one or nothing happened yet."""
        number, attempt = self.ledger.last_round(), self.ledger.attempt()
        named = [at for at, name in self.ledger.checkpoints() if (self.checkpoints / name).is_dir()]
        if number and number not in named:
            self.ledger.commit_checkpoint(number, attempt, self.save(number, attempt, training))
            self._prune(keep)

    def _prune(self, keep: int) -> None:
        checkpoints.prune(self.checkpoints, [name for _, name in self.ledger.checkpoints(max(1, keep))])

    def reveal_key(self) -> None:
        """Publish the evaluation key: the run is over, and anyone may check which windows were scored."""
        facts = json.loads((self.path / "config.json").read_text())
        _write_json(self.path / "config.json", {**facts, "evaluation_key": self.key.hex()})


@contextlib.contextmanager
def open_run_directory(
    config: ValidatorConfig, manifest: Manifest, draw: Callable[[int], bytes] = secrets.token_bytes
) -> Iterator[RunDirectory]:
    """Create or open `--run.dir`. Raises RunDirectoryError, one line, when it holds another run or is in use.

    The name and the evaluation key of a new run come from `draw`; only a simulation may draw predictable ones.
    """
    path = path_of("--run.dir", config.run.dir)
    with disk_errors(path):
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("w")
    with lock:
        _lock(lock.fileno(), path)
        found = _existing(path)
        identity = _identity(config, manifest)
        ledger = _open_ledger(path, found)
        try:
            if not found.new:
                _check_identity(path, found, identity)
            key = _evaluation_key(path, draw, revealed="evaluation_key" in found.facts)
            ledger.create(draw(32).hex() if ledger.meta("run_id") is None else "")
            _write_json(path / "manifest.json", json.loads(manifest.to_bytes()))
            directory = RunDirectory(path, scratch_folder(config), ledger, key, identity, found)
            if found.new:  # an existing config.json stays as it is until the run goes on
                directory.write_facts(config)
            yield directory
            with contextlib.suppress(DiskFullError):  # those receipts would be sent once more, no more than that
                ledger.settle(directory.outbox.delivered())
        finally:
            ledger.close()


def scratch_folder(config: ValidatorConfig) -> Path:
    """The folder for contributions in flight."""
    if config.run.scratch:
        return path_of("--run.scratch", config.run.scratch)
    return path_of("--run.dir", config.run.dir) / "contributions"


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RunDirectoryError(f"{path} is in use by another validator; choose another --run.dir") from error


def _existing(path: Path) -> _Found:
    file = path / "config.json"
    if not file.exists():
        if (path / "ledger.sqlite").exists() and any((path / "checkpoints").iterdir()):
            raise RunDirectoryError(f"{file} is missing beside a ledger; restore it or choose another --run.dir")
        return _Found({}, new=True)
    try:
        facts = json.loads(file.read_text())
    except ValueError as error:
        raise RunDirectoryError(f"{file} is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise RunDirectoryError(f"{file} is damaged: not an object")
    return _Found(facts)


def _open_ledger(path: Path, found: _Found) -> Ledger:
    """The ledger; a run that had one is not begun again without it."""
    file = path / "ledger.sqlite"
    if not found.new and not file.exists():
        raise RunDirectoryError(f"{file} is missing; restore it, or choose another --run.dir to begin a new run")
    ledger = Ledger(file)
    if not found.new and ledger.meta("run_id") is None:
        ledger.close()
        raise RunDirectoryError(f"{file} is empty; restore it, or choose another --run.dir to begin a new run")
    return ledger


def _identity(config: ValidatorConfig, manifest: Manifest) -> dict[str, object]:
    """What makes a run that run: none of it may change on resume, but for `manifest`, by its number of slots."""
    return {
        "model.preset": config.model.preset,
        "run.seed": config.run.seed,  # part of the text too, and the clearer of the two to name
        "text": dataclasses.replace(manifest, max_slots=1).digest(),
        "manifest": manifest.digest(),
        "codec.state": config.codec.state,
        "optimizer.name": config.optimizer.name,
    }


def _check_identity(path: Path, found: _Found, identity: Mapping[str, object]) -> None:
    stored = found.facts.get("identity")
    if not isinstance(stored, dict):
        raise RunDirectoryError(f"{path / 'config.json'} is damaged: it names no run")
    for name, value in identity.items():
        if name == "manifest" or stored.get(name) == value:
            continue
        held = f"with --{name} {stored.get(name)}, not {value}" if "." in name else "over other text or --data settings"
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


def _earlier_keys(found: _Found, key: bytes, last_round: int) -> list[object]:
    """Keys used before this one, each with its last round: what they drew stays checkable."""
    digest = found.facts.get("evaluation_key_sha256")
    if digest in (None, key_digest(key)):
        return found.past("earlier_keys")
    used = {"sha256": digest, "key": found.facts.get("evaluation_key"), "last_round": last_round}
    return [*found.past("earlier_keys"), used]


def _earlier_manifests(found: _Found, digest: str, last_round: int) -> list[object]:
    """Manifests used before this one, each with its last round: assignments stay recomputable."""
    earlier = found.facts.get("manifest_digest")
    if earlier in (None, digest):
        return found.past("earlier_manifests")
    used = {"digest": earlier, "max_slots": _max_slots(found), "last_round": last_round}
    return [*found.past("earlier_manifests"), used]


def _max_slots(found: _Found) -> object:
    settings = found.facts.get("settings")
    data = settings.get("data") if isinstance(settings, dict) else None
    return data.get("max_slots") if isinstance(data, dict) else None


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
    """The notice for rounds after `number`, up to `last`, that are run again."""
    rounds = f"rounds {number + 1} to {last} have" if last > number + 1 else f"round {last} has"
    return f"{rounds} no checkpoint: " + (f"going on after round {number}" if number else "beginning again")


def _order_settings(config: ValidatorConfig, manifest: str) -> str:
    """Digest of the settings that orders carry: if they change, the same round is a different order."""
    carried = [config.round.deadline, config.data.windows, config.codec.gradient, config.limits.header_bytes, manifest]
    return hashlib.sha256(json.dumps(carried).encode()).hexdigest()


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    write_durably(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")
