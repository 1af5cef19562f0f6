"""Text to tokens: sources of pages, the manifest, the assignment scheme, held-out windows. No torch."""

from fedgpt2.data.assignment import Assignment
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import PageSource, Pool, SourceFile
from fedgpt2.data.pools import Pick, key_digest, new_key
from fedgpt2.data.sources import open_source

__all__ = [
    "Assignment",
    "Corpus",
    "Manifest",
    "PageSource",
    "Pick",
    "Pool",
    "SourceFile",
    "key_digest",
    "new_key",
    "open_source",
]
