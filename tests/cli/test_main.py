"""Commands, their help, and how failures leave."""

import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedgpt2 import __version__
from fedgpt2.cli import main as entry
from fedgpt2.cli.benches import Bench
from fedgpt2.cli.data import Prefetch, Show, Verify
from fedgpt2.cli.demo import Demo
from fedgpt2.cli.export import Export
from fedgpt2.cli.parsing import parse
from fedgpt2.cli.process import exit_on_interrupt
from fedgpt2.cli.sample import Sample
from fedgpt2.cli.simulate import Simulate
from fedgpt2.config import MinerConfig, ValidatorConfig
from fedgpt2.errors import CorpusError, UsageError

SRC = Path(__file__).parents[2] / "src"


def python(*argv: str, cwd: Path = SRC) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter; it finds the package by itself only where a script lies beside it."""
    path = {} if argv[0].endswith(".py") else {"PYTHONPATH": str(SRC)}
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=60, cwd=cwd, env=path, check=False
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The miner's command replaced by one that does what the test says."""
    behaviour = SimpleNamespace(failure=None, code=0)

    def run(argv: list[str]) -> int:
        if behaviour.failure is not None:
            raise behaviour.failure
        behaviour.argv = argv
        return behaviour.code

    module = SimpleNamespace(main=run)
    monkeypatch.setattr(entry.importlib, "import_module", lambda name: module)
    return behaviour


def test_a_command_gets_its_words_and_gives_its_code(command: SimpleNamespace) -> None:
    command.code = 7
    assert entry.main(["miner", "--device", "cpu"]) == 7
    assert command.argv == ["--device", "cpu"]


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (UsageError("no such flag"), 2, "fedgpt2 miner: no such flag\n"),
        (CorpusError("two\n  lines"), 1, "fedgpt2 miner: two lines\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "fedgpt2 miner: [Errno 13] Permission denied: 'x'\n"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(0), 0, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_every_failure_is_one_line_and_a_code(
    failure: BaseException, code: int, line: str, command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    command.failure = failure
    assert entry.main(["miner"]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mine"], "fedgpt2: unknown command mine; did you mean miner?"),
        (["--foo"], "fedgpt2: unknown flag --foo"),
        (["bench", "nothing"], "fedgpt2 bench: unknown bench nothing"),
        (["miner", "--foo"], "fedgpt2 miner: unknown flag --foo"),
    ],
)
def test_unknown_words_exit_2(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(words) == 2
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    ("command", "flag"), [("sample", "--run.dir"), ("export", "--run.dir"), ("ranking", "--run.dir")]
)
def test_a_path_that_is_empty_is_one_line(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([command, flag, "", *(["--out", "x"] if command == "export" else [])]) == 2
    assert capsys.readouterr().err == f"fedgpt2 {command}: {flag} is empty: name a path, or leave it out\n"


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--run.dir", "~nosuch/x"],
        ["validator", "--config", "~nosuch/x"],
        ["demo", "--run.dir", "~nosuch/x"],
    ],
)
def test_a_home_that_is_none_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(words) == 2
    command, flag, value = words
    assert capsys.readouterr().err == f"fedgpt2 {command}: {flag} {value}: no such home directory\n"


def test_an_attack_that_is_none_is_one_line() -> None:
    answer = python("-m", "fedgpt2.cli.hostile", "--attack", "nosuch", "--device", "cpu")
    assert answer.returncode == 2
    assert answer.stderr.startswith("fedgpt2.cli.hostile: --attack nosuch: no attack of a miner alone; one of ")
    assert answer.stderr.count("\n") == 1


_SAY = "from fedgpt2.cli.main import reported; reported('x', lambda: print('5Grw\u2026 \u2713') or 0)"


@pytest.mark.parametrize(("encoding", "said"), [("ascii", rb"5Grw\u2026 \u2713"), ("utf-8", "5Grw… ✓".encode())])
def test_an_encoding_without_a_character_gets_its_number(encoding: str, said: bytes) -> None:
    path = {"PYTHONPATH": str(SRC), "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", _SAY], capture_output=True, env=path, check=False)
    assert (done.stdout.strip(), done.stderr) == (said, b"")


def test_a_program_started_without_output_runs_all_the_same() -> None:
    line = f'"{sys.executable}" -m fedgpt2 sample --run.dir /nosuch >&- 2>&-'
    done = subprocess.run(line, shell=True, env={"PYTHONPATH": str(SRC)}, check=False)  # noqa: S602
    assert done.returncode == 1


def test_a_failure_that_nobody_hears_of_keeps_its_code() -> None:
    command = [sys.executable, "-m", "fedgpt2", "--nonsense"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={"PYTHONPATH": str(SRC)}) as child:
        assert child.stderr is not None
        child.stderr.close()
        assert child.wait(60) == 2


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedgpt2 {__version__}\n"
    assert entry.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("demo", "miner", "validator"))
    assert entry.main([]) == 2


