"""Output of `fedgpt2 data` about a corpus, with progress bars."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedgpt2.data.corpus import Corpus
from fedgpt2.data.pages import Pool
from fedgpt2.data.parquet import ParquetSource
from fedgpt2.data.tokenizer import EOT, load
from fedgpt2.data.tokens import window_count
from fedgpt2.errors import EmptyShareError

__all__ = ["credit", "describe", "fetch", "read_pages", "show", "verify_cache"]

_EXCERPT = 160  # characters of a window


def credit(corpus: Corpus) -> None:
    """Print the attribution that the licence of the text requires."""
    if corpus.source.credit:
        _print_line("licence", corpus.source.credit)


def describe(corpus: Corpus) -> None:
    """Print source, licence, files, schema, row groups, pools and manifest."""
    source, manifest = corpus.source, corpus.manifest
    _print_line("source", source.shards.name if isinstance(source, ParquetSource) else source.name)
    credit(corpus)
    if isinstance(source, ParquetSource):
        _describe_files(source)
    else:
        _print_line("files", f"{len(source.files())}, {_bytes(sum(file.size for file in source.files()))}")
    pools = ", ".join(f"{pages:,} {pool}" for pool, pages in manifest.pools.items())
    usual = f"; about {source.page_tokens:,} tokens a page" if source.page_tokens else ""
    _print_line("pages", f"{pools}{usual}")
    _print_line(
        "manifest",
        f"{manifest.digest()}, {len(manifest.to_bytes())} bytes: windows of {manifest.seq_len} tokens, a page lasts "
        f"{manifest.span} rounds, {manifest.max_slots} slots, at most {manifest.max_pages} pages each",
    )


def read_pages(corpus: Corpus, count: int) -> None:
    """Read the first `count` pages of each pool and print their documents, tokens and windows."""
    todo = [(pool, page) for pool in Pool for page in range(min(count, corpus.manifest.pools[pool]))]
    tokens = documents = windows = 0
    with _progress() as progress:
        for pool, page in progress.track(todo, description="reading pages"):
            stream = corpus.tokens(pool, page)
            tokens += len(stream)
            documents += int((stream == EOT).sum())
            windows += window_count(stream, corpus.manifest.seq_len)
    _print_line("read", f"{len(todo)} pages: {documents:,} documents, {tokens:,} tokens, {windows:,} windows")


def verify_cache(corpus: Corpus) -> None:
    """Check every page in the cache against its digest; remove damaged ones, to be fetched again."""
    store, kind = corpus.cache.store, corpus.cache.kind
    if store is None:
        return
    names, whole, size = store.names(kind), 0, 0
    with _progress() as progress:
        for name in progress.track(names, description="checking the cache"):
            data = store.get(kind, name)
            whole += data is not None
            size += len(data or b"")
    damaged = f"; {len(names) - whole} were damaged and removed" if whole < len(names) else ", all intact"
    _print_line("cache", f"{store.folder}: {whole} pages of this text, {_bytes(size)}{damaged}")


def fetch(corpus: Corpus, rounds: Sequence[int], slots: Iterable[int], windows: int, *, held_out: bool) -> None:
    """Fetch the pages of these rounds and slots, several at a time; with `held_out` also the score and report pools."""
    shares = [(round, slot) for round in rounds for slot in slots]
    pages = [(pool, page) for pool in (Pool.SCORE, Pool.REPORT) for page in range(corpus.manifest.pools[pool])]
    for round, slot in shares:
        corpus.load(round, [slot], windows)
    empty = 0
    with _progress() as progress:
        for round, slot in progress.track(shares, description="fetching for rounds"):
            try:
                corpus.assign(round, slot, windows)
            except EmptyShareError:
                empty += 1
        for pool, page in progress.track(pages if held_out else [], description="fetching held-out pages"):
            corpus.tokens(pool, page)
    corpus.close()
    store = corpus.cache.store
    kept = f"kept in {store.folder}" if store is not None else "this text is not cached"
    none = f"; {empty} slots have no text" if empty else ""
    _print_line("fetched", f"{corpus.cache.fetched:,} tokens for {len(shares)} shares; {kept}{none}")


def show(corpus: Corpus, round: int, slot: int, windows: int, excerpts: int) -> None:
    """Print the pages and windows of a slot in a round, and the beginning of some windows."""
    share = corpus.assign(round, slot, windows)
    table = Table(title=f"round {round}, slot {slot}: {share.n_windows} windows of {corpus.manifest.seq_len} tokens")
    for column in ("page", "file", "row group", "windows used", "of"):
        table.add_column(column, justify="left" if column in ("file", "windows used") else "right", overflow="fold")
    for page, chosen in zip(share.pages, share.windows, strict=True):
        total = window_count(corpus.tokens(Pool.ASSIGN, page), corpus.manifest.seq_len)
        table.add_row(str(page), *_place(corpus, page), " ".join(map(str, chosen)), str(total))
    console = Console()
    console.print(table)
    for number, window in enumerate(corpus.windows(share)[:excerpts]):
        text = " ".join(load().decode(window.tolist()).split())
        console.print(f"window {number}: {text[:_EXCERPT]}…", markup=False, highlight=False)


def _place(corpus: Corpus, page: int) -> tuple[str, str]:
    source = corpus.source
    if not isinstance(source, ParquetSource):
        return "", ""
    place = source.place(Pool.ASSIGN, page)
    return Path(source.shards.entries[place.file].path).name, str(place.group)


def _describe_files(source: ParquetSource) -> None:
    entries, footers = source.shards.entries, source.known_footers
    size = sum(entry.size for entry in entries)
    _print_line("files", f"{len(entries):,}, {_bytes(size)}; {_listing(source)}")
    _print_line(
        "schema", ", ".join(f"{name} {kind}" for name, kind in footers[0].columns) + f"; text in {source.column}"
    )
    groups = [group for footer in footers for group in footer.groups]
    counts = [len(footer.groups) for footer in footers]
    _print_line(
        "row groups",
        f"{_range(counts)} a file, {_range([group.rows for group in groups])} rows each, "
        f"{_range([(group.stop - group.start) // 1000 for group in groups])} kB of compressed text "
        f"(footers of {len(footers)} files; written by {footers[0].writer})",
    )


def _listing(source: ParquetSource) -> str:
    files = source.files()
    return f"listing sha256 {files[0].sha256}" if len(files) == 1 else "each with its sha256 in the manifest"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 10**9 else f"{size / 1e6:,.1f} MB"


def _print_line(name: str, text: str) -> None:
    print(f"{name:11}{text}", flush=True)


def _progress() -> Progress:
    """A progress bar on stderr; nothing if stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
