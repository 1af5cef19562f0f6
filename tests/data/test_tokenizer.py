"""The vendored tokeniser is GPT-2's, and so is the one we export."""

import gzip
import hashlib
import importlib
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgpt2.data import tokenizer as tokenizer_module
from fedgpt2.data.tokenizer import EOT, encode, load, merges, tokenizer_files, vocabulary
from fedgpt2.errors import CorpusError

ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
TEXTS = [
    "",
    " ",
    "Hello, world! It's 3.14 o'clock; we'll see.",
    "def f(x):\n\treturn  x **  2\r\n\r\n\n   \t ",
    "吾輩は猫である。名前はまだ無い。　全角",
    "Съешь ещё этих мягких французских булок",
    "שלום עולם مرحبا بالعالم",
    "हिन्दी ภาษาไทย 한국어",
    "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u00a0\u2028\u0085\u000b\u3000 \U0001f9ff",
    "\x00\x01\x7f\ufeff",
    "one<|endoftext|>two",
    "a" * 3000 + " " * 300 + "1234567890" * 20,
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, text in tokenizer_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def independent(exported: Path) -> tokenizers.Tokenizer:
    """Another implementation, told to take a literal `<|endoftext|>` for text."""
    other = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    other.encode_special_tokens = True
    return other


def test_vocabulary_is_openais_encoder_json():
    text = json.dumps(vocabulary())
    assert hashlib.sha256(text.encode()).hexdigest() == ENCODER_SHA256
    assert (len(merges()), merges()[0], load().n_vocab) == (50_000, "Ġ t", 50257)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_equal_those_of_another_implementation(text: str, independent: tokenizers.Tokenizer):
    tokens = encode(text)
    assert tokens.tolist() == independent.encode(text).ids
    assert load().decode(tokens.tolist()) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_encodes_alike_and_comes_back(text: str, independent: tokenizers.Tokenizer):
    tokens = encode(text).tolist()
    assert tokens == independent.encode(text).ids
    assert load().decode(tokens) == text


def test_a_literal_end_of_text_is_text():
    tokens = encode("one<|endoftext|>two")
    assert EOT not in tokens
    assert tokens.dtype == "uint16"
    assert tokens[1:4].tolist() == [27, 91, 437]


def test_known_tokens():
    assert encode("Hello world").tolist() == [15496, 995]


def test_autotokenizer_opens_the_export(exported: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    transformers = importlib.import_module("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    assert (len(theirs), theirs.eos_token_id, theirs.bos_token_id) == (50257, EOT, EOT)
    for text in TEXTS:
        if "<|endoftext|>" not in text:
            assert theirs(text)["input_ids"] == encode(text).tolist()
    assert theirs.decode(encode(TEXTS[4])) == TEXTS[4]


@pytest.mark.parametrize(
    "raw", [b"not gzip", gzip.compress(b"#version: 0.2\na b\n"), b""], ids=["not gzip", "too few merges", "empty"]
)
def test_a_damaged_vocabulary_is_named(raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "vocab.bpe.gz").write_bytes(raw)
    monkeypatch.setattr(tokenizer_module, "files", lambda _: tmp_path)
    with pytest.raises(CorpusError, match=r"vocab\.bpe\.gz"):
        merges()


def test_the_compressed_vocabulary_has_no_time_in_it():
    asset = Path(tokenizer_module.__file__).parent / "assets" / "vocab.bpe.gz"
    header = asset.read_bytes()[:10]
    assert header[3:8] == bytes(5)  # no flags (so no file name), modification time 0
