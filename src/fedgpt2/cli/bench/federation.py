"""A federation for measuring: miners that stay, validators that come and go, all real processes on loopback."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgpt2.cli.demo_miners import free_ports
from fedgpt2.cli.process_group import ProcessGroup
from fedgpt2.errors import SetupError

__all__ = ["Federation", "Stay", "federation"]

_TICK = 0.05  # seconds between looks at a validator
_CLOSING = 30.0  # seconds it has for its last checkpoint
_COMMON = ("--device", "cpu", "--data.source", "sample")

Round = dict[str, Any]  # a line of rounds.jsonl


@dataclass(frozen=True)
class Stay:
    """What one validator did: all rounds of its run directory, older ones too, and its peak memory (MB)."""

    rounds: list[Round]
    peak_mb: float


@dataclass(frozen=True)
class Federation:
    """Miners that listen on `ports`, and the folder that holds everything: wallets/, miners/, logs/ and runs."""

    folder: Path
    processes: ProcessGroup
    ports: tuple[int, ...]

    def train(self, run: str, *flags: str, miners: int = 0, seconds: float = 0.0, limit: float = 600.0) -> Stay:
        """A validator's stay on run directory `run`, from start to end.

        It works with the first `miners` miners (0: all) and is interrupted after `seconds`, if given. Raises
        SetupError with its last words if it fails, or has not ended after `limit` seconds.
        """
        ports = self.ports[: miners or None]
        crowd = ("--axons", *map(str, ports), "--round.min_miners", str(len(ports)))
        where = ("--wallet.name", "validator", *_wallets(self.folder), "--run.dir", str(self.run(run)))
        self.processes.start("validator", "fedgpt2", ("validator", *_COMMON, *where, *crowd, "--run.plain", *flags))
        began, asked, peak = time.monotonic(), False, 0.0
        while (code := self.processes.wait("validator", _TICK)) is None:
            peak = max(peak, _peak_mb(self.processes.pid("validator")))
            spent = time.monotonic() - began
            if seconds and spent > seconds and not asked:
                self.processes.interrupt("validator")
                asked = True
            if spent > (seconds + _CLOSING if seconds else limit):
                raise SetupError(f"the validator did not end in time; its logs: {self.processes.log('validator')}")
        if code:
            raise SetupError(f"the validator ended: {self.processes.last_error('validator')}")
        lines = (self.run(run) / "rounds.jsonl").read_text().splitlines()
        return Stay([json.loads(line) for line in lines], peak)

    def miner_peak_mb(self) -> float:
        """The most memory any of the miners has had resident, MB of 10^6 bytes."""
        return max(_peak_mb(self.processes.pid(f"miner-{number}")) for number in range(1, len(self.ports) + 1))

    def run(self, name: str) -> Path:
        """The run directory of that name."""
        return self.folder / "runs" / name


@contextmanager
def federation(folder: Path, miners: int, *flags: str) -> Iterator[Federation]:
    """`miners` miners with `flags`, on free ports; they end with the context, and so does a validator."""
    ports = free_ports(miners)
    with ProcessGroup(folder / "logs") as processes:
        for number, port in enumerate(ports, 1):
            who = ("--wallet.name", "miners", "--wallet.hotkey", f"M{number}", *_wallets(folder))
            where = ("--axon.port", str(port), "--run.dir", str(folder / "miners"))
            processes.start(f"miner-{number}", "fedgpt2", ("miner", *_COMMON, *who, *where, *flags))
        yield Federation(folder, processes, ports)


def _peak_mb(process: int) -> float:
    """The most memory a live process has had resident; 0 where the system does not say."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), 0.0)


def _wallets(folder: Path) -> Sequence[str]:
    return ("--wallet.path", str(folder / "wallets"))
