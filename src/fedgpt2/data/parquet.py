"""Parquet as a source of pages: a page is one row group, fetched in a handful of exact ranges.

`refinedweb` is Falcon RefinedWeb on the Hugging Face hub at a pinned commit; `parquet:GLOB` is anybody's files, on
this machine or, as `hf://datasets/OWNER/NAME[@REVISION]/GLOB`, on the hub.
"""

import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock

from fedgpt2.config import DataSource
from fedgpt2.data.hub import Hub
from fedgpt2.data.pages import Pool, SourceFile, check_page, held_out_place, held_out_pools
from fedgpt2.data.retry import Patience
from fedgpt2.data.row_groups import TAIL_BYTES, Footer, footer_range, parse_footer, texts
from fedgpt2.data.shards import Shards, hub_shards, local_shards
from fedgpt2.data.store import Store
from fedgpt2.errors import CorpusError, UsageError

__all__ = ["CREDIT", "REFINEDWEB", "REFINEDWEB_COMMIT", "ParquetSource", "Place", "open_parquet", "open_refinedweb"]

REFINEDWEB = "tiiuae/falcon-refinedweb"
REFINEDWEB_COMMIT = "c735840575b629292b41da8dde11dcd523d4f91c"  # the only one of its main branch, 2023-06
CREDIT = (
    "Contains information from Falcon RefinedWeb (TII, tiiuae/falcon-refinedweb), made available under the Open Data "
    "Commons Attribution License 1.0 (ODC-By); the texts are also under the terms of use of Common Crawl"
)

_REFINEDWEB_FILES = "data/*.parquet"
_REFINEDWEB_COLUMN = "content"
_HUB_GLOB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
_EVERY_FOOTER = 64  # files up to which all footers are read at the start
_RESERVED_FILES = 20  # files from which on whole ones are held out
_MIN_PAGES = 20
_FOOTERS_KEPT = 16  # parsed, in memory
_BYTES_A_TOKEN = 4.5  # of English web text, about


@dataclass(frozen=True)
class Place:
    """Where a page is: its file and the row group in it."""

    file: int
    group: int


