"""`text:GLOB`: a corpus of one's own, UTF-8 text files cut into documents of about 2.5 KB.

Only byte ranges are kept; a page is read again when it is asked for. Of every 20 pages the 10th is for
the score pool and the 20th for the report pool.
"""

import codecs
import glob
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedgpt2.data.pages import Pool, SourceFile, check_page
from fedgpt2.data.split import document_spans
from fedgpt2.errors import CorpusError

__all__ = ["TextSource"]

_PAGE_DOCUMENTS = 8
_HELD_OUT = {9: Pool.SCORE, 19: Pool.REPORT}  # page number modulo 20
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

    @classmethod
    def open(cls, pattern: str) -> "TextSource":
        """Read and index every file the glob names (`**` descends into folders).

        Raises CorpusError, naming the file, for one that cannot be read or is not UTF-8; also if the glob
        names no file, or the files hold fewer than 20 pages.
        """
        root, paths = _matches(pattern)
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
        groups, rest = divmod(len(self.spans) // _PAGE_DOCUMENTS, 20)
        score = groups + (rest > 9)
        return {Pool.ASSIGN: 18 * groups + rest - (rest > 9), Pool.SCORE: score, Pool.REPORT: groups}

    def files(self) -> list[SourceFile]:
        """The text files, in path order; paths are relative to the fixed part of the glob."""
        return list(self.entries)

    def documents(self, pool: Pool, page: int) -> list[str]:
        """The 8 documents of a page. Raises CorpusError if there is none, or its file has changed."""
        check_page(self, pool, page)
        first = _page_number(pool, page) * _PAGE_DOCUMENTS
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


def _page_number(pool: Pool, page: int) -> int:
    """Number among all pages of a pool's page."""
    for place, held_out in _HELD_OUT.items():
        if held_out is pool:
            return 20 * page + place
    group, place = divmod(page, 18)
    return 20 * group + place + (place >= 9)


def _matches(pattern: str) -> tuple[Path, list[Path]]:
    """The folder that is the fixed part of the glob, and the files it names, in path order."""
    full = Path(pattern).expanduser()
    if not full.name:
        raise CorpusError(f"text:{pattern}: names no file")
    fixed = [part for part in _until_magic(full.parts) if part]
    root = Path(*fixed) if fixed else Path()
    found = [Path(name) for name in glob.glob(str(full), recursive=True)]
    paths = sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(root).as_posix())
    if not paths:
        raise CorpusError(f"text:{pattern}: names no file")
    return root, paths


def _until_magic(parts: tuple[str, ...]) -> list[str]:
    """The leading path components without a wildcard, the last component never among them."""
    fixed: list[str] = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


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
    """The file as the manifest names it. Raises CorpusError for a name that is not UTF-8."""
    relative = path.relative_to(root).as_posix()
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorpusError(f"{path!a}: its name is not UTF-8") from error
    return SourceFile(relative, len(raw), hashlib.sha256(raw).hexdigest())
