"""A repository shaped like Falcon RefinedWeb, of real text: the embedded corpus, cut and shuffled into rows."""

import io
import random
from collections.abc import Iterable, Sequence
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq

from fedgpt2.data import Pool
from fedgpt2.data.parquet import REFINEDWEB, REFINEDWEB_COMMIT
from fedgpt2.data.sample import SampleSource

from .hub import LoopbackHub

SCHEMA = pa.schema(
    [
        ("content", pa.string()),
        ("url", pa.string()),
        ("timestamp", pa.timestamp("s")),
        ("dump", pa.string()),
        ("segment", pa.string()),
        ("image_urls", pa.list_(pa.list_(pa.string()))),
    ]
)


@cache
def sentences() -> tuple[str, ...]:
    """The embedded corpus in pieces of a sentence or so, in one shuffled order."""
    documents = (text for pool in (Pool.ASSIGN, Pool.SCORE, Pool.REPORT) for text in SampleSource.load().texts[pool])
    found = [piece for text in documents for piece in text.split(". ") if piece]
    random.Random(7).shuffle(found)  # noqa: S311
    return tuple(found)


def rows(first: int, count: int, pieces: int) -> list[str]:
    """Documents number `first` and on, of `pieces` sentences each, all different."""
    every = sentences()
    made = []
    for number in range(first, first + count):
        parts = (every[(number * pieces + i) % len(every)] for i in range(pieces))
        made.append(f"{number}: " + ". ".join(parts))
    return made


def shard(documents: Iterable[str], groups: Sequence[int]) -> bytes:
    """A parquet file with row groups of these numbers of rows, in RefinedWeb's schema."""
    sink, texts = io.BytesIO(), iter(documents)
    with pq.ParquetWriter(sink, SCHEMA, compression="snappy") as writer:
        for size in groups:
            content = [next(texts) for _ in range(size)]
            columns = {
                "content": content,
                "url": [f"http://example.org/{len(text)}" for text in content],
                "timestamp": pa.array([1_600_000_000] * size, pa.timestamp("s")),
                "dump": ["CC-MAIN-2013-20"] * size,
                "segment": ["1368696381249"] * size,
                "image_urls": [[["http://example.org/a.png", "a picture"]]] * size,
            }
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=max(1, size))
    return sink.getvalue()


def repository(shape: Sequence[Sequence[int]], pieces: int = 3) -> LoopbackHub:
    """A hub that serves RefinedWeb's name with shards of these row groups."""
    files, first = {"README.md": b"---\nlicense: odc-by\n---\n"}, 0
    for number, groups in enumerate(shape):
        name = f"data/train-{number:05d}-of-{len(shape):05d}-{number:016x}.parquet"
        files[name] = shard(rows(first, sum(groups), pieces), groups)
        first += sum(groups)
    return LoopbackHub(REFINEDWEB, REFINEDWEB_COMMIT, files)
