"""What a source of text is: numbered pages in three disjoint pools, and the files they come from."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

from fedgpt2.errors import CorpusError

__all__ = ["PageSource", "Pool", "SourceFile", "check_page", "held_out_place", "held_out_pools"]

_CYCLE = 20  # of so many pages in a row, one is for the score pool and one for the report pool


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

    @property
    def page_tokens(self) -> int:
        """About how many tokens a page has, where its size is the source's own; 0 for pages of `page_documents`."""
        ...

    @property
    def credit(self) -> str:
        """What the licence of the text asks to be said with it, one line; may be empty."""
        ...

    def files(self) -> list[SourceFile]:
        """The files behind the pages, in path order; one entry may stand for a whole listing."""
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


_HELD_OUT = {Pool.SCORE: 9, Pool.REPORT: 19}  # number modulo _CYCLE


def held_out_pools(pages: int) -> Mapping[Pool, int]:
    """Pages in each pool, where pages numbered together are dealt to the pools by their number modulo 20."""
    groups, rest = divmod(pages, _CYCLE)
    score = groups + (rest > _HELD_OUT[Pool.SCORE])
    return {Pool.ASSIGN: pages - score - groups, Pool.SCORE: score, Pool.REPORT: groups}


def held_out_place(pool: Pool, page: int) -> int:
    """Number among all pages of a pool's page, dealt as `held_out_pools` says."""
    if pool in _HELD_OUT:
        return _CYCLE * page + _HELD_OUT[pool]
    group, place = divmod(page, _CYCLE - len(_HELD_OUT))
    return _CYCLE * group + place + (place >= _HELD_OUT[Pool.SCORE])
