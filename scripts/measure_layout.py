"""Count what a reader of the code has to know: files that one round touches, imports of the round, sizes.

    python scripts/measure_layout.py [--root CHECKOUT] [--json]

Trains three rounds of `tiny` on the embedded text with a validator and two miners, real processes over loopback, and
lists the files of src/fedgpt2 in which a function runs while rounds.jsonl has one line: from the commit of round 1 to
the commit of round 2. Module and class bodies do not count. Imports are read from the source, lazy ones included. The
script relies only on the two commands of README.md and on rounds.jsonl, so it also counts older checkouts.
"""

import argparse
import ast
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType

ROUNDS, LIMIT = 3, 300.0  # rounds trained, seconds they may take
_POLL = 0.001  # seconds between looks at rounds.jsonl


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="checkout to count")
    parser.add_argument("--json", action="store_true", help="print JSON, with the names of the files")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    touched, imported = files_of_a_round(root), imports(root, "fedgpt2.validator.round")
    lines = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in modules(root).values()}
    longest = max(lines, key=lambda name: lines[name])
    counts = {
        "files in which a function runs in round 2": len(set().union(*touched.values())),
        **{f"  of the {role}": len(files) for role, files in touched.items()},
        "modules that validator/round.py imports, directly or not, with itself": len(imported),
        f"lines of the longest file, {longest}": lines[longest],
        "lines of src/fedgpt2": sum(lines.values()),
        "lines of Python in benchmarks/": sum(len(p.read_text().splitlines()) for p in tracked(root, "*.py")),
        "files of results in benchmarks/": len(tracked(root, "results/*")),
    }
    if arguments.json:
        files = {role: sorted(files) for role, files in touched.items()}
        print(json.dumps({**counts, "files": files, "imports": sorted(imported)}, indent=2))
    else:
        print("\n".join(f"{count:7,}  {what}" for what, count in counts.items()))
    return 0


def tracked(root: Path, pattern: str) -> list[Path]:
    """Files of benchmarks/ that git tracks or would add."""
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", f"benchmarks/{pattern}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [root / name for name in listed if (root / name).is_file()]


def modules(root: Path) -> dict[str, Path]:
    """All modules of the package, by dotted name."""
    source = root / "src"
    names = {path: ".".join(path.relative_to(source).with_suffix("").parts) for path in source.rglob("fedgpt2/**/*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(root: Path, start: str) -> set[str]:
    """`start` and the modules that it imports, directly or not, on import or later; packages only if named."""
    known, found, waiting = modules(root), {start}, [start]
    while waiting:
        named = set(_imported(known[waiting.pop()], known))
        waiting += named - found
        found |= named
    return found


def _imported(path: Path, known: Collection[str]) -> Iterator[str]:
    """Modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


def files_of_a_round(root: Path) -> dict[str, set[str]]:
    """Files of src/fedgpt2 in which a function ran in round 2, of the validator and of both miners."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, ports = Path(name), _free_ports(2)
        common = ("--device", "cpu", "--data.source", "sample", "--wallet.path", str(folder / "wallets"))
        for i, port in enumerate(ports, 1):
            who = ("--wallet.name", "miners", "--wallet.hotkey", f"M{i}", "--axon.port", str(port))
            stack.enter_context(_program(root, folder, f"miner{i}", *common, *who, "--run.dir", str(folder / "miners")))
        size = ("--model.preset", "tiny", "--rounds", str(ROUNDS), "--round.min_miners", "2")
        who = ("--wallet.name", "validator", "--axons", *map(str, ports), "--run.dir", str(folder / "run"))
        validator = stack.enter_context(_program(root, folder, "validator", *common, *who, *size))
        if validator.wait(LIMIT):
            sys.exit(f"the validator failed: {(folder / 'validator.log').read_text()[-2000:]}")
        miners = _touched(root, folder / "miner1.json") | _touched(root, folder / "miner2.json")
        return {"validator": _touched(root, folder / "validator.json"), "miners": miners}


def _touched(root: Path, found: Path) -> set[str]:
    package = str(root / "src" / "fedgpt2") + os.sep
    return {name.removeprefix(package) for name in json.loads(found.read_text()) if name.startswith(package)}


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _program(root: Path, folder: Path, name: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run src/miner.py or src/validator.py under the profiler; interrupt it at the end of the block."""
    script = root / "src" / f"{name.rstrip('0123456789')}.py"
    watched, out = folder / "run" / "rounds.jsonl", folder / f"{name}.json"
    command = [sys.executable, __file__, "--profile", str(script), str(watched), str(out), *flags]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Profile:
    """Records the files in which functions run while `watched` has one line, and writes them to `out`."""

    def __init__(self, watched: Path, out: Path) -> None:
        self._watched, self._out = watched, out
        self._files: set[str] = set()
        self._recording = False

    def start(self) -> None:
        """Profile this thread and all later ones."""
        threading.Thread(target=self._watch, daemon=True).start()
        threading.setprofile(self._call)
        sys.setprofile(self._call)

    def _call(self, frame: FrameType, event: str, _argument: object) -> None:
        if self._recording and event == "call" and frame.f_code.co_flags & CO_OPTIMIZED:
            self._files.add(frame.f_code.co_filename)

    def _watch(self) -> None:
        while (lines := self._lines()) < 2:
            self._recording = lines == 1
            time.sleep(_POLL)
        self._recording = False
        self._out.write_text(json.dumps(sorted(self._files)))

    def _lines(self) -> int:
        return self._watched.read_bytes().count(b"\n") if self._watched.exists() else 0


def profiled(script: str, watched: str, out: str, *flags: str) -> None:
    """Run a script as the main program under the profiler."""
    sys.argv = [script, *flags]
    sys.path[0] = str(Path(script).parent)
    Profile(Path(watched), Path(out)).start()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--profile"]:
        profiled(*sys.argv[2:])
    else:
        sys.exit(main())
