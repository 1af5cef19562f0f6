"""From `--data.source` to a source of pages, and to the cache that goes with it."""

from fedgpt2.config import DataSource
from fedgpt2.data.pages import PageSource
from fedgpt2.data.parquet import ParquetSource, open_parquet, open_refinedweb
from fedgpt2.data.retry import Patience
from fedgpt2.data.sample import SampleSource
from fedgpt2.data.store import Store
from fedgpt2.data.text import TextSource
from fedgpt2.errors import UsageError

__all__ = ["open_source", "open_store"]


def open_source(config: DataSource, patience: Patience | None = None) -> PageSource:
    """The source that `--data.source` names; `patience` bounds how long a network is tried.

    Raises UsageError for a name that is none, CorpusError where the text cannot be reached or read.
    """
    kind, _, pattern = config.source.partition(":")
    if config.source == "sample":
        return SampleSource.load()
    if kind == "text" and pattern:
        return TextSource.open(pattern)
    if config.source == "refinedweb":
        return open_refinedweb(config, Store.open(config.cache, config.cache_gb), patience or Patience())
    if kind == "parquet" and pattern:
        return open_parquet(pattern, config, Store.open(config.cache, config.cache_gb), patience or Patience())
    raise UsageError(
        f"--data.source {config.source}: no such source; one of refinedweb, sample, parquet:GLOB, text:GLOB"
    )


def open_store(config: DataSource, source: PageSource) -> Store | None:
    """The cache for a source's tokenised pages; None for the embedded corpus, which is faster to tokenise again.

    Raises CorpusError where the folder cannot be used.
    """
    if isinstance(source, ParquetSource):
        return source.store
    return None if config.source == "sample" else Store.open(config.cache, config.cache_gb)
