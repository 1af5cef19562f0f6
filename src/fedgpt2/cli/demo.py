"""`fedgpt2 demo`: a validator, four honest miners and a hostile one, as real processes on loopback.

It needs no chain, no wallet, no GPU and no network, and leaves nothing running. Everything lies in one run
directory: the run itself, wallets/, miners/ (their journals) and logs/.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedgpt2.cli.demo_miners import Cast, draw
from fedgpt2.cli.demo_report import judge, report
from fedgpt2.cli.parsing import parse
from fedgpt2.cli.process_group import Crew
from fedgpt2.config import path_of, setting
from fedgpt2.errors import SetupError, UsageError
from fedgpt2.observe.board import Board, Recorder
from fedgpt2.observe.factory import observer_for
from fedgpt2.observe.feed import follow, replay_line
from fedgpt2.observe.observer import Observer
from fedgpt2.storage.files import disk_errors

__all__ = ["Demo", "main"]

_HONEST = 4
_TICK = 0.2  # seconds between looks at what the validator has said
_CLOSING = 15.0  # seconds the validator has for its last checkpoint

# What learns well in a minute on two cores: small rounds, many of them, a high rate that soon falls.
_VALIDATOR = (
    *("--wallet.name", "validator", "--model.preset", "nano", "--data.windows", "4", "--round.deadline", "30"),
    *("--optimizer.lr", "3e-3", "--optimizer.min_lr", "5e-4", "--optimizer.warmup", "2", "--optimizer.beta1", "0.7"),
    *("--run.eval_every", "5", "--run.eval_windows", "32", "--checkpoint.every", "20"),
)
_HORIZON = 40  # rounds of the cosine when time, not --rounds, ends the run: a slow machine does 25, a fast one 60
_BOTH = ("--device", "cpu", "--data.source", "sample")
_MINER = ("--run.threads", "1")  # the validator has all cores: it computes while the miners wait for it


@dataclass(frozen=True)
class Demo:
    """Settings of `fedgpt2 demo`."""

    seconds: float = setting(98.0, "seconds to train; a slow machine that has not learned by then gets twice", least=1)
    rounds: int = setting(0, "rounds to train; 0: as many as the time allows", least=0)
    seed: int = setting(1337, "seed of the run, and of which miner is the hostile one", least=0, most=2**53 - 1)
    run_dir: str = setting("", "run directory, a new one; none: runs/demo-DATE-TIME", flag="run.dir")
    plain: bool = setting(False, "plain lines instead of the live console", flag="run.plain")
    no_hostile: bool = setting(False, "honest miners only", flag="no-hostile")


def main(argv: Sequence[str]) -> int:
    """Run it and report; 0 when it learned and the hostile miner was refused in every way, 130 when interrupted."""
    began = time.monotonic()
    about = "Trains a small GPT-2 with four honest miners and a hostile one, on this machine, in two minutes."
    settings = parse(Demo, argv, prog="fedgpt2 demo", about=about)
    folder = _folder(settings)
    try:
        with _interrupts(), Crew(folder / "logs") as crew:
            cast = _start(crew, folder, settings)
            board = _watch(crew, cast, settings, began)
            crew.stop()
            return report(folder, crew, board, cast, sys.stdout)
    except KeyboardInterrupt:
        print(f"interrupted; what was committed lies in {folder}", file=sys.stderr)
        return 130


def _folder(settings: Demo) -> Path:
    """The run directory, made. Raises UsageError when something is there already."""
    default = time.strftime("runs/demo-%Y%m%d-%H%M%S")
    folder = path_of("--run.dir", settings.run_dir or default)
    with disk_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"--run.dir {folder}: not empty; a demo starts in a new folder")
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _start(crew: Crew, folder: Path, settings: Demo) -> Cast:
    cast = draw(_HONEST, settings.seed, hostile=not settings.no_hostile)
    wallets = ("--wallet.path", str(folder / "wallets"))
    for number, port in enumerate(cast.ports, 1):
        module = ("fedgpt2.cli.hostile",) if port == cast.hostile else ("fedgpt2", "miner")
        name = ("--wallet.name", "miners", "--wallet.hotkey", f"M{number}", "--axon.port", str(port))
        flags = (*module[1:], *_BOTH, *_MINER, *wallets, *name, "--run.dir", str(folder / "miners"))
        crew.start(f"miner-{number}", module[0], flags)
    axons = ("--axons", *map(str, cast.ports), "--round.min_miners", str(len(cast.ports)))
    run = ("--run.dir", str(folder), "--run.seed", str(settings.seed), "--rounds", str(settings.rounds))
    length = ("--optimizer.horizon", str(settings.rounds or _HORIZON))
    crew.start("validator", "fedgpt2.cli.feed", (*_BOTH, *wallets, *_VALIDATOR, *axons, *run, *length))
    return cast


def _watch(crew: Crew, cast: Cast, settings: Demo, began: float) -> Board:
    """Show the validator's events until it ends; ask it to when the time is up. Returns what was seen."""
    feed, board, asked = follow(crew.log("validator")), Board(), 0.0
    with observer_for(sys.stdout, plain=settings.plain) as observer:
        observer.waiting("starting")
        while crew.ended("validator") is None:
            _show(next(feed), observer, board)
            now = time.monotonic()
            if not asked and now > began + settings.seconds * (2 if judge(board, cast).missed else 1):
                observer.waiting("time is up: the validator writes its last checkpoint")
                crew.interrupt("validator")
                asked = now
            if asked and now > asked + _CLOSING:
                raise SetupError(f"the validator did not end in time; see {crew.errors('validator')}")
            crew.wait("validator", _TICK)
        _show(next(feed), observer, board)
    if code := crew.ended("validator"):
        said = crew.last_words("validator") or f"exit code {code}"
        raise SetupError(f"the validator ended early: {said}; see {crew.errors('validator').parent}")
    return board


def _show(lines: list[bytes], observer: Observer, board: Board) -> None:
    for line in lines:
        replay_line(line, observer)
        replay_line(line, Recorder(board))


@contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does, children first; Ctrl-C too where a script's shell had it ignored."""
    heard = [number for number in _SIGNALS if not _of_nohup(number)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _of_nohup(number: int) -> bool:
    """Whether a signal is one that `nohup` had ignored, for us to outlive the terminal."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


_SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if os.name == "posix" else ()))
