"""Run a benchmark and write its output to a record, with date, command and log.

    .venv/bin/python benchmarks/record.py NAME [--log TEXT] -- COMMAND --json

writes benchmarks/results/NAME-DATE.json. `python` and `fedgpt2` in COMMAND mean this environment's.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    """Run, write; the command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--log", default="")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    now = datetime.now(UTC)
    ran = subprocess.run(resolved(arguments.command), stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode not in (0, 1) or not ran.stdout.strip():
        return ran.returncode or 1
    document = {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(arguments.command),
        "log": " ".join([arguments.log, f"load before {load:.2f}, took {time.monotonic() - began:.0f} s"]).strip(),
        **json.loads(ran.stdout),
    }
    path = write(arguments.name, document, now)
    print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return ran.returncode


def write(name: str, document: Mapping[str, Any], now: datetime) -> Path:
    """Write a record of this day; return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def resolved(command: Sequence[str]) -> list[str]:
    """Replace `python` and `fedgpt2` by this interpreter."""
    first, *rest = command
    module = {"python": [], "fedgpt2": ["-m", "fedgpt2"]}
    return [sys.executable, *module[first], *rest] if first in module else [first, *rest]


if __name__ == "__main__":
    sys.exit(main())
