"""The manifest: everything that decides which tokens a work order means, in bytes both sides can compare."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import blake3
import msgspec

from fedgpt2.config import Data
from fedgpt2.data.pages import PageSource, Pool, SourceFile
from fedgpt2.data.tokenizer import VOCAB_SHA256
from fedgpt2.errors import CorpusError, Reason, Refused
from fedgpt2.types import Digest

__all__ = ["SCHEME", "VERSION", "Manifest", "build", "check", "default_span"]

VERSION = 1  # of the manifest's fields
SCHEME = 1  # of all that docs/data.md lays down: how text is cut, tokenised, dealt out and drawn

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SMALL_SPAN = 4
_MAX_PAGES_IN_POOL = 1 << 32  # bounds the tables a stranger's manifest can make us build
_BOUNDS = {
    "version": (VERSION, VERSION),
    "scheme": (SCHEME, SCHEME),
    "seq_len": (1, 1 << 20),
    "seed": (0, (1 << 63) - 1),
    "max_slots": (1, 1 << 20),
    "max_pages": (1, 4096),  # what an order can name
    "span": (1, 1 << 20),
    "page_documents": (0, 1 << 32),
}


@dataclass(frozen=True)
class Manifest:
    """What the text is and how it is dealt out; public, named by its digest.

    Raises CorpusError when made with values that no run can have, a corpus too small for its
    settings among them.
    """

    source: str
    files: tuple[SourceFile, ...]
    tokenizer: str  # SHA-256 of vocab.bpe
    seq_len: int  # tokens a window predicts
    seed: int
    max_slots: int  # miners that can be given disjoint pages at once
    max_pages: int  # most pages a miner is given a round
    span: int  # rounds over which a page is used up
    page_documents: int  # documents a page; 0: not fixed
    pools: Mapping[Pool, int]  # pages of each
    version: int = VERSION
    scheme: int = SCHEME

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            if not low <= getattr(self, name) <= high:
                raise CorpusError(f"manifest: {name} is {getattr(self, name)}, not in {low}..{high}")
        _check_hashes(self)
        _check_pools(self)

    @property
    def span_pages(self) -> int:
        """Counters of one span: the pages that all slots together can be given."""
        return self.max_slots * self.max_pages

    @property
    def run(self) -> int:
        """Pages in a row that are dealt together.

        Row groups of one file lie behind one footer, so a slot gets neighbours; pages of another kind are dealt singly.
        """
        return self.max_pages if self.page_documents == 0 else 1

    @property
    def epoch_spans(self) -> int:
        """Spans until the assign pool is dealt out and dealt anew; at least 1."""
        return self.pools[Pool.ASSIGN] // self.span_pages

    def to_bytes(self) -> bytes:
        """Canonical JSON: UTF-8, keys sorted, no white space, only strings and integers."""
        return self._bytes

    def digest(self) -> Digest:
        """BLAKE3 of the canonical bytes, 64 lower-case hex characters."""
        return self._digest

    @cached_property
    def _bytes(self) -> bytes:
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8")

    @cached_property
    def _digest(self) -> Digest:
        return Digest(blake3.blake3(self._bytes).hexdigest())

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Manifest":
        """The manifest of canonical bytes. Raises CorpusError for any others."""
        try:
            manifest = msgspec.json.decode(raw, type=cls)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise CorpusError(f"manifest: not one ({error})") from error
        if manifest.to_bytes() != raw:
            raise CorpusError("manifest: not in canonical form")
        return manifest


def build(source: PageSource, config: Data, seq_len: int, seed: int) -> Manifest:
    """The manifest of a run. Raises CorpusError if the corpus is too small for the settings."""
    return Manifest(
        source=source.name,
        files=tuple(source.files()),
        tokenizer=VOCAB_SHA256,
        seq_len=seq_len,
        seed=seed,
        max_slots=config.max_slots,
        max_pages=config.max_pages,
        span=config.span or default_span(source, config, seq_len),
        page_documents=source.page_documents,
        pools=dict(source.pools),
    )


def default_span(source: PageSource, config: Data, seq_len: int) -> int:
    """Rounds in which a slot uses up its pages, so that little of what it fetched is left over.

    Small pages: 4. Row groups: as long as three quarters of `max_pages` pages of the usual size last, the others being
    for pages that turn out smaller.
    """
    if source.page_tokens == 0:
        return _SMALL_SPAN
    windows = source.page_tokens * max(1, config.max_pages * 3 // 4) // seq_len
    return min(max(1, windows // config.windows), _BOUNDS["span"][1])


def check(manifest: Manifest, source: PageSource) -> None:
    """Raise Refused(WRONG_MANIFEST), saying what differs, unless the manifest describes this source."""
    ours: Mapping[str, object] = {
        "source": source.name,
        "tokenizer": VOCAB_SHA256,
        "page_documents": source.page_documents,
    }
    for name, value in ours.items():
        if getattr(manifest, name) != value:
            raise _wrong(f"{name} is {getattr(manifest, name)} in the manifest, {value} here")
    _check_files(manifest.files, tuple(source.files()))
    for pool, pages in source.pools.items():
        if manifest.pools[pool] != pages:
            raise _wrong(f"the {pool} pool has {manifest.pools[pool]} pages in the manifest, {pages} here")


def _check_files(theirs: tuple[SourceFile, ...], ours: tuple[SourceFile, ...]) -> None:
    for path in sorted({file.path for file in theirs} ^ {file.path for file in ours}):
        where = "only in the manifest" if path in {file.path for file in theirs} else "only here"
        raise _wrong(f"file {path} is {where}")
    for their, our in zip(theirs, ours, strict=True):
        if their != our:
            raise _wrong(f"file {our.path} differs: {our.size} bytes, sha256 {our.sha256[:16]}… here")


def _wrong(detail: str) -> Refused:
    return Refused(Reason.WRONG_MANIFEST, detail)


def _check_hashes(manifest: Manifest) -> None:
    hashes = [manifest.tokenizer, *(file.sha256 for file in manifest.files)]
    if not all(_SHA256.fullmatch(text) for text in hashes):
        raise CorpusError("manifest: a sha256 is not 64 lower-case hex characters")
    paths = [file.path for file in manifest.files]
    if paths != sorted(set(paths)) or any(file.size < 0 for file in manifest.files):
        raise CorpusError("manifest: files are not in path order, each once, with a size")


def _check_pools(manifest: Manifest) -> None:
    pools = manifest.pools
    if set(pools) != set(Pool):
        raise CorpusError(f"manifest: pools are {', '.join(sorted(pools))}, not {', '.join(Pool)}")
    for pool, pages in pools.items():
        if not 1 <= pages <= _MAX_PAGES_IN_POOL:
            raise CorpusError(f"manifest: the {pool} pool cannot have {pages} pages")
    if manifest.epoch_spans < 1:
        raise CorpusError(
            f"corpus too small: its {pools[Pool.ASSIGN]} pages are fewer than --data.max_slots "
            f"{manifest.max_slots} x --data.max_pages {manifest.max_pages}; lower one of them"
        )
