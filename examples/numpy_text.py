"""The text of an order in numpy, as docs/data.md states it, for the embedded corpus: for numpy_miner.py."""

import gzip
import hashlib
import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from blake3 import blake3

Json = dict[str, Any]


class Refusal(Exception):
    """A reason of the protocol's table, and a line for people."""

    def body(self) -> Json:
        return dict(zip(("reason", "detail"), self.args, strict=True))


def require(condition: object, reason: str, detail: str = "") -> None:
    if not condition:
        raise Refusal(reason, detail)


def canonical(message: Json) -> bytes:
    return json.dumps(message, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Text:
    """The embedded corpus, and the windows that a manifest and an assignment make of it."""

    PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    def __init__(self, assets: Path) -> None:
        raw, vocab = lzma.open(assets / "sotu.xz").read(), gzip.open(assets / "vocab.bpe.gz").read()  # noqa: SIM115
        pools: dict[str, list[str]] = {"assign": [], "report": [], "score": []}
        for number, address in enumerate(raw.decode().removeprefix("# ").split("\n# ")):
            pools[{9: "score", 19: "report"}.get(number % 20, "assign")] += address.rstrip("\n").split("\n")[1:]
        self._documents, self._encode = pools["assign"], self._tokenizer(vocab.decode())
        self._facts = {"version": 1, "scheme": 1, "source": "sample", "page_documents": 8}
        self._facts["files"] = [["sotu.txt", len(raw), hashlib.sha256(raw).hexdigest()]]
        self._facts["tokenizer"] = hashlib.sha256(vocab).hexdigest()
        self._facts["pools"] = {pool: len(documents) // 8 for pool, documents in pools.items()}

    def windows(self, order: Json, manifest: bytes) -> np.ndarray:
        """The windows of an order, [n, seq_len + 1], once manifest and assignment are found right."""
        m, stated = json.loads(manifest), order["assignment"]
        settings = {key: int(m[key]) for key in ("max_pages", "max_slots", "seed", "seq_len", "span")}
        require(canonical(self._facts | settings) == manifest, "wrong_manifest", "another text, or not canonical")
        possible = min(m["max_pages"], m["max_slots"], m["seq_len"], m["span"]) > 0
        possible = possible and m["max_slots"] * m["max_pages"] <= m["pools"]["assign"]
        require(possible, "wrong_manifest", "settings that no run can have")
        size, pages, rows, missing = m["seq_len"], [], [], sum(map(len, stated["windows"]))
        require(size <= order["model"]["block_size"] and stated["slot"] < m["max_slots"], "wrong_assignment", "slot")
        for j in range(m["max_pages"]):
            if missing > 0:
                page, row = self._share(m, stated["manifest"], order["round"], stated["slot"], j)
                pages, rows, missing = [*pages, page], [*rows, row[:missing]], missing - len(row)
        while rows and not rows[-1]:
            del pages[-1], rows[-1]
        require(rows and (pages, rows) == (stated["pages"], stated["windows"]), "wrong_assignment", "not the slot's")
        streams = ((self._tokens(page), row) for page, row in zip(pages, rows, strict=True))
        return np.array([stream[place * size : place * size + size + 1] for stream, row in streams for place in row])

    def _share(self, m: Json, digest: str, round_: int, slot: int, j: int) -> tuple[int, list[int]]:
        """The slot's j-th page in a round, and its windows in order of use."""
        total, part = m["pools"]["assign"], (round_ + j) % m["span"]
        epoch, span = divmod(round_ // m["span"], total // (m["max_slots"] * m["max_pages"]))
        key = f"{m['seed']}\n{digest}\nassign\n{epoch}"
        page = self._permute(f"fedgpt2\n1\npages\n{key}", total, (span * m["max_slots"] + slot) * m["max_pages"] + j)
        count = (len(self._tokens(page)) - 1) // m["seq_len"]
        places = range(part * count // m["span"], (part + 1) * count // m["span"])
        return page, [self._permute(f"fedgpt2\n1\nwindows\n{key}\n{page}", count, place) for place in places]

    def _tokens(self, page: int) -> list[int]:
        documents = self._documents[8 * page : 8 * page + 8]
        return [token for document in documents for token in (50256, *self._encode(document))]

    def _tokenizer(self, vocab_bpe: str) -> Callable[[str], list[int]]:
        first = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order = first + sorted(set(range(256)) - set(first))
        symbols = {chr(byte if i < len(first) else 256 + i - len(first)): byte for i, byte in enumerate(order)}
        merges = (line.replace(" ", "") for line in vocab_bpe.split("\n")[1:-1])
        tokens = [*(bytes([byte]) for byte in order), *(bytes(symbols[c] for c in merge) for merge in merges)]
        ranks = {token: rank for rank, token in enumerate(tokens)}
        return tiktoken.Encoding("gpt2", pat_str=self.PATTERN, mergeable_ranks=ranks, special_tokens={}).encode_ordinary

    def _permute(self, label: str, size: int, value: int) -> int:
        a = math.isqrt(size - 1) + 1
        b, tables = -(-size // a), np.frombuffer(blake3(label.encode()).digest(length=64 * a), "<u8").reshape(8, a)
        while True:
            left, right = divmod(value, b)
            for i in range(0, 8, 2):
                left = (left + int(tables[i, right])) % a
                right = (right + int(tables[i + 1, left])) % b
            value = left * b + right
            if value < size:
                return value
