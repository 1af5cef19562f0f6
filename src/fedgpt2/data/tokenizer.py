"""GPT-2's byte-level BPE, exact, from one vendored file.

`vocab.bpe` holds the 50,000 merges in order; with the 256 byte symbols before them and `<|endoftext|>`
after them it determines the whole vocabulary (A. Radford et al., "Language Models are Unsupervised
Multitask Learners", 2019; github.com/openai/gpt-2, licence in NOTICE.md).
"""

import gzip
import hashlib
import json
import zlib
from functools import cache
from importlib.resources import files

import numpy as np
import tiktoken
from numpy.typing import NDArray

from fedgpt2.errors import CorpusError

__all__ = [
    "END_OF_TEXT",
    "EOT",
    "VOCAB_SHA256",
    "VOCAB_SIZE",
    "encode",
    "load",
    "merges",
    "tokenizer_files",
    "vocabulary",
]

VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
VOCAB_SIZE = 50257
EOT = 50256
END_OF_TEXT = "<|endoftext|>"
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))


@cache
def load() -> tiktoken.Encoding:
    """The tokeniser; about 0.2 s the first time. Raises CorpusError if the vendored file is damaged."""
    symbols = {symbol: byte for byte, symbol in _byte_symbols().items()}
    ranks = {bytes(symbols[c] for c in token): rank for token, rank in vocabulary().items() if rank != EOT}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: EOT},
        explicit_n_vocab=VOCAB_SIZE,
    )


def encode(text: str) -> NDArray[np.uint16]:
    """Tokens of a text. A literal `<|endoftext|>` in it is ordinary text: only we mark documents."""
    return np.array(load().encode_ordinary(text), dtype=np.uint16)


def merges() -> list[str]:
    """The 50,000 merges in order, `left right` each. Raises CorpusError if the vendored file is damaged."""
    lines = _vocab_bpe().decode("utf-8").split("\n")
    return lines[1:-1]  # a version line before, nothing after the last newline


def vocabulary() -> dict[str, int]:
    """Token to id, in id order: the content of OpenAI's encoder.json."""
    symbols = _byte_symbols()
    tokens = [symbols[byte] for byte in (*_PRINTABLE, *_unprintable())]
    tokens += [merge.replace(" ", "") for merge in merges()]
    return {token: rank for rank, token in enumerate([*tokens, END_OF_TEXT])}


def tokenizer_files(model_max_length: int = 1024) -> dict[str, str]:
    """Name and text of the files from which transformers' AutoTokenizer builds this tokeniser.

    `model_max_length` is the number of tokens that the model beside it reads.
    """
    vocab = vocabulary()
    config = {
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "model_max_length": model_max_length,
        "tokenizer_class": "GPT2Tokenizer",
    }
    special = {name: END_OF_TEXT for name in ("bos_token", "eos_token", "unk_token")}
    return {
        "vocab.json": _json(vocab),
        "merges.txt": _vocab_bpe().decode("utf-8"),
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json(special),
        "tokenizer.json": _json(_fast_tokenizer(vocab)),
    }


def _vocab_bpe() -> bytes:
    asset = files("fedgpt2.data") / "assets" / "vocab.bpe.gz"
    try:
        raw = gzip.decompress(asset.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{asset}: cannot be read ({error}); install fedgpt2 again") from error
    if hashlib.sha256(raw).hexdigest() != VOCAB_SHA256:
        raise CorpusError(f"{asset}: not GPT-2's vocab.bpe; install fedgpt2 again")
    return raw


def _unprintable() -> list[int]:
    return sorted(set(range(256)) - set(_PRINTABLE))


def _byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte: itself, else the next one from U+0100."""
    symbols = {byte: chr(byte) for byte in _PRINTABLE}
    return symbols | {byte: chr(256 + i) for i, byte in enumerate(_unprintable())}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fast_tokenizer(vocab: dict[str, int]) -> dict[str, object]:
    """The `tokenizers` library's serialisation of byte-level BPE."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": EOT, "content": END_OF_TEXT, "single_word": False, "lstrip": False, "rstrip": False}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges(),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**end, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": model,
    }