@pytest.mark.parametrize("word", ["-h", "--help", "--help-all"])
@pytest.mark.parametrize("name", entry.COMMANDS)
def test_every_listed_command_exists_and_has_help(name: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([name, word]) == 0
    assert f"usage: fedgpt2 {name}" in capsys.readouterr().out


EXAMPLES: dict[str, tuple[type, int]] = {
    "miner": (MinerConfig, 0),
    "validator": (ValidatorConfig, 0),
    "simulate": (Simulate, 0),
    "demo": (Demo, 0),
    "sample": (Sample, 0),
    "export": (Export, 0),
    "data verify": (Verify, 0),
    "data prefetch": (Prefetch, 0),
    "data show": (Show, 2),
    "bench transport": (Bench, 0),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_command_is_a_valid_command_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings, numbers = EXAMPLES[name]
    assert entry.main([*name.split(), "--help"]) == 0
    example = re.search(rf"^example: fedgpt2 {name} (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert example is not None
    words = shlex.split(example[1])[numbers:]
    assert parse(settings, words, prog="", about="") != settings()


@pytest.mark.parametrize(
    "line", ["-m fedgpt2 --help", "-m fedgpt2 miner --help", "-m fedgpt2 simulate --help-all", "validator.py --help"]
)
def test_help_answers_in_half_a_second(line: str) -> None:
    """Counted in seconds of the processor, for other tests run beside this one."""
    seconds = []
    for _ in range(3):
        before = spent()
        assert python(*line.split()).returncode == 0
        seconds.append(spent() - before)
    assert min(seconds) < 0.5


def spent() -> float:
    """Seconds of the processor that ended children of this process took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", ["miner", "validator"])
def test_the_scripts_run_from_anywhere_without_an_install(name: str, tmp_path: Path) -> None:
    answer = python(str(SRC / f"{name}.py"), "--nonsense", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr == f"fedgpt2 {name}: unknown flag --nonsense\n"


def test_a_bad_flag_imports_nothing_heavy() -> None:
    code = "import sys; from fedgpt2.cli.main import main; main(['validator', '--nonsense']); print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python("-c", code).stdout.split()}
    assert "jsonargparse" in loaded
    assert not loaded & {"torch", "bittensor", "aiohttp", "numpy", "rich", "tiktoken"}


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    command = [sys.executable, "-m", "fedgpt2", "validator", "--help"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(SRC)}
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert "Traceback" not in child.stderr.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_output_is_no_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "fedgpt2", "--version"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(SRC)}, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_a_thread_at_work_does_not_hold_the_exit_nor_break_it() -> None:
    work = "a = torch.randn(3000, 3000)\nwhile True: a = (a @ a).tanh()"
    code = (
        "import sys, threading, time, torch\n"
        "from fedgpt2.cli.process import exit_process\n"
        f"threading.Thread(target=exec, args=({work!r}, {{'torch': torch}}), daemon=True).start()\n"
        "time.sleep(0.3); print('done', end=''); exit_process(3)"
    )
    started = time.monotonic()
    answer = python("-c", code)
    assert (answer.returncode, answer.stdout, answer.stderr) == (3, "done", "")
    assert time.monotonic() - started < 20


def test_a_process_without_other_threads_ends_the_usual_way() -> None:
    code = "import atexit; from fedgpt2.cli.process import exit_process; atexit.register(print, 'bye'); exit_process(0)"
    assert python("-c", code).stdout == "bye\n"


@pytest.mark.parametrize(
    ("command", "module"), [("miner", "cli.parsing"), ("miner", "miner.program"), ("validator", "validator.program")]
)
def test_an_interrupt_in_the_midst_of_an_import_is_not_lost(command: str, module: str) -> None:
    """A weak reference's callback, such as each import runs, forgets what is raised in it."""
    code = (
        "import signal, sys, weakref\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == 'fedgpt2.{module}':\n"
        "            gone = set()\n"
        "            kept = weakref.ref(gone, lambda _: signal.raise_signal(signal.SIGINT))\n"
        "            del gone\n"
        "            print('went on', flush=True)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from fedgpt2.cli.main import console\n"
        f"sys.argv[1:] = ['{command}', '--device', 'cpu', '--data.source', 'text:none']\n"
        "console()"
    )
    ended = python("-c", code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    for before in (signal.SIG_IGN, signal.default_int_handler):
        kept = signal.signal(signal.SIGINT, before)
        try:
            with exit_on_interrupt():
                assert (signal.getsignal(signal.SIGINT) is before) == (before is signal.SIG_IGN)
            assert signal.getsignal(signal.SIGINT) is before
        finally:
            signal.signal(signal.SIGINT, kept)


def test_a_thread_may_run_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(entry.main, ["sample", "--run.dir", ""]).result() == 2
    assert "--run.dir is empty" in capsys.readouterr().err
