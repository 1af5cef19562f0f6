"""The embedded corpus: the State of the Union addresses, 1790-2021 (10.8 MB, 2.1 million tokens).

Made by scripts/build_corpus.py: a line `# YEAR NAME` opens an address, each further line is a document.
Whole addresses are held out, spread over the years: of every 20 addresses the 10th is for the score pool
and the 20th for the report pool. It is prose of one kind, not web text.
"""

import hashlib
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files

from fedgpt2.data.pages import Pool, SourceFile, check_page
from fedgpt2.errors import CorpusError

__all__ = ["SAMPLE_FILE", "SampleSource"]

SAMPLE_FILE = SourceFile("sotu.txt", 10_766_592, "df284feca0a0009a6fb753aaf0197dcd7dced331391fa3cc8003a8e14bbbea92")
_PAGE_DOCUMENTS = 8
_HELD_OUT = {9: Pool.SCORE, 19: Pool.REPORT}  # address number modulo 20


@dataclass(frozen=True)
class SampleSource:
    """The embedded corpus as pages of 8 documents; the last documents of a pool, too few for a page, are not used.

    A simulation of very many miners makes the pages smaller, so that there is one for each.
    """

    texts: Mapping[Pool, tuple[str, ...]]
    name: str = "sample"
    page_documents: int = _PAGE_DOCUMENTS
    page_tokens: int = 0
    credit: str = ""

    @classmethod
    def load(cls) -> "SampleSource":
        """Read the embedded corpus; about 0.2 s. Raises CorpusError if the file is damaged."""
        texts: dict[Pool, list[str]] = {pool: [] for pool in Pool}
        for number, address in enumerate(_addresses(_read())):
            texts[_HELD_OUT.get(number % 20, Pool.ASSIGN)].extend(address)
        return cls({pool: tuple(documents) for pool, documents in texts.items()})

    @property
    def pools(self) -> Mapping[Pool, int]:
        """Pages in each pool."""
        return {pool: len(documents) // self.page_documents for pool, documents in self.texts.items()}

    def files(self) -> list[SourceFile]:
        """The one text file, as it is before compression."""
        return [SAMPLE_FILE]

    def documents(self, pool: Pool, page: int) -> list[str]:
        """The documents of a page. Raises CorpusError if there is no such page."""
        check_page(self, pool, page)
        return list(self.texts[pool][page * self.page_documents : (page + 1) * self.page_documents])


def _read() -> str:
    asset = files("fedgpt2.data") / "assets" / "sotu.xz"
    try:
        raw = lzma.decompress(asset.read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise CorpusError(f"{asset}: cannot be read ({error}); install fedgpt2 again") from error
    if hashlib.sha256(raw).hexdigest() != SAMPLE_FILE.sha256:
        raise CorpusError(f"{asset}: not the embedded corpus; install fedgpt2 again")
    return raw.decode("utf-8")


def _addresses(text: str) -> Iterator[list[str]]:
    """The documents of each address, in order."""
    for address in text.removeprefix("# ").split("\n# "):
        yield address.rstrip("\n").split("\n")[1:]