@dataclass
class ParquetSource:
    """Row groups of parquet files as pages.

    The layout follows from the files alone (docs/data.md): how many row groups each file is taken to have, and which
    are held out. A page that its file turns out not to have has no documents.
    """

    name: str
    shards: Shards
    column: str
    store: Store
    credit: str = ""
    page_documents: int = 0
    _footers: "OrderedDict[int, Footer]" = field(default_factory=OrderedDict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        count = len(self.shards.entries)
        probed = range(count) if count <= _EVERY_FOOTER else (0, count // 2, count - 2, count - 1)
        footers = {number: self.footer(number) for number in probed}
        self._ends = list(accumulate(_group_counts(count, {n: len(f.groups) for n, f in footers.items()})))
        self.pools: Mapping[Pool, int] = self._deal()
        groups = [group for footer in footers.values() for group in footer.groups]
        self.page_tokens = max(1, int(sum(group.text_bytes for group in groups) / len(groups) / _BYTES_A_TOKEN))

    def files(self) -> list[SourceFile]:
        """The files as the manifest names them: one by one if they are few and local, else the listing as one."""
        return list(self.shards.manifest_files)

    @property
    def known_footers(self) -> Sequence[Footer]:
        """The footers in memory, at least one; those read last."""
        with self._lock:
            return list(self._footers.values())

    def place(self, pool: Pool, page: int) -> Place:
        """File and row group of a page. Raises CorpusError if the pool has no such page."""
        check_page(self, pool, page)
        number = self._number(pool, page)
        file = bisect_right(self._ends, number)
        return Place(file, number - (self._ends[file - 1] if file else 0))

    def footer(self, number: int) -> Footer:
        """The footer of a file; fetched once, kept on disk. Raises CorpusError."""
        with self._lock:
            kept = self._footers.get(number)
            if kept is not None:
                self._footers.move_to_end(number)
                return kept
        footer = self._read_footer(self.shards.entries[number])
        with self._lock:
            self._footers[number] = footer
            while len(self._footers) > _FOOTERS_KEPT:
                self._footers.popitem(last=False)
        return footer

    def documents(self, pool: Pool, page: int) -> list[str]:
        """The documents of a page, in row order; none where the file has no such row group.

        Raises CorpusError if it cannot be read. Bytes that do not decode are fetched once more.
        """
        place = self.place(pool, page)
        file, footer = self.shards.entries[place.file], self.footer(place.file)
        if place.group >= len(footer.groups) or not footer.groups[place.group].rows:
            return []
        group = footer.groups[place.group]
        raw = self.shards.read(file, group.start, group.stop)
        try:
            return texts(footer, place.group, raw)
        except CorpusError:
            return texts(footer, place.group, self.shards.read(file, group.start, group.stop))

    def _read_footer(self, file: SourceFile) -> Footer:
        name = file.sha256[:32]
        with self.store.turn("footers", name):
            kept = self.store.get("footers", name)
            raw = kept if kept is not None else self._fetch_footer(file)
            footer = parse_footer(file.path, file.size, self.column, raw)
            if kept is None:
                self.store.put("footers", name, raw)
        return footer

    def _fetch_footer(self, file: SourceFile) -> bytes:
        if file.size < 12:
            raise CorpusError(f"{file.path}: not a parquet file, {file.size} bytes")
        first = max(0, file.size - TAIL_BYTES)
        tail = self.shards.read(file, first, file.size)
        start, stop = footer_range(file.path, file.size, tail)
        if start >= first:
            return tail[start - first : stop - first]
        return self.shards.read(file, start, first) + tail[: stop - first]

    def _deal(self) -> Mapping[Pool, int]:
        """Pages of each pool: the last two of many files are held out, or every twentieth page of few files."""
        ends = self._ends
        if len(ends) >= _RESERVED_FILES:
            assign = ends[-3]
            return {Pool.ASSIGN: assign, Pool.SCORE: ends[-2] - assign, Pool.REPORT: ends[-1] - ends[-2]}
        if ends[-1] < _MIN_PAGES:
            raise CorpusError(
                f"{self.shards.name}: {ends[-1]} row groups, at least {_MIN_PAGES} are needed; "
                "write the files again with smaller row groups (1,000 rows)"
            )
        return held_out_pools(ends[-1])

    def _number(self, pool: Pool, page: int) -> int:
        """Number of a page among the row groups of all files."""
        if len(self._ends) < _RESERVED_FILES:
            return held_out_place(pool, page)
        return page + {Pool.ASSIGN: 0, Pool.SCORE: self._ends[-3], Pool.REPORT: self._ends[-2]}[pool]


def open_refinedweb(config: DataSource, store: Store, patience: Patience) -> ParquetSource:
    """Falcon RefinedWeb at `--data.revision`, or the pinned commit. Raises CorpusError."""
    hub = Hub(REFINEDWEB, config.revision or REFINEDWEB_COMMIT, patience)
    shards = hub_shards(hub, _REFINEDWEB_FILES, store)
    return ParquetSource("refinedweb", shards, _REFINEDWEB_COLUMN, store, CREDIT)


def open_parquet(pattern: str, config: DataSource, store: Store, patience: Patience) -> ParquetSource:
    """The files of `parquet:GLOB`, text in `--data.column`. Raises CorpusError, UsageError for an unknown scheme."""
    return ParquetSource(f"parquet:{config.column}", _shards(pattern, config, store, patience), config.column, store)


def _shards(pattern: str, config: DataSource, store: Store, patience: Patience) -> Shards:
    if "://" not in pattern:
        return local_shards(pattern, store)
    found = _HUB_GLOB.fullmatch(pattern)
    if found is None:
        raise UsageError(f"--data.source parquet:{pattern}: write hf://datasets/OWNER/NAME[@REVISION]/GLOB")
    repo, revision, files = found.groups()
    return hub_shards(Hub(repo, revision or config.revision or "main", patience), files, store)


def _group_counts(files: int, known: Mapping[int, int]) -> Sequence[int]:
    """Row groups each file is taken to have; where only some footers were read, the least of those."""
    if len(known) == files:
        return [known[number] for number in range(files)]
    assumed = min(known[0], known[files // 2])
    return [known.get(number, assumed) if number >= files - 2 else assumed for number in range(files)]
