"""The manifest: one set of bytes, strict to read, compared with what is here."""

import dataclasses
import json

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.config import Data
from fedgpt2.data import Corpus, Manifest, Pool, SourceFile
from fedgpt2.data.manifest import build, check
from fedgpt2.data.sample import SampleSource
from fedgpt2.errors import CorpusError, Reason, Refused


def test_golden(make_manifest, golden, corpus: Corpus):
    cases = {"made": make_manifest(), "sample": corpus.manifest}
    golden(
        "manifest.json",
        {name: {"bytes": m.to_bytes().decode(), "digest": m.digest()} for name, m in cases.items()},
    )


def test_bytes_are_canonical_and_the_digest_is_theirs(make_manifest):
    raw = make_manifest().to_bytes()
    value = json.loads(raw)
    assert raw == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert value["files"][1] == ["b/ü\n.txt", 7, "f" * 64]
    assert value["pools"] == {"assign": 50, "score": 7, "report": 6}
    assert make_manifest().digest() == blake3.blake3(raw).hexdigest()


def test_round_trip(make_manifest, corpus: Corpus):
    for manifest in (make_manifest(), corpus.manifest):
        again = Manifest.from_bytes(manifest.to_bytes())
        assert again == manifest
        assert again.digest() == manifest.digest()
        assert isinstance(again.files[0], SourceFile)


@pytest.mark.parametrize("field", ["source", "seq_len", "seed", "max_slots", "max_pages", "span", "page_documents"])
def test_every_field_counts(make_manifest, field: str):
    base = make_manifest()
    value = getattr(base, field)
    changed = dataclasses.replace(base, **{field: "other" if isinstance(value, str) else value + 1})
    assert changed.digest() != base.digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed":1337', '"seed":1337.0'),
        ('"seed":1337', '"seed":"1337"'),
        ('"seed":1337', '"seed":true'),
        ('"seed":1337', '"seed":-1'),
        ('"seed":1337', '"seed":9223372036854775808'),
        ('"seed":1337', '"seed":NaN'),
        ('"seed":1337', '"seed":1337,"seed":1337'),
        ('"seed":1337', '"seed": 1337'),
        ('"seed":1337', '"extra":1,"seed":1337'),
        ('"seed":1337,', ""),
        ('"span":4', '"span":0'),
        ('"seq_len":4', '"seq_len":0'),
        ('"version":1', '"version":2'),
        ('"scheme":1', '"scheme":2'),
        ('"max_pages":3', '"max_pages":5000'),
        ('"assign":50', '"assign":14'),
        ('"assign":50', '"assign":4294967297'),
        ('"report":6', '"report":0'),
        ('"report":6,', ""),
        ('"report":6', '"other":6'),
        ('"a.txt"', '"c.txt"'),
        ('"a.txt"', '"\\ud800"'),
        ('"a.txt",5', '"a.txt",-5'),
        ('"a.txt",5', '"a.txt",5,5'),
        ("0" * 64, "0" * 63),
        ("f" * 64, "F" * 64),
        ("ü", "\\u00fc"),
    ],
)
def test_other_bytes_are_refused(make_manifest, old: str, new: str):
    text = make_manifest().to_bytes().decode()
    assert old in text
    with pytest.raises(CorpusError, match=r"manifest|corpus too small"):
        Manifest.from_bytes(text.replace(old, new, 1).encode())


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 200_000, b'{"files":' * 50_000])
def test_what_is_no_manifest_is_refused(raw: bytes):
    with pytest.raises(CorpusError, match="manifest"):
        Manifest.from_bytes(raw)


@given(raw=st.binary(max_size=300))
def test_no_bytes_raise_anything_else(raw: bytes):
    with pytest.raises(CorpusError):
        Manifest.from_bytes(raw)


@given(place=st.integers(min_value=0), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_another_manifest(make_manifest, place: int, byte: int):
    raw = bytearray(make_manifest().to_bytes())
    raw[place % len(raw)] = byte
    try:
        manifest = Manifest.from_bytes(bytes(raw))
    except CorpusError:
        return
    assert manifest.to_bytes() == bytes(raw)


def test_built_from_source_and_settings(sample: SampleSource):
    config = Data(source="sample", span=2, max_slots=3, max_pages=5)
    manifest = build(sample, config, seq_len=64, seed=9)
    assert (manifest.source, manifest.files) == ("sample", tuple(sample.files()))
    assert (manifest.seq_len, manifest.seed, manifest.span) == (64, 9, 2)
    assert (manifest.span_pages, manifest.epoch_spans) == (15, 485 // 15)
    check(manifest, sample)


def test_too_small_a_corpus_names_the_settings(sample: SampleSource):
    with pytest.raises(CorpusError, match=r"corpus too small.*max_slots 61 x --data.max_pages 8"):
        build(sample, Data(max_slots=61), seq_len=64, seed=9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "text"}, "source is text in the manifest, sample here"),
        ({"tokenizer": "0" * 64}, "tokenizer"),
        ({"page_documents": 9}, "page_documents is 9 in the manifest, 8 here"),
        ({"files": ()}, "file sotu.txt is only here"),
        ({"files": (SourceFile("other.txt", 1, "0" * 64),)}, "file other.txt is only in the manifest"),
        ({"files": (SourceFile("sotu.txt", 1, "0" * 64),)}, "file sotu.txt differs: 10766592 bytes"),
        ({"pools": {Pool.ASSIGN: 485, Pool.SCORE: 25, Pool.REPORT: 26}}, "the score pool has 25 pages"),
    ],
)
def test_another_corpus_is_refused_saying_what_differs(sample: SampleSource, changes: dict, said: str):
    manifest = dataclasses.replace(build(sample, Data(), seq_len=64, seed=9), **changes)
    with pytest.raises(Refused, match=said) as caught:
        Corpus(sample, manifest)
    assert caught.value.reason is Reason.WRONG_MANIFEST
