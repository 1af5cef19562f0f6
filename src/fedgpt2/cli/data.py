"""`fedgpt2 data verify | prefetch | show ROUND SLOT`: the text of a run, before and beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgpt2.cli.parsing import parse
from fedgpt2.cli.sources import suggestion
from fedgpt2.config import Data, Model, setting
from fedgpt2.errors import UsageError

if TYPE_CHECKING:
    from fedgpt2.data.corpus import Corpus

__all__ = ["ACTIONS", "Prefetch", "Seed", "Show", "Verify", "main"]

ACTIONS: Mapping[str, str] = {
    "verify": "what the text is: files, schema, row groups, licence; reads some pages and checks the cache",
    "prefetch": "fill the cache with the pages that some rounds and slots will need",
    "show": "what a slot trains on in a round: `fedgpt2 data show ROUND SLOT`",
}


@dataclass(frozen=True)
class Seed:
    """The part of a run's settings that the dealing of text depends on."""

    seed: int = setting(1337, "seed of the run, which deals out the text", least=0, most=2**53 - 1)


@dataclass(frozen=True)
class Verify:
    """Settings of `fedgpt2 data verify`."""

    data: Data = Data()  # noqa: RUF009  (frozen)
    model: Model = Model()  # noqa: RUF009  (frozen)
    run: Seed = Seed()
    pages: int = setting(1, "pages of each pool to read", least=0)


@dataclass(frozen=True)
class Prefetch:
    """Settings of `fedgpt2 data prefetch`."""

    data: Data = Data()  # noqa: RUF009  (frozen)
    model: Model = Model()  # noqa: RUF009  (frozen)
    run: Seed = Seed()
    first: int = setting(1, "first round to fetch for", least=0)
    rounds: int = setting(8, "rounds to fetch for", least=1)
    slots: int = setting(1, "slots to fetch for: 0 to this less one", least=1)
    held_out: bool = setting(False, "also fetch the score and report pools, which a validator needs")


@dataclass(frozen=True)
class Show:
    """Settings of `fedgpt2 data show ROUND SLOT`."""

    data: Data = Data()  # noqa: RUF009  (frozen)
    model: Model = Model()  # noqa: RUF009  (frozen)
    run: Seed = Seed()
    text: int = setting(3, "windows whose beginning is printed", least=0)


def main(argv: Sequence[str]) -> int:
    """Run one action; the exit code. Raises UsageError for one that is none, CorpusError where text cannot be read."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0 if argv else UsageError.exit_code
    if name not in ACTIONS:
        raise UsageError(f"unknown action {name}{suggestion(name, ACTIONS)}; one of {', '.join(ACTIONS)}")
    actions: Mapping[str, Callable[[Sequence[str]], None]] = {"verify": _verify, "prefetch": _prefetch, "show": _show}
    actions[name](argv[1:])
    return 0


def _verify(argv: Sequence[str]) -> None:
    settings = parse(Verify, argv, prog="fedgpt2 data verify", about=f"Shows {ACTIONS['verify']}.")
    from fedgpt2.cli.data_report import describe, read_pages, verify_cache

    corpus = _open(settings)
    describe(corpus)
    read_pages(corpus, settings.pages)
    verify_cache(corpus)


def _prefetch(argv: Sequence[str]) -> None:
    settings = parse(Prefetch, argv, prog="fedgpt2 data prefetch", about="Fills the cache for some rounds and slots.")
    from fedgpt2.cli.data_report import credit, fetch

    corpus = _open(settings)
    credit(corpus)
    rounds = range(settings.first, settings.first + settings.rounds)
    fetch(corpus, rounds, range(settings.slots), settings.data.windows, held_out=settings.held_out)


def _show(argv: Sequence[str]) -> None:
    """Takes its two numbers first, then flags."""
    words = argv[:2] if argv[:1] not in (["-h"], ["--help"]) else []
    settings = parse(Show, argv[len(words) :], prog="fedgpt2 data show ROUND SLOT", about=f"Shows {ACTIONS['show']}.")
    if len(words) != 2 or not all(word.isascii() and word.isdecimal() for word in words):
        raise UsageError("fedgpt2 data show ROUND SLOT: two whole numbers are needed")
    from fedgpt2.cli.data_report import describe, show

    corpus = _open(settings)
    describe(corpus)
    show(corpus, int(words[0]), int(words[1]), settings.data.windows, settings.text)


def _open(settings: Verify | Prefetch | Show) -> "Corpus":
    from fedgpt2.data.corpus import Corpus

    return Corpus.open(settings.data, settings.model.shape.block_size, settings.run.seed)


def _help() -> str:
    lines = ["usage: fedgpt2 data ACTION [--NAME VALUE ...]", ""]
    return "\n".join(lines + [f"  {name:10} {text}" for name, text in ACTIONS.items()])
