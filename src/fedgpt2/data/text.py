"""`text:GLOB`: a corpus of one's own, UTF-8 text files cut into documents of about 2.5 KB.

Only byte ranges are kept; a page is read again when it is asked for. Of every 20 pages the 10th is for
the score pool and the 20th for the report pool.
"""

import codecs
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedgpt2.data.document_splitting import document_spans
from fedgpt2.data.globs import matches, portable
from fedgpt2.data.pages import Pool, SourceFile, check_page, held_out_place, held_out_pools
from fedgpt2.errors import CorpusError

__all__ = ["TextSource"]

_PAGE_DOCUMENTS = 8
_MIN_PAGES = 20


class _Span(NamedTuple):
    """Where a document lies: file number and bytes [start, end)."""

    file: int
    start: int
    end: int


@dataclass(frozen=True)
class TextSource:
    """Text files as pages of 8 documents, in path order; the last documents, under 8, are not used."""

    root: Path
    entries: tuple[SourceFile, ...]
    spans: tuple[_Span, ...]
    name: str = "text"
    page_documents: int = _PAGE_DOCUMENTS
    page_tokens: int = 0
    credit: str = ""

    @classmethod
    def open(cls, pattern: str) -> "TextSource":
        """Read and index every file the glob names (`**` descends into folders).

        Raises CorpusError, naming the file, for one that cannot be read or is not UTF-8; also if the glob
        names no file, or the files hold fewer than 20 pages.
        """
        root, paths = matches(f"text:{pattern}", pattern)
        entries, spans = [], []
        for number, path in enumerate(paths):
            raw = _read(path)
            entries.append(_entry(root, path, raw))
            skip = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
            spans += [_Span(number, a + skip, b + skip) for a, b in document_spans(raw[skip:])]
        if len(spans) < _MIN_PAGES * _PAGE_DOCUMENTS:
            raise CorpusError(
                f"text:{pattern}: too small: {len(spans)} documents of about 2.5 KB, "
                f"at least {_MIN_PAGES * _PAGE_DOCUMENTS} are needed"
            )
        return cls(root, tuple(entries), tuple(spans))

    @property
    def pools(self) -> Mapping[Pool, int]:
        """Pages in each pool."""
        return held_out_pools(len(self.spans) // _PAGE_DOCUMENTS)

    def files(self) -> list[SourceFile]:
        """The text files, in path order; paths are relative to the fixed part of the glob."""
        return list(self.entries)

    def documents(self, pool: Pool, page: int) -> list[str]:
        """The 8 documents of a page. Raises CorpusError if there is none, or its file has changed."""
        check_page(self, pool, page)
        first = held_out_place(pool, page) * _PAGE_DOCUMENTS
        return [self._document(span) for span in self.spans[first : first + _PAGE_DOCUMENTS]]

    def _document(self, span: _Span) -> str:
        entry = self.entries[span.file]
        path = self.root / entry.path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(span.start)
                text = file.read(span.end - span.start).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}: cannot be read any more ({error})") from error
        if size != entry.size:
            raise CorpusError(f"{path}: has changed since the run began")
        return text


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        raw.decode("utf-8")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 text (byte {error.start})") from error
    return raw


def _entry(root: Path, path: Path, raw: bytes) -> SourceFile:
    """The file as the manifest names it."""
    return SourceFile(portable(root, path), len(raw), hashlib.sha256(raw).hexdigest())
