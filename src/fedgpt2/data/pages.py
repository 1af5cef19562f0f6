"""What a source of text is: numbered pages in three disjoint pools, and the files they come from."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

from fedgpt2.errors import CorpusError

__all__ = ["PageSource", "Pool", "SourceFile", "check_page"]


class Pool(StrEnum):
    """Who a page is for; no page is in two pools."""

    ASSIGN = "assign"  # miners train on it
    SCORE = "score"  # ranking and the loss gate, behind the evaluation key
    REPORT = "report"  # val_loss; decides nothing


class SourceFile(NamedTuple):
    """One file of a corpus, as the manifest names it."""

    path: str  # relative, with forward slashes: the same on every machine
    size: int  # bytes
    sha256: str  # 64 lower-case hex characters


class PageSource(Protocol):
    """A corpus cut into pages: a page is the unit of fetching, a document a string inside it."""

    @property
    def name(self) -> str:
        """Kind of source, as the manifest records it."""
        ...

    @property
    def page_documents(self) -> int:
        """Documents a page; 0 where that differs from page to page."""
        ...

    @property
    def pools(self) -> Mapping[Pool, int]:
        """Pages in each pool; a pool's pages are numbered from 0."""
        ...

    def files(self) -> list[SourceFile]:
        """The files behind the pages, in path order."""
        ...

    def documents(self, pool: Pool, page: int) -> list[str]:
        """The documents of a page, in order.

        Raises CorpusError if there is no such page, or it cannot be read.
        """
        ...


def check_page(source: PageSource, pool: Pool, page: int) -> None:
    """Raise CorpusError unless the source has the page."""
    if not 0 <= page < source.pools[pool]:
        raise CorpusError(f"{source.name}: no page {page} in the {pool} pool of {source.pools[pool]} pages")
