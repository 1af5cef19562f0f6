"""`fedgpt2 export`: write a folder that transformers opens.

model.safetensors       the weights broadcast after the round (their digest is in the ledger), fp32, under the names of
                        the published checkpoints; the head is the token embedding
config.json generation_config.json
tokenizer.json vocab.json merges.txt tokenizer_config.json special_tokens_map.json
README.md run.json      facts of the run
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedgpt2.cli.card import model_card, run_facts
from fedgpt2.cli.parsing import parse
from fedgpt2.cli.runs import open_model, open_run
from fedgpt2.config import path_of, setting
from fedgpt2.errors import UsageError
from fedgpt2.storage.files import disk_errors, write_durably, write_parts
from fedgpt2.types import ModelShape, Schema

if TYPE_CHECKING:
    from fedgpt2.model.gpt2 import GPT2

__all__ = ["Export", "main", "write_model"]

_EOT = 50256


@dataclass(frozen=True)
class Export:
    """Settings of `fedgpt2 export`."""

    run_dir: str = setting("runs/default", "run directory", flag="run.dir")
    out: str = setting("", "folder to write (required)")
    round: int = setting(0, "round whose checkpoint to export; 0: the newest", least=0)
    overwrite: bool = setting(False, "write into a folder that is not empty")


def main(argv: Sequence[str]) -> int:
    """Write the folder; return the exit code. Raises UsageError if it is not empty and --overwrite is not given."""
    settings = parse(
        Export,
        argv,
        prog="fedgpt2 export",
        about="Write a run's model as a folder that transformers opens.",
        example="fedgpt2 export --run.dir runs/default --out model",
    )
    if not settings.out:
        raise UsageError("--out is missing: name the folder to write")
    out = path_of("--out", settings.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not settings.overwrite:
        raise UsageError(f"--out {out}: exists and is not empty; --overwrite writes into it")
    run, model, number = open_model(open_run(settings.run_dir), settings.round or None)
    facts = run_facts(run, number)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_model(model, out)
    write_durably(out / "run.json", _json(facts))
    write_durably(out / "README.md", model_card(facts).encode())
    print(f"{out}: round {number} of {run.path}")
    return 0


def write_model(model: "GPT2", out: Path) -> None:
    """Write weights, configuration and tokeniser. Raises DiskFullError or RunDirectoryError."""
    from fedgpt2.data.tokenizer import tokenizer_files

    header = _header(model.shape.schema())
    with disk_errors(out / "model.safetensors"):
        write_parts(out / "model.safetensors", [header, model.weights.memory()])
    write_durably(out / "config.json", _json(_model_config(model.shape)))
    write_durably(out / "generation_config.json", _json({"bos_token_id": _EOT, "eos_token_id": _EOT}))
    for name, text in tokenizer_files(model.shape.block_size).items():
        write_durably(out / name, text.encode())


def _header(schema: Schema) -> bytes:
    """The safetensors header of the wire plus the `format` entry that transformers requires."""
    from fedgpt2.protocol.tensors import PREFIX, write_header

    entries = json.loads(write_header(schema, "F32")[PREFIX:])
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-(PREFIX + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text


def _model_config(shape: ModelShape) -> dict[str, object]:
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "bos_token_id": _EOT,
        "dtype": "float32",
        "embd_pdrop": 0.0,
        "eos_token_id": _EOT,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": shape.block_size,
        "n_embd": shape.n_embd,
        "n_head": shape.n_head,
        "n_layer": shape.n_layer,
        "n_positions": shape.block_size,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
        "vocab_size": shape.vocab_size,
    }


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
