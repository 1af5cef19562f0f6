"""Compare round trips of the founding design (bittensor 10.5's axon and dendrite) and of fedgpt2 in one run.

    .venv/bin/python benchmarks/founding_stack.py --preset small --repeats 3 --json

bittensor 10.5.0 is the last release with axon and dendrite; it and the 11.x that this package uses share an import
name, so it has a virtual environment of its own (.venv-founding, created on the first run). Both send the model's state
to one miner and return as many bytes of gradient, over loopback, between real processes, without computing; both sides
end with tensors. founding/peer.py lists what the founding side needs to work at this size.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedgpt2.cli.bench.report import Row, interleave, report
from fedgpt2.cli.bench.transport import ours
from fedgpt2.cli.demo_miners import free_ports
from fedgpt2.config import Model
from fedgpt2.errors import FedGPT2Error, SetupError
from fedgpt2.protocol.tensors import data_bytes

HERE = Path(__file__).resolve().parent
VENV = HERE.parent / ".venv-founding"
PEER = HERE / "founding" / "peer.py"
PACKAGES = ("bittensor==10.5.0", "torch==2.13.0", "numpy==2.4.6")


class Peer:
    """A process of the founding side: it answers each line with a JSON line."""

    def __init__(self, role: str, *arguments: str) -> None:
        self._role = role
        self._process = subprocess.Popen(
            [str(VENV / "bin" / "python"), str(PEER), role, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = self._answer()

    def ask(self) -> dict[str, Any]:
        """Send a line and return the answer. Raises SetupError when the process fails or has ended."""
        if self._process.stdin is not None:
            print(file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        answer = json.loads(line) if line else {"error": "it ended without an answer"}
        if "error" in answer:
            raise SetupError(f"founding {self._role}: {answer['error']}")
        return answer


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    try:
        make_environment()
        return measure(settings.preset, settings.repeats, as_json=settings.json)
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code


def make_environment() -> None:
    """Create the founding side's virtual environment if it is missing. Raises SetupError."""
    done = VENV / ".installed"
    if done.exists():
        return
    print(f"making {VENV.name} with {', '.join(PACKAGES)}", file=sys.stderr)
    python = str(VENV / "bin" / "python")
    for command in ([sys.executable, "-m", "venv", str(VENV)], [python, "-m", "pip", "install", "--quiet", *PACKAGES]):
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise SetupError(f"{VENV.name} could not be made; the command was: {' '.join(command)}")
    done.touch()


def measure(preset: str, repeats: int, *, as_json: bool) -> int:
    """Take one unmeasured turn each, then `repeats` turns, and report."""
    schema = Model(preset).shape.schema()
    body = data_bytes(schema, "F32")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        (Path(folder) / "schema.json").write_text(json.dumps(schema))
        candidate = stack.enter_context(ours(preset, folder, 1))
        miner, validator = stack.enter_context(founding(Path(folder)))
        peaks: dict[str, tuple[float, float]] = {}
        turns = {
            "fedgpt2": partial(candidate.trip, 1, peaks),
            "bittensor": partial(founding_trip, miner, validator, peaks),
        }
        rows = [row(name, times, *peaks[name]) for name, times in interleave(turns, repeats).items()]
    factors = sorted(theirs / own for own, theirs in zip(rows[0].seconds, rows[1].seconds, strict=True))
    report(
        "founding_stack",
        rows,
        as_json=as_json,
        notes=[
            f"{len(schema)} tensors, {body / 1e6:.1f} MB of state out and as much of gradient back, one miner",
            f"fedgpt2 is {factors[len(factors) // 2]:.1f}x as fast as {PACKAGES[0]} (median of {len(factors)} turns)",
        ],
    )
    return 0


def row(name: str, times: Sequence[float], validator: float, miner: float) -> Row:
    """A row with the peak memory (MB) of both sides."""
    peaks = {"validator_peak_mb": round(validator, 1), "miner_peak_mb": round(miner, 1)}
    return Row(name, times, max(validator, miner), peaks)


@contextlib.contextmanager
def founding(folder: Path) -> Iterator[tuple[Peer, Peer]]:
    """Start an axon and a dendrite."""
    common = (str(folder / "schema.json"), str(folder / "founding-wallets"), str(free_ports(1)[0]))
    miner = Peer("miner", *common)
    try:
        validator = Peer("validator", *common, str(miner.ready["hotkey"]))
        try:
            yield miner, validator
        finally:
            validator.close()
    finally:
        miner.close()


def founding_trip(miner: Peer, validator: Peer, peaks: dict[str, tuple[float, float]]) -> float:
    """Seconds of one trip. Raises SetupError when it fails or the gradients come back incomplete."""
    answer = validator.ask()
    if not answer["complete"]:
        raise SetupError("founding validator: the gradients came back incomplete")
    peaks["bittensor"] = (float(answer["peak_mb"]), float(miner.ask()["peak_mb"]))
    return float(answer["seconds"])


if __name__ == "__main__":
    sys.exit(main())
