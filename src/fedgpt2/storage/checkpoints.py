"""Checkpoints: weights, optimizer and position of a run, in a folder that is complete or absent.

    round-000123/  model.safetensors  optimizer.safetensors  state.json  manifest.json

Files go into a temporary folder, each with fsync; the manifest (length and BLAKE3 of each) is written last and the
folder is renamed into place. A reader checks every file against the manifest.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from fedgpt2.errors import CheckpointError, ProtocolError
from fedgpt2.protocol.digests import blob_digest
from fedgpt2.protocol.tensors import header_length, names, read_header, write_header
from fedgpt2.storage.files import disk_errors, fsync_folder, write_parts
from fedgpt2.types import Schema

__all__ = ["Checkpoint", "checkpoint_name", "load", "prune", "save"]

_HEADER_LIMIT = 1 << 20
_CHUNK = 4 << 20
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_MADE = re.compile(r"round-([0-9]{6}|[1-9][0-9]{6,})|\.round-([0-9]{6}|[1-9][0-9]{6,})\.tmp")  # names that `save` gives


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint: fp32 tensors by name, and JSON values."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, object]


def checkpoint_name(number: int) -> str:
    """Folder name of the checkpoint after round `number`."""
    return f"round-{number:06d}"


def save(folder: Path, number: int, checkpoint: Checkpoint) -> str:
    """Write a checkpoint under `folder`; returns its name. Raises DiskFullError, leaving older ones untouched."""
    name = checkpoint_name(number)
    temporary = folder / f".{name}.tmp"
    with disk_errors(folder / name):
        try:
            _write(temporary, checkpoint)
            shutil.rmtree(folder / name, ignore_errors=True)  # left by a crash between rename and commit
            temporary.rename(folder / name)
            fsync_folder(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return name


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts: dict[str, list[bytes | memoryview]] = {
        "model.safetensors": _tensor_parts(checkpoint.model),
        "optimizer.safetensors": _tensor_parts(checkpoint.optimizer),
        "state.json": [json.dumps(checkpoint.state, indent=2, sort_keys=True).encode()],
    }
    for name, content in parts.items():
        write_parts(folder / name, content)
    sums = {name: _sum(content) for name, content in parts.items()}
    write_parts(folder / "manifest.json", [json.dumps(sums, indent=2, sort_keys=True).encode()])
    fsync_folder(folder)


def _tensor_parts(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    header = write_header({name: tuple(tensor.shape) for name, tensor in tensors.items()}, "F32")
    ordered = (tensors[name].detach().to("cpu", torch.float32).contiguous() for name in sorted(tensors))
    return [header, *(tensor.reshape(-1).view(torch.uint8).numpy().data for tensor in ordered)]


def _sum(parts: list[bytes | memoryview]) -> dict[str, object]:
    return {"blake3": blob_digest(*parts, threads=2), "bytes": sum(memoryview(part).nbytes for part in parts)}


def load(
    folder: Path, name: str, model: Schema, optimizer: Schema | None, optional: Schema = MappingProxyType({})
) -> Checkpoint:
    """Read a checkpoint and check every byte; with `optimizer` None the optimizer is not read.

    Tensors of `optional`, stored beside the optimizer's, are read if they exist. Raises CheckpointError, one line that
    names the file, if it is missing, damaged or of another model.
    """
    path = folder / name
    sums = _read_json(path / "manifest.json")
    state = _read_json(path / "state.json", sums)
    weights = _read_tensors(path / "model.safetensors", sums, model)
    moments = {} if optimizer is None else _read_tensors(path / "optimizer.safetensors", sums, optimizer, optional)
    return Checkpoint(weights, moments, state)


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; the checkpoint is not whole") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _verify(path: Path, sums: Mapping[str, object]) -> None:
    """Check length and BLAKE3 of a file against the manifest's."""
    hasher, size, buffer = blake3(max_threads=2), 0, memoryview(bytearray(_CHUNK))
    with _opened(path) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
    if not size or sums.get(path.name) != {"blake3": hasher.hexdigest(), "bytes": size}:
        raise CheckpointError(f"{path} is damaged: its checksum is not the manifest's")


def _read_json(path: Path, sums: Mapping[str, object] | None = None) -> dict[str, object]:
    if sums is not None:
        _verify(path, sums)
    with _opened(path) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: not JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: not an object")
    return value


def _read_tensors(
    path: Path, sums: Mapping[str, object], schema: Schema, optional: Schema = MappingProxyType({})
) -> dict[str, Tensor]:
    """Views of a verified file, mapped copy-on-write: its pages are file-backed until somebody writes to them."""
    _verify(path, sums)
    with _opened(path) as file:
        data = np.memmap(file, np.uint8, "c")
    try:
        start = 8 + header_length(data[:8].tobytes(), _HEADER_LIMIT)
        header = data[8:start].tobytes()
        schema = {**schema, **{name: optional[name] for name in names(header) if name in optional}}
        layout = read_header(header, schema, "F32")
    except ProtocolError as error:
        raise CheckpointError(f"{path} is of another model: {error.detail}") from error
    values = torch.from_numpy(data[start:]).view(torch.float32)
    return {
        name: values[first // 4 : first // 4 + prod(schema[name])].view(schema[name])
        for name, (first, _) in layout.spans.items()
    }


def prune(folder: Path, keep: list[str]) -> None:
    """Remove every checkpoint but those in `keep`, and the remains of a crash; other files and folders stay."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in keep and _MADE.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
