"""Inside parquet files: footers, and one row group from exactly its bytes."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgpt2.data import row_groups
from fedgpt2.data.row_groups import TAIL_BYTES, Footer, footer_range, parse_footer, texts
from fedgpt2.errors import CorpusError

DOCUMENTS = [f"document {i}: " + "hello world, ünïcode " * (i % 40) for i in range(900)]


def written(columns: dict[str, object], **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **{"row_group_size": 200, **options})
    return sink.getvalue()


def footer_of(raw: bytes, column: str = "content") -> Footer:
    start, stop = footer_range("x.parquet", len(raw), raw[-TAIL_BYTES:])
    return parse_footer("x.parquet", len(raw), column, raw[start:stop])


@pytest.fixture(scope="module")
def plain() -> bytes:
    return written({"url": DOCUMENTS, "content": DOCUMENTS, "n": list(range(900))})


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "brotli", "lz4", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"data_page_version": "2.0", "data_page_size": 2000},
        {"write_page_checksum": True, "write_page_index": True},
        {"write_statistics": False, "version": "1.0"},
    ],
)
def test_any_encoding_is_read_from_its_own_bytes_only(compression: str, options: dict[str, object]):
    raw = written({"url": DOCUMENTS, "content": DOCUMENTS}, compression=compression, **options)
    footer = footer_of(raw)
    assert [group.rows for group in footer.groups] == [200, 200, 200, 200, 100]
    for number, group in enumerate(footer.groups):
        assert texts(footer, number, raw[group.start : group.stop]) == DOCUMENTS[number * 200 : (number + 1) * 200]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_null_is_an_empty_document(kind: pa.DataType):
    raw = written({"content": pa.array(["one", None, "", "two"], kind)})
    footer = footer_of(raw)
    assert texts(footer, 0, raw[footer.groups[0].start : footer.groups[0].stop]) == ["one", "", "", "two"]


def test_what_a_footer_tells(plain: bytes):
    footer = footer_of(plain)
    assert footer.columns == [("url", "string"), ("content", "string"), ("n", "int64")]
    assert footer.writer.startswith("parquet-cpp-arrow")
    assert sum(group.text_bytes for group in footer.groups) > sum(len(text) for text in DOCUMENTS) * 0.2
    starts = [group.start for group in footer.groups]
    assert starts == sorted(starts)


@pytest.mark.parametrize("column", ["text", "n", "", "url.x"])
def test_a_missing_or_other_column_names_those_there(plain: bytes, column: str):
    with pytest.raises(
        CorpusError, match=r"no text column .*url \(string\), content \(string\), n \(int64\)"
    ) as caught:
        footer_of(plain, column)
    assert "--data.column" in str(caught.value)


@pytest.mark.parametrize(
    "end", [b"", b"PAR1", bytes(8), bytes(4) + b"PAR1", b"\xff\xff\xff\x7fPAR1", b"text, no parquet"]
)
def test_what_is_no_parquet_file(end: bytes):
    with pytest.raises(CorpusError, match="not a parquet file"):
        footer_range("x", 100, end.rjust(8, b"\x00"))


def test_an_encrypted_file_is_named():
    with pytest.raises(CorpusError, match="encrypted"):
        footer_range("x", 1000, bytes(8) + b"PARE")


@pytest.mark.parametrize("raw", [b"", b"\x00", b"\xff" * 100, b"nonsense" * 30])
def test_a_footer_that_is_none(raw: bytes):
    with pytest.raises(CorpusError, match=r"x\.parquet"):
        parse_footer("x.parquet", 1000, "content", raw)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_text_is_an_error_or_other_text_but_nothing_else(plain: bytes, data: st.DataObject):
    footer = footer_of(plain)
    group = footer.groups[1]
    raw = bytearray(plain[group.start : group.stop])
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    complaint = ""
    try:
        found = texts(footer, 1, bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except CorpusError as error:
        complaint, found = str(error), []
    assert all(isinstance(text, str) for text in found)
    assert complaint.startswith("x.parquet: row group 1 cannot be decoded" if complaint else "")
    assert "\n" not in complaint


def test_checksums_in_the_file_are_verified():
    raw = written({"content": DOCUMENTS}, write_page_checksum=True, compression="none", use_dictionary=False)
    footer = footer_of(raw)
    group = footer.groups[0]
    damaged = bytearray(raw[group.start : group.stop])
    damaged[len(damaged) // 2] ^= 1  # one letter of one document
    with pytest.raises(CorpusError, match="cannot be decoded"):
        texts(footer, 0, bytes(damaged))


def test_a_row_group_beyond_memory_is_refused(plain: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_groups, "_MOST_PAGE", 1000)
    with pytest.raises(CorpusError, match="write it again with smaller row groups"):
        footer_of(plain)


def test_a_document_that_a_dictionary_names_often_counts_as_often(monkeypatch: pytest.MonkeyPatch):
    """639 bytes can hold 400 MiB of text, of which the footer counts two."""
    raw = written({"content": ["long " * 20_000] * 200}, compression="zstd")
    footer = footer_of(raw)
    group = footer.groups[0]
    assert group.text_bytes < 200_000
    monkeypatch.setattr(row_groups, "_MOST_PAGE", 1 << 20)
    with pytest.raises(CorpusError, match="1 MiB of text or more, at most 1 are read at once"):
        texts(footer, 0, raw[group.start : group.stop])


@pytest.mark.parametrize("word", [b"parquet-cpp-arrow", b"content"])
def test_a_footer_whose_words_are_not_utf8(word: bytes):
    raw = written({"content": DOCUMENTS}, store_schema=False)
    start, stop = footer_range("x", len(raw), raw[-TAIL_BYTES:])
    assert word in raw[start:stop]
    with pytest.raises(CorpusError, match=r"x\.parquet: its footer cannot be read"):
        parse_footer("x.parquet", len(raw), "content", raw[start:stop].replace(word, b"\xff" * len(word)))


def test_a_footer_that_points_outside_its_file(plain: bytes):
    start, stop = footer_range("x", len(plain), plain[-TAIL_BYTES:])
    with pytest.raises(CorpusError, match="outside the file"):
        parse_footer("x", 5000, "content", plain[start:stop])
