"""`fedgpt2 data verify | prefetch | show ROUND SLOT`: inspect the text of a run and fill its cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fedgpt2.cli.help import HELP_FLAGS
from fedgpt2.cli.parsing import parse
from fedgpt2.cli.sources import suggestion
from fedgpt2.config import Data, Model, setting
from fedgpt2.errors import UsageError

if TYPE_CHECKING:
    from fedgpt2.data.corpus import Corpus

__all__ = ["ACTIONS", "Prefetch", "Seed", "Show", "Verify", "main"]

S = TypeVar("S")

ACTIONS: Mapping[str, str] = {
    "verify": "show files, schema, row groups and licence; read some pages; check the cache",
    "prefetch": "fill the cache with the pages that some rounds and slots need",
    "show": "show what a slot trains on in a round",
}


@dataclass(frozen=True)
class Seed:
    """The setting of a run that, with the data settings, determines the assignment of text."""

    seed: int = setting(
        1337, "seed of the run, which determines the assignment of text", common=True, least=0, most=2**53 - 1
    )


@dataclass(frozen=True)
class Verify:
    """Settings of `fedgpt2 data verify`."""

    data: Data = Data()  # noqa: RUF009  (frozen)
    model: Model = Model()  # noqa: RUF009  (frozen)
    run: Seed = Seed()
    pages: int = setting(1, "pages to read from each pool", common=True, least=0)


@dataclass(frozen=True)
class Prefetch:
    """Settings of `fedgpt2 data prefetch`."""

    data: Data = Data()  # noqa: RUF009  (frozen)
    model: Model = Model()  # noqa: RUF009  (frozen)
    run: Seed = Seed()
    first: int = setting(1, "first round to fetch for", common=True, least=0)
    rounds: int = setting(8, "number of rounds to fetch for", common=True, least=1)
    slots: int = setting(1, "number of slots to fetch for, from slot 0", common=True, least=1)
    held_out: bool = setting(False, "also fetch the score and report pools, which a validator needs", common=True)


@dataclass(frozen=True)
class Show:
    """Settings of `fedgpt2 data show ROUND SLOT`."""

    data: Data = Data()  # noqa: RUF009  (frozen)
    model: Model = Model()  # noqa: RUF009  (frozen)
    run: Seed = Seed()
    text: int = setting(3, "number of windows to excerpt", common=True, least=0)


def main(argv: Sequence[str]) -> int:
    """Run one action; return the exit code. Raises UsageError for an unknown one, CorpusError for unreadable text."""
    name = argv[0] if argv else "--help"
    if name in HELP_FLAGS:
        print(_help())
        return 0 if argv else UsageError.exit_code
    if name not in ACTIONS:
        raise UsageError(f"unknown action {name}{suggestion(name, ACTIONS)}; one of {', '.join(ACTIONS)}")
    actions: Mapping[str, Callable[[Sequence[str]], None]] = {"verify": _verify, "prefetch": _prefetch, "show": _show}
    actions[name](argv[1:])
    return 0


def _verify(argv: Sequence[str]) -> None:
    settings = _parse(Verify, "verify", argv, "--data.source sample")
    from fedgpt2.cli.data_report import describe, read_pages, verify_cache

    corpus = _open(settings)
    describe(corpus)
    read_pages(corpus, settings.pages)
    verify_cache(corpus)


def _prefetch(argv: Sequence[str]) -> None:
    settings = _parse(Prefetch, "prefetch", argv, "--rounds 100 --slots 8 --held_out")
    from fedgpt2.cli.data_report import credit, fetch

    corpus = _open(settings)
    credit(corpus)
    rounds = range(settings.first, settings.first + settings.rounds)
    fetch(corpus, rounds, range(settings.slots), settings.data.windows, held_out=settings.held_out)


def _show(argv: Sequence[str]) -> None:
    """The arguments are two numbers, then flags."""
    words = [] if HELP_FLAGS.intersection(argv) else argv[:2]
    settings = _parse(Show, "show", argv[len(words) :], "3 0 --data.source sample")
    if len(words) != 2 or not all(word.isascii() and word.isdecimal() for word in words):
        raise UsageError("fedgpt2 data show ROUND SLOT: give two whole numbers")
    from fedgpt2.cli.data_report import describe, show

    corpus = _open(settings)
    describe(corpus)
    show(corpus, int(words[0]), int(words[1]), settings.data.windows, settings.text)


def _parse(settings: type[S], action: str, argv: Sequence[str], example: str) -> S:
    prog, about = f"fedgpt2 data {action}", f"{ACTIONS[action].capitalize()}."
    numbers = " ROUND SLOT" if action == "show" else ""
    return parse(settings, argv, prog=f"{prog}{numbers}", about=about, example=f"{prog} {example}")


def _open(settings: Verify | Prefetch | Show) -> "Corpus":
    from fedgpt2.data.corpus import Corpus

    return Corpus.open(settings.data, settings.model.shape.block_size, settings.run.seed)


def _help() -> str:
    lines = ["usage: fedgpt2 data ACTION [--NAME VALUE ...]", ""]
    return "\n".join(lines + [f"  {name:10} {text}" for name, text in ACTIONS.items()])
