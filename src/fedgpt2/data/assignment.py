"""Which windows a slot trains on in a round: disjoint, without state, recomputable by anybody.

Scheme 1 (docs/data.md is normative, with vectors). Of the manifest come M = max_slots x max_pages, the
counters of one span, and U = floor(assign pages / M), the spans of one epoch. For round r and slot:

    s = floor(r / span)        epoch = floor(s / U)
    counter(j) = ((s mod U) * max_slots + slot) * max_pages + j      for j in 0 .. max_pages - 1
    page(j)    = pi_epoch(floor(counter(j) / R)) R + counter(j) mod R

with pi_epoch a permutation of the runs of R pages in the assign pool, keyed by the manifest and the epoch; R
is max_pages where pages are row groups (a slot gets neighbours, behind one footer) and 1 elsewhere. Within an
epoch no page is given to two slots or in two spans, and who joins or leaves moves nobody else's pages. For
all rounds of a span a slot keeps its pages. The W windows of a page are put in the order of a second
permutation; of that order, round r uses part q = (r + j) mod span, the places floor(q W / span) to
floor((q + 1) W / span) - 1, so a span uses each window once. (The + j spreads the empty parts of pages with
fewer windows than `span` over the rounds.) Pages are taken in order of j until there are enough windows; of
the last page the first places of its part are used. Fewer windows than asked for means that max_pages did
not hold them.
"""

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import Pool
from fedgpt2.data.permutation import Permutation
from fedgpt2.data.tokens import Tokens, page_windows, window_count
from fedgpt2.errors import EmptyShareError, Reason, Refused, UsageError
from fedgpt2.types import Digest

__all__ = ["Assignment", "assign", "assigned_page", "gather_windows", "page_of", "slice_windows", "verify"]

PageTokens = Callable[[int], Tokens]
PageLengths = Callable[[int], Sized]  # tokens, or anything else as long


@dataclass(frozen=True)
class Assignment:
    """The windows of one slot in one round, as a work order states them."""

    manifest: Digest
    slot: int
    pages: tuple[int, ...]  # of the assign pool, for j = 0, 1, ...
    windows: tuple[tuple[int, ...], ...]  # of each page, in the order of use

    @property
    def n_windows(self) -> int:
        """Windows in all."""
        return sum(map(len, self.windows))


