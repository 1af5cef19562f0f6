"""From `--data.source` to a source of pages."""

from fedgpt2.config import Data
from fedgpt2.data.pages import PageSource
from fedgpt2.data.sample import SampleSource
from fedgpt2.data.text import TextSource
from fedgpt2.errors import CorpusError, UsageError

__all__ = ["open_source"]


def open_source(config: Data) -> PageSource:
    """The source that `--data.source` names.

    Raises UsageError for a name that is none, CorpusError where the text cannot be reached or read.
    """
    kind, _, pattern = config.source.partition(":")
    if config.source == "sample":
        return SampleSource.load()
    if kind == "text" and pattern:
        return TextSource.open(pattern)
    if config.source == "refinedweb":
        raise CorpusError(
            "--data.source refinedweb: Falcon RefinedWeb cannot be reached or read here; "
            "--data.source sample trains on the embedded corpus"
        )
    if kind == "parquet" and pattern:
        raise CorpusError(
            f"--data.source {config.source}: parquet files cannot be read here; "
            "--data.source sample trains on the embedded corpus"
        )
    raise UsageError(
        f"--data.source {config.source}: no such source; one of refinedweb, sample, parquet:GLOB, text:GLOB"
    )
