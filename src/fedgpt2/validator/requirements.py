"""Memory and disk that a run needs, stated at start-up; a run that this machine cannot hold is refused.

Letters: a body is the model in fp32, 4 bytes a parameter.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from fedgpt2 import codec
from fedgpt2.config import ValidatorConfig, path_of
from fedgpt2.errors import SetupError
from fedgpt2.model.hardware import physical_memory
from fedgpt2.observe.formatting import many, volume
from fedgpt2.optim.server import state_buffers
from fedgpt2.ranking.credit import RECENT
from fedgpt2.storage.mapped import memory_backed
from fedgpt2.types import Schema
from fedgpt2.validator.run_directory import scratch_folder

__all__ = ["Machine", "Needs", "check", "check_machine", "look_at", "needs", "statement"]

_PROGRAM = 700_000_000  # the interpreter with torch, and the logits of an evaluation


@dataclass(frozen=True)
class Needs:
    """Bytes that a run needs, at most."""

    memory: int  # program, weights, optimizer, aggregates and what the loss gate and ranking compute on
    checkpoints: int  # in the run directory
    contributions: int  # in the folder of contributions
    miners: int  # that send them


@dataclass(frozen=True)
class Machine:
    """What this machine has, in bytes."""

    memory: int
    run_disk: int  # free for the run directory, counting the checkpoints that are there
    scratch_disk: int  # free for contributions
    same_disk: bool  # the two are the same space
    scratch_in_memory: bool  # contributions are kept in memory


def needs(
    body: int,
    *,
    optimizer_states: int,
    aggregates: int,
    state: int,
    gradient: int,
    miners: int,
    checkpoints: int,
    on_cpu: bool = True,
) -> Needs:
    """What a run of a model of `body` bytes needs.

    `optimizer_states`: buffers of the optimizer; `aggregates`: recent ones that are kept; `state` and `gradient`: bytes
    of an encoded state and contribution, 0 where the codec is fp32 itself; `checkpoints`: how many are kept.
    """
    saved = 1 + optimizer_states + aggregates
    scratch = 3  # the aggregate, the weights that the loss gate tries, the scoring gradient
    on_device = 0 if on_cpu else 2 + optimizer_states  # weights, step and moments are the device's
    encoded = body + state if state or not on_cpu else 0  # what the miners hold, and its encoded form
    return Needs(
        memory=_PROGRAM + (saved + scratch - on_device) * body + encoded,
        checkpoints=(checkpoints + 1) * saved * body,  # one is written before the oldest is removed
        contributions=miners * (body + gradient),
        miners=miners,
    )


def check_machine(config: ValidatorConfig, device: torch.device, miners: int) -> str:
    """What the run needs, as one line. Raises SetupError where this machine cannot hold it. Blocking."""
    schema = config.model.shape.schema()
    encoded = {name: _encoded(name, schema) for name in (config.codec.state, config.codec.gradient)}
    needed = needs(
        codec.get("fp32").size_bounds(schema)[1],
        optimizer_states=state_buffers(config.optimizer),
        aggregates=0 if config.ranking.rule == "off" else RECENT,
        state=encoded[config.codec.state],
        gradient=encoded[config.codec.gradient],
        miners=miners,
        checkpoints=config.checkpoint.keep,
        on_cpu=device.type == "cpu",
    )
    machine = look_at(path_of("--run.dir", config.run.dir), scratch_folder(config))
    check(needed, machine)
    return statement(needed, machine)


def _encoded(name: str, schema: Schema) -> int:
    """Bytes of an encoded body; 0 where it is the fp32 values themselves."""
    which = codec.get(name)
    return 0 if name == "fp32" else which.size_bounds(schema)[1]


def look_at(run_directory: Path, scratch: Path) -> Machine:
    """What this machine has. Blocking."""
    run, contributions = _existing(run_directory), _existing(scratch)
    held = sum(file.stat().st_size for file in run_directory.glob("checkpoints/*/*"))
    return Machine(
        memory=physical_memory(),
        run_disk=shutil.disk_usage(run).free + held,
        scratch_disk=shutil.disk_usage(contributions).free,
        same_disk=os.stat(run).st_dev == os.stat(contributions).st_dev,
        scratch_in_memory=memory_backed(contributions),
    )


def check(needed: Needs, machine: Machine) -> None:
    """Raise SetupError, one line with the way out, where the machine has less than is needed."""
    if machine.scratch_in_memory and needed.memory + needed.contributions > machine.memory >= needed.memory:
        raise SetupError(
            f"this run needs {volume(needed.memory + needed.contributions)} of memory with contributions, whose folder "
            f"is on tmpfs, this machine has {volume(machine.memory)}: name a folder on a disk with --run.scratch"
        )
    if needed.memory > machine.memory:
        raise SetupError(
            f"this run needs {volume(needed.memory)} of memory, this machine has {volume(machine.memory)}: "
            "choose a smaller --model.preset"
        )
    beside = needed.contributions if machine.same_disk else 0
    if needed.checkpoints + beside > machine.run_disk:
        raise SetupError(
            f"this run needs {volume(needed.checkpoints + beside)} of disk for checkpoints"
            f"{' and contributions' if beside else ''}, {volume(machine.run_disk)} are free: "
            f"free some, or name a folder on a larger disk with --run.dir{' or --run.scratch' if beside else ''}"
        )
    if not machine.same_disk and needed.contributions > machine.scratch_disk:
        raise SetupError(
            f"contributions of {many(needed.miners, 'miner')} need {volume(needed.contributions)} of disk, "
            f"{volume(machine.scratch_disk)} are free: name a larger disk with --run.scratch, or fewer --axons"
        )


def statement(needed: Needs, machine: Machine) -> str:
    """What is said at start-up."""
    where = "memory: their folder is on tmpfs" if machine.scratch_in_memory else "disk"
    return (
        f"needs up to {volume(needed.memory)} of memory, {volume(needed.checkpoints)} of disk for checkpoints and "
        f"{volume(needed.contributions)} for contributions of {many(needed.miners, 'miner')} ({where})"
    )


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