def assigned_page(manifest: Manifest, round: int, slot: int, j: int) -> int:
    """Page of the assign pool that a slot's j-th counter names in a round."""
    epoch, span = divmod(round // manifest.span, manifest.epoch_spans)
    return page_of(manifest, epoch, (span * manifest.max_slots + slot) * manifest.max_pages + j)


def page_of(manifest: Manifest, epoch: int, counter: int) -> int:
    """Page of the assign pool behind a counter of an epoch."""
    run, place = divmod(counter, manifest.run)
    runs = _runs(manifest.digest(), manifest.seed, epoch, manifest.pools[Pool.ASSIGN] // manifest.run)
    return runs(run) * manifest.run + place


def slice_windows(manifest: Manifest, round: int, j: int, page: int, count: int) -> tuple[int, ...]:
    """Windows of a page with `count` windows that a round uses, in order of use."""
    part = (round + j) % manifest.span
    low, high = part * count // manifest.span, (part + 1) * count // manifest.span
    if low == high:
        return ()
    epoch = round // manifest.span // manifest.epoch_spans
    order = Permutation(_label(manifest.digest(), manifest.seed, "windows", epoch, page), count)
    return tuple(order(place) for place in range(low, high))


def assign(manifest: Manifest, pages_tokens: PageLengths, round: int, slot: int, n_windows: int) -> Assignment:
    """The first `n_windows` windows of a slot's share in a round, or all of it if it has fewer.

    `pages_tokens` gives the tokens of an assign page; only their number counts. Raises UsageError for a slot
    the manifest does not have, EmptyShareError if the share is empty.
    """
    if not 0 <= slot < manifest.max_slots:
        raise UsageError(f"slot {slot}: --data.max_slots is {manifest.max_slots}; raise it for more miners")
    share = list(_share(manifest, pages_tokens, round, slot, n_windows))
    while share and not share[-1][1]:  # pages that add nothing at the end need not be fetched
        share.pop()
    if not share:
        raise EmptyShareError(
            f"round {round}: no windows of {manifest.seq_len} tokens for slot {slot}; "
            "lower --data.span or --data.seq_len, or raise --data.max_pages"
        )
    pages, windows = zip(*share, strict=True)
    return Assignment(manifest.digest(), slot, pages, windows)


def _share(
    manifest: Manifest, pages_tokens: PageLengths, round: int, slot: int, missing: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Pages of a slot with the windows taken of each, until none of `missing` is; each is read when it is asked for."""
    for j in range(manifest.max_pages):
        if missing <= 0:
            return
        page = assigned_page(manifest, round, slot, j)
        count = window_count(pages_tokens(page), manifest.seq_len)
        windows = slice_windows(manifest, round, j, page, count)[:missing]
        missing -= len(windows)
        yield page, windows


def verify(manifest: Manifest, assignment: Assignment, round: int, pages_tokens: PageLengths | None = None) -> None:
    """Raise Refused unless this is what the scheme gives the slot in the round.

    Without `pages_tokens` only what needs no text is checked: manifest, slot, pages, and that no window is
    named twice. No page is read but those named. Reasons: WRONG_MANIFEST, WRONG_ASSIGNMENT.
    """
    _check_form(manifest, assignment)
    if round < 0:
        raise _wrong(f"there is no round {round}")
    for j, page in enumerate(assignment.pages):
        if page != assigned_page(manifest, round, assignment.slot, j):
            raise _wrong(f"page {page} is not the slot's page {j} of round {round}")
    if pages_tokens is None:
        return
    share = _share(manifest, pages_tokens, round, assignment.slot, assignment.n_windows)
    if tuple(windows for _, windows in islice(share, len(assignment.pages))) != assignment.windows:
        raise _wrong(f"the windows are not the slot's windows of round {round}")


def gather_windows(pages_tokens: PageTokens, assignment: Assignment, seq_len: int) -> Tokens:
    """The assigned windows in order, uint16 [n_windows, seq_len + 1].

    Raises Refused(WRONG_ASSIGNMENT) for a window that its page does not have.
    """
    parts = [np.empty((0, seq_len + 1), dtype=np.uint16)]
    for page, chosen in zip(assignment.pages, assignment.windows, strict=True):
        windows = page_windows(pages_tokens(page), seq_len)
        if not all(0 <= window < len(windows) for window in chosen):
            raise _wrong(f"page {page} has {len(windows)} windows, not all of {list(chosen)}")
        parts.append(windows[list(chosen)])
    return np.concatenate(parts)


def _check_form(manifest: Manifest, assignment: Assignment) -> None:
    if assignment.manifest != manifest.digest():
        raise Refused(Reason.WRONG_MANIFEST, f"the order is for manifest {assignment.manifest[:16]}…")
    if not 0 <= assignment.slot < manifest.max_slots:
        raise _wrong(f"slot {assignment.slot} of {manifest.max_slots}")
    if not 1 <= len(assignment.pages) <= manifest.max_pages:
        raise _wrong(f"{len(assignment.pages)} pages, {manifest.max_pages} allowed")
    if len(assignment.windows) != len(assignment.pages) or not assignment.windows[-1]:
        raise _wrong("pages and windows do not match")
    if any(len(set(chosen)) != len(chosen) for chosen in assignment.windows):
        raise _wrong("a window is named twice")


def _wrong(detail: str) -> Refused:
    return Refused(Reason.WRONG_ASSIGNMENT, detail)


@lru_cache(maxsize=8)
def _runs(manifest: Digest, seed: int, epoch: int, size: int) -> Permutation:
    """The permutation of the runs of an epoch; the last few are kept, since one serves many rounds."""
    return Permutation(_label(manifest, seed, "pages", epoch), size)


def _label(manifest: Digest, seed: int, use: str, epoch: int, page: int | None = None) -> bytes:
    """What keys a permutation: its use, the seed, the manifest, the pool, the epoch and the page."""
    parts = ["fedgpt2", "1", use, str(seed), manifest, Pool.ASSIGN.value, str(epoch)]
    return "\n".join(parts if page is None else [*parts, str(page)]).encode("ascii")
