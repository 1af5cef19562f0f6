"""The embedded corpus: what it holds, and that whole addresses are held out."""

import lzma
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from fedgpt2.data import Pool
from fedgpt2.data import sample as sample_module
from fedgpt2.data.document_splitting import DOCUMENT_BYTES
from fedgpt2.data.sample import SAMPLE_FILE, SampleSource
from fedgpt2.errors import CorpusError

ASSET = Path(sample_module.__file__).parent / "assets" / "sotu.xz"


def addresses() -> list[tuple[str, list[str]]]:
    """Header and documents of each address, read without the code under test."""
    found: list[tuple[str, list[str]]] = []
    for line in lzma.decompress(ASSET.read_bytes()).decode().splitlines():
        if line.startswith("# "):
            found.append((line, []))
        else:
            found[-1][1].append(line)
    return found


def test_size_and_pages(sample: SampleSource):
    assert sample.pools == {Pool.ASSIGN: 485, Pool.SCORE: 26, Pool.REPORT: 26}
    assert sample.files() == [SAMPLE_FILE]
    assert (sample.name, sample.page_documents) == ("sample", 8)
    assert all(len(sample.documents(pool, page)) == 8 for pool in Pool for page in range(26))


def test_pools_share_no_address(sample: SampleSource):
    owner = {document: header for header, documents in addresses() for document in documents}
    headers = {pool: {owner[text] for text in sample.texts[pool]} for pool in Pool}
    assert sum(map(len, headers.values())) == len(set.union(*headers.values())) == 233
    assert (len(headers[Pool.SCORE]), len(headers[Pool.REPORT])) == (12, 11)
    assert sorted(headers[Pool.SCORE])[0] < "# 1800" < "# 2000" < sorted(headers[Pool.SCORE])[-1]


def test_no_document_is_in_two_pools(sample: SampleSource):
    texts = [set(sample.texts[pool]) for pool in Pool]
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_documents_are_clean_prose_of_the_stated_size(sample: SampleSource):
    documents = [text for pool in Pool for text in sample.texts[pool]]
    sizes = [len(text.encode()) for text in documents]
    assert 0.3 * DOCUMENT_BYTES < min(sizes) <= max(sizes) <= 1.5 * DOCUMENT_BYTES
    assert 0.9 * DOCUMENT_BYTES < sum(sizes) / len(sizes) < 1.1 * DOCUMENT_BYTES
    assert all(text == " ".join(text.split()) and text.isprintable() for text in documents)
    ends = sum(text.endswith((".", "?", "!", '"', "”", ")", ":", "]")) for text in documents)
    assert ends > 0.99 * len(documents)


def test_pages_follow_the_order_of_the_text(sample: SampleSource):
    order = {text: n for n, text in enumerate(t for _, documents in addresses() for t in documents)}
    for pool in Pool:
        places = [order[text] for page in range(26) for text in sample.documents(pool, page)]
        assert all(a < b for a, b in pairwise(places))


def test_smaller_pages_hold_the_same_text_in_the_same_order(sample: SampleSource):
    finer = replace(sample, page_documents=2)
    assert finer.pools[Pool.ASSIGN] == len(sample.texts[Pool.ASSIGN]) // 2
    documents = [document for page in range(4) for document in finer.documents(Pool.SCORE, page)]
    assert documents == sample.documents(Pool.SCORE, 0)


@pytest.mark.parametrize("page", [-1, 26])
def test_there_is_no_such_page(sample: SampleSource, page: int):
    with pytest.raises(CorpusError, match="no page"):
        sample.documents(Pool.SCORE, page)


@pytest.mark.parametrize("raw", [b"", b"not xz", lzma.compress(b"# 1790 Nobody\nOther text.\n")])
def test_a_damaged_asset_is_named(raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "sotu.xz").write_bytes(raw)
    monkeypatch.setattr(sample_module, "files", lambda _: tmp_path)
    with pytest.raises(CorpusError, match=r"sotu\.xz"):
        SampleSource.load()
