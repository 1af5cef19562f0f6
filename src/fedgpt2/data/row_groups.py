"""The inside of a parquet file: what its footer says, and the text of one row group from exactly its bytes.

Nothing here reads a file or a network: bytes come in. pyarrow is imported when the first footer is read.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedgpt2.errors import CorpusError

__all__ = ["TAIL_BYTES", "Footer", "RowGroup", "footer_range", "parse_footer", "texts"]

TAIL_BYTES = 8192  # read first: it holds a small footer whole, and the length of a large one
_MAGIC = b"PAR1"
_ENCRYPTED = b"PARE"
_MOST_FOOTER = 256 << 20
_MOST_PAGE = 512 << 20  # bytes of text in one row group, decompressed
_ROWS = 4  # decoded at once: what is counted in between is never far over the bound


@dataclass(frozen=True)
class RowGroup:
    """Where the text of a row group lies in its file, and how much it is."""

    start: int
    stop: int
    rows: int
    text_bytes: int  # decompressed


@dataclass(frozen=True)
class Footer:
    """What a file says of itself."""

    name: str
    size: int  # of the file, bytes
    column: str
    columns: Sequence[tuple[str, str]]  # name and type, as in the file's schema
    groups: Sequence[RowGroup]
    writer: str
    metadata: Any  # pyarrow.parquet.FileMetaData


def footer_range(name: str, size: int, tail: bytes) -> tuple[int, int]:
    """The footer's place in a file of `size` bytes with this end (at least 8 bytes), [start, stop).

    Raises CorpusError for an end that is no parquet file's.
    """
    if tail[-4:] == _ENCRYPTED:
        raise CorpusError(f"{name}: an encrypted parquet file")
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != _MAGIC or not 0 < length <= min(size - 12, _MOST_FOOTER):
        raise CorpusError(f"{name}: not a parquet file, or damaged at its end")
    return size - 8 - length, size - 8


def parse_footer(name: str, size: int, column: str, raw: bytes) -> Footer:
    """The footer from its bytes.

    Raises CorpusError if they are none, the file has no text column of this name, or its row groups are not pages
    that fit into memory.
    """
    import pyarrow
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(io.BytesIO(_MAGIC + raw + len(raw).to_bytes(4, "little") + _MAGIC))
        columns = [(field.name, str(field.type)) for field in metadata.schema.to_arrow_schema()]
        index = _column_index(name, column, columns, metadata)
        groups = [_row_group(name, size, metadata.row_group(n), index) for n in range(metadata.num_row_groups)]
        return Footer(name, size, column, columns, groups, str(metadata.created_by), metadata)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{name}: its footer cannot be read ({_first_line(error)})") from error


def texts(footer: Footer, number: int, raw: bytes) -> list[str]:
    """The documents of row group `number`, in row order, from the bytes of its text; a null is an empty document.

    Raises CorpusError if they cannot be decoded, or become more text than fits into memory: a dictionary names a long
    document again and again in a few bytes, and its footer counts it once.
    """
    import pyarrow
    import pyarrow.parquet as pq

    part, columns = _Part(footer.groups[number].start, raw, footer.size), [footer.column]
    documents: list[str] = []
    size = 0
    try:
        file = pq.ParquetFile(part, metadata=footer.metadata, pre_buffer=False, page_checksum_verification=True)
        for rows in file.iter_batches(_ROWS, row_groups=[number], columns=columns, use_threads=False):
            size += rows.nbytes
            _check_size(footer.name, size)
            documents += ("" if value is None else value for value in rows.column(0).to_pylist())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{footer.name}: row group {number} cannot be decoded ({_first_line(error)})") from error
    return documents


def _column_index(name: str, column: str, columns: Sequence[tuple[str, str]], metadata: Any) -> int:  # noqa: ANN401
    kinds = dict(columns)
    if kinds.get(column) not in ("string", "large_string", "string_view"):
        there = ", ".join(f"{other} ({kind})" for other, kind in columns)
        raise CorpusError(f"{name}: no text column {column}, it has {there[:300]}; --data.column names another")
    schema = metadata.schema
    return next(i for i in range(len(schema)) if schema.column(i).path == column)


def _row_group(name: str, size: int, group: Any, index: int) -> RowGroup:  # noqa: ANN401
    chunk = group.column(index)
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        start = min(start, chunk.dictionary_page_offset)
    stop = start + chunk.total_compressed_size
    if not 4 <= start < stop <= size - 12 and group.num_rows:
        raise CorpusError(f"{name}: its footer names bytes {start} to {stop}, outside the file")
    _check_size(name, max(chunk.total_uncompressed_size, stop - start))
    return RowGroup(start, stop, group.num_rows, chunk.total_uncompressed_size)


def _check_size(name: str, size: int) -> None:
    if size > _MOST_PAGE:
        raise CorpusError(
            f"{name}: a row group holds {size >> 20} MiB of text or more, at most {_MOST_PAGE >> 20} are read at once; "
            "write it again with smaller row groups (1,000 rows)"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class _Part(io.RawIOBase):
    """A file of which only one part is here; the rest cannot be read."""

    def __init__(self, start: int, raw: bytes, size: int) -> None:
        super().__init__()
        self._start = start
        self._raw = raw
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes of the part; bytes after its end are not there."""
        low = self._at - self._start
        if low < 0:
            raise OSError(f"byte {self._at} is not here")
        data = self._raw[low:] if size is None or size < 0 else self._raw[low : low + size]
        self._at += len(data)
        return data
