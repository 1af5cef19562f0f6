"""`fedgpt2 demo`: a validator, four honest miners and a hostile one as real processes on loopback.

It needs no chain, wallet, GPU or network, and leaves no process running. One run directory holds everything: the run,
wallets/, miners/ (their journals) and logs/.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedgpt2.cli.demo_miners import DemoMiners, choose_miners
from fedgpt2.cli.demo_report import evaluate, report
from fedgpt2.cli.parsing import parse
from fedgpt2.cli.process_group import ProcessGroup
from fedgpt2.config import path_of, setting
from fedgpt2.errors import SetupError, UsageError
from fedgpt2.observe.board import Board, Recorder
from fedgpt2.observe.factory import observer_for
from fedgpt2.observe.feed import follow, replay_line
from fedgpt2.observe.observer import Observer
from fedgpt2.storage.files import disk_errors

__all__ = ["Demo", "main"]

_HONEST = 4
_POLL_SECONDS = 0.2  # between reads of the validator's events
_CLOSING_SECONDS = 15.0  # for the validator's last checkpoint

# learns well in a minute on two cores: many small rounds, a high learning rate that decays soon
_VALIDATOR = (
    *("--wallet.name", "validator", "--model.preset", "nano", "--data.windows", "4", "--round.deadline", "30"),
    *("--optimizer.lr", "3e-3", "--optimizer.min_lr", "5e-4", "--optimizer.warmup", "2", "--optimizer.beta1", "0.7"),
    *("--run.eval_every", "5", "--run.eval_windows", "32", "--checkpoint.every", "20"),
)
_HORIZON = 40  # rounds of the cosine if time ends the run: slow machines do 25, fast ones 60
_BOTH = ("--device", "cpu", "--data.source", "sample")
_MINER = ("--run.threads", "1")  # the validator uses all cores: it computes while the miners wait for it


@dataclass(frozen=True)
class Demo:
    """Settings of `fedgpt2 demo`."""

    seconds: float = setting(98.0, "seconds to train; doubled if a goal is not reached by then", least=1)
    rounds: int = setting(0, "rounds to train; 0: as many as time allows", least=0)
    seed: int = setting(1337, "seed of the run and of the hostile miner's position", least=0, most=2**53 - 1)
    run_dir: str = setting("", "new run directory; empty: runs/demo-DATE-TIME", flag="run.dir")
    plain: bool = setting(False, "print plain lines instead of the live console", flag="run.plain")
    no_hostile: bool = setting(False, "run honest miners only", flag="no-hostile")


def main(argv: Sequence[str]) -> int:
    """Run the demo and print a report; return 0 if all goals were met, 1 if not, 130 if interrupted."""
    began = time.monotonic()
    settings = parse(
        Demo,
        argv,
        prog="fedgpt2 demo",
        about="Train a small GPT-2 with four honest miners and a hostile one on this machine, in two minutes.",
        example="fedgpt2 demo --seconds 60 --run.plain",
    )
    folder = _create_folder(settings)
    try:
        with _interruptible(), ProcessGroup(folder / "logs") as processes:
            miners = _start(processes, folder, settings)
            board = _watch(processes, miners, settings, began)
            processes.stop()
            return report(folder, processes, board, miners, sys.stdout)
    except KeyboardInterrupt:
        print(f"interrupted; committed rounds are in {folder}", file=sys.stderr)
        return 130


def _create_folder(settings: Demo) -> Path:
    """Create the run directory. Raises UsageError if it holds something already."""
    default = time.strftime("runs/demo-%Y%m%d-%H%M%S")
    folder = path_of("--run.dir", settings.run_dir or default)
    with disk_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"--run.dir {folder}: not empty; a demo starts in a new folder")
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _start(processes: ProcessGroup, folder: Path, settings: Demo) -> DemoMiners:
    miners = choose_miners(_HONEST, settings.seed, hostile=not settings.no_hostile)
    wallets = ("--wallet.path", str(folder / "wallets"))
    for number, port in enumerate(miners.ports, 1):
        module, *command = ("fedgpt2.cli.hostile",) if port == miners.hostile else ("fedgpt2", "miner")
        name = ("--wallet.name", "miners", "--wallet.hotkey", f"M{number}", "--axon.port", str(port))
        flags = (*command, *_BOTH, *_MINER, *wallets, *name, "--run.dir", str(folder / "miners"))
        processes.start(f"miner-{number}", module, flags)
    axons = ("--axons", *map(str, miners.ports), "--round.min_miners", str(len(miners.ports)))
    run = ("--run.dir", str(folder), "--run.seed", str(settings.seed), "--rounds", str(settings.rounds))
    length = ("--optimizer.horizon", str(settings.rounds or _HORIZON))
    flags = (*_BOTH, *wallets, *_VALIDATOR, *axons, *run, *length)
    processes.start("validator", "fedgpt2.cli.demo_validator", flags)
    return miners


def _watch(processes: ProcessGroup, miners: DemoMiners, settings: Demo, began: float) -> Board:
    """Show the validator's events until it ends; interrupt it when the time is over. Returns the events' summary."""
    feed, board, asked = follow(processes.log("validator")), Board(), 0.0
    with observer_for(sys.stdout, plain=settings.plain) as observer:
        observer.waiting("starting")
        while processes.exit_code("validator") is None:
            _show(next(feed), observer, board)
            now = time.monotonic()
            if not asked and now > began + settings.seconds * (2 if evaluate(board, miners).missed else 1):
                observer.waiting("time is up: the validator writes its last checkpoint")
                processes.interrupt("validator")
                asked = now
            if asked and now > asked + _CLOSING_SECONDS:
                raise SetupError(f"the validator did not end in time; see {processes.errors('validator')}")
            processes.wait("validator", _POLL_SECONDS)
        _show(next(feed), observer, board)
    if code := processes.exit_code("validator"):
        cause = processes.last_error("validator") or f"exit code {code}"
        raise SetupError(f"the validator ended early: {cause}; see {processes.errors('validator').parent}")
    return board


def _show(lines: list[bytes], observer: Observer, board: Board) -> None:
    for line in lines:
        replay_line(line, observer)
        replay_line(line, Recorder(board))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP raise KeyboardInterrupt, as does SIGINT even if it was ignored.

    A shell script starts background commands with SIGINT ignored.
    """
    handled = [number for number in _SIGNALS if not _ignored_by_nohup(number)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignored_by_nohup(number: int) -> bool:
    """Whether `nohup` set this signal to be ignored, so that the demo outlives its terminal."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


_SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if os.name == "posix" else ()))
