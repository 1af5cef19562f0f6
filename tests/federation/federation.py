"""A federation on this machine: wallets, miners, validators, all in one folder, all gone when it is closed."""

import contextlib
import json
import random
import socket
import sqlite3

from .program import HERE, MAIN, Forked, wait_until

__all__ = ["Federation", "Gate", "free_port", "write_corpus"]


def free_port():
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_corpus(path):
    """600 kB of text: enough for the three pools, little enough to be tokenised in an instant."""
    draw = random.Random(7)  # noqa: S311
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(3000)]
    lines = (" ".join(draw.choices(words, k=12)) + "." for _ in range(8000))
    path.write_text("\n\n".join(lines))
    return path


class Gate:
    """Lets a gated miner compute."""

    def __init__(self, path):
        self.path = path
        self.let(0)

    def let(self, calls):
        """Let this many calls through, all in all."""
        written = self.path.with_suffix(".new")
        written.write_text(str(calls))
        written.replace(self.path)

    def open(self):
        """Let every call through."""
        self.let(10**6)

    @property
    def calls(self):
        """Calls that have begun, of all processes together."""
        calls = self.path.with_suffix(".calls")
        return len(calls.read_text()) if calls.exists() else 0

    def wait_for_call(self, number, *programs):
        """Until the `number`-th call has begun; fails at once if one of `programs` has ended."""
        wait_until(lambda: self.calls >= number, f"call {number}", programs)


class Federation:
    """Starts programs with settings that make a round of `tiny` take a fraction of a second."""

    def __init__(self, folder, corpus, wallets=None):
        self.folder = folder
        self.wallets = wallets or folder / "wallets"
        self.source = f"text:{corpus}"
        self._programs = []

    def start(self, name, argv, *, kind=Forked, environment=(), program=MAIN):
        """A command, closed with the federation."""
        started = kind(name, argv, self.folder, dict(environment), program)
        self._programs.append(started)
        return started

    def miner(self, name="M1", *flags, port=0, folder=None, run=None, **how):
        """A miner that listens: it has `.port` and `.hotkey`. `run` names its folder, by default after its hotkey."""
        argv = ["miner", "--wallet.name", "miners", "--wallet.hotkey", name, "--axon.port", port, *self._common()]
        started = self.start(name, [*argv, "--run.dir", self.folder / (run or name), *flags], **how)
        *_, place, _, hotkey = started.wait_for("listening on").split()
        started.port, started.hotkey = int(place.rpartition(":")[2]), hotkey
        return started

    def gated_miner(self, gate, name="S1", *flags, **how):
        """A miner whose gradients wait for `gate`."""
        plugin = ("--gradient.strategy", "plugin", "--gradient.plugin", "gated_plugin:gradient")
        environment = {"GATE": str(gate.path), "PYTHONPATH": str(HERE)}
        return self.miner(name, *plugin, *flags, environment=environment, **how)

    def validator(self, axons, *flags, rounds=3, run="run", **how):
        """A validator over `axons` (miners, ports or addresses); its run directory is `run`."""
        addresses = [getattr(axon, "port", axon) for axon in axons]
        argv = ["validator", "--wallet.name", "validator", "--axons", *addresses, "--model.preset", "tiny"]
        argv += ["--rounds", rounds, "--run.dir", self.folder / run, "--axons.wait_seconds", 20]
        argv += ["--data.windows", 4, "--data.max_slots", 4, "--data.max_pages", 2, "--data.span", 4]
        argv += ["--ranking.tokens", 128, "--ranking.audits", 1]
        argv += self._common()
        return self.start("validator", [*argv, *flags], **how)

    def _common(self):
        return [
            *("--wallet.path", self.wallets, "--device", "cpu", "--data.source", self.source),
            *("--run.threads", 1),
        ]

    def ledger(self, sql, *values, run="run"):
        """Rows of a query to the ledger."""
        with contextlib.closing(sqlite3.connect(self.folder / run / "ledger.sqlite")) as database:
            return database.execute(sql, values).fetchall()

    def rows(self, run="run"):
        """The lines of rounds.jsonl."""
        path = self.folder / run / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def checkpoint(self, number, run="run"):
        """Folder of the checkpoint after round `number`."""
        return self.folder / run / "checkpoints" / f"round-{number:06d}"

    def close(self):
        """Kill whatever still runs."""
        for program in self._programs:
            program.kill()
