"""`fedgpt2 bench data`: whether text ever keeps computing waiting.

Rows of the embedded corpus lie in one parquet file of RefinedWeb's kind. `fedgpt2` is the whole way of a page that
was never seen: its bytes, decoding, tokenising, writing it to the cache, dealing it out and gathering its windows.
`cached` is the way of a page that another process has left in the cache. `nano` (or another preset) is the gradient
of some windows on one thread, which is what the tokens are for. `assignments` computes which page a (round, slot, j)
means, at RefinedWeb's size. They take turns.
"""

import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median

from fedgpt2.cli.bench.report import Row, interleave, report
from fedgpt2.cli.bench.worker import peak_mb
from fedgpt2.config import Data, Gradient, Model
from fedgpt2.data.assignment import assigned_page
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import Pool
from fedgpt2.data.sample import SampleSource
from fedgpt2.data.tokens import Tokens
from fedgpt2.gradient.registry import build
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.hardware import prepare

__all__ = ["run"]

_GROUPS, _GROUP_ROWS = 16, 250
_PAGES = 4  # read in a turn
_LOOK_UPS = 100_000
_WINDOWS = 16  # whose gradient is timed
_TARGET_RATIO, _TARGET_LOOK_UPS = 20, 100_000
_REFINEDWEB_PAGES = {Pool.ASSIGN: 5532 * 175, Pool.SCORE: 175, Pool.REPORT: 175}


def run(preset: str, repeats: int, as_json: bool) -> int:
    """Measure, print, return the exit code. Raises UsageError for an unknown preset."""
    shape = Model(preset).shape
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "rows.parquet")
        config = Data(
            source=f"parquet:{folder}/rows.parquet", cache=str(folder / "cache"), max_slots=1, max_pages=_PAGES, span=1
        )
        corpus = Corpus.open(config, shape.block_size, 1)
        windows = _read(corpus)
        tokens = {"fedgpt2": corpus.cache.fetched, "cached": corpus.cache.fetched}
        tokens[preset] = _WINDOWS * shape.block_size
        candidates = {
            "fedgpt2": _fresh(config, shape.block_size, folder),
            "cached": lambda: _read(Corpus(corpus.source, corpus.manifest, corpus.cache.store)),
            preset: _gradient(preset, windows[:_WINDOWS]),
            "assignments": _look_ups(corpus.manifest),
        }
        seconds = interleave({name: _quiet(call) for name, call in candidates.items()}, repeats)
    rows = [Row(name, times, peak_mb(), _extra(name, times, tokens)) for name, times in seconds.items()]
    report("data", rows, as_json=as_json, notes=_notes(preset, seconds, tokens))
    return 0


def _write(path: Path) -> None:
    """The embedded corpus as rows of RefinedWeb's kind, in row groups of 250."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = SampleSource.load().texts
    documents = [text for pool in Pool for text in texts[pool]][: _GROUPS * _GROUP_ROWS]
    table = pa.table({"content": documents, "url": [f"http://example.org/{i}" for i in range(len(documents))]})
    pq.write_table(pa.concat_tables([table, table]), path, row_group_size=_GROUP_ROWS, compression="snappy")


def _read(corpus: Corpus) -> Tokens:
    """All windows of a slot's pages."""
    return corpus.windows(corpus.assign(0, 0, 1 << 30))


def _fresh(config: Data, seq_len: int, folder: Path) -> Callable[[], object]:
    """Read pages with an empty cache, another one each time; footers and hashes are read anew as well."""
    turns = count()
    return lambda: _read(Corpus.open(replace(config, cache=str(folder / f"cache-{next(turns)}")), seq_len, 1))


def _gradient(preset: str, windows: Tokens) -> Callable[[], object]:
    strategy = build(Gradient(), prepare("cpu", 1))
    shape = Model(preset).shape
    model = GPT2(shape, initialise(shape, 0))
    out = model.weights.empty_like()
    return lambda: strategy(model, windows, out=out, stop=threading.Event())


def _look_ups(manifest: Manifest) -> Callable[[], object]:
    large = replace(manifest, max_slots=16, max_pages=8, span=440, pools=_REFINEDWEB_PAGES)

    def look_up() -> None:
        for number in range(_LOOK_UPS):
            assigned_page(large, number, number % 16, number % 8)

    return look_up


def _quiet(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        call()

    return run


def _extra(name: str, times: list[float], tokens: Mapping[str, int]) -> Mapping[str, float | str]:
    amount, unit = (tokens[name], "tokens_per_s") if name in tokens else (_LOOK_UPS, "assignments_per_s")
    return {unit: round(amount / median(times))}


def _notes(preset: str, seconds: Mapping[str, list[float]], tokens: Mapping[str, int]) -> list[str]:
    """The two targets, turn by turn, and what came of them."""
    paces = zip(seconds["fedgpt2"], seconds[preset], strict=True)
    ratio = median((tokens["fedgpt2"] / ours) / (tokens[preset] / theirs) for ours, theirs in paces)
    look_ups = _LOOK_UPS / median(seconds["assignments"])
    return [
        f"text is made {ratio:.0f} times as fast as {preset} uses it on one thread; target {_TARGET_RATIO}",
        f"{look_ups:,.0f} assignments a second; target {_TARGET_LOOK_UPS:,}",
    ]
