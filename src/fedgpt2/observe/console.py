"""The live console: progress, losses, miners, bytes, redrawn in place."""

import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedgpt2.observe.board import Board, MinerStats
from fedgpt2.observe.chart import loss_chart
from fedgpt2.observe.formatting import count, duration, loss, short_key, volume
from fedgpt2.observe.observer import RunEnd, RunStart
from fedgpt2.observe.plain import closing_line
from fedgpt2.protocol.round_record import MinerRecord, RoundRecord

__all__ = ["Live", "miners_table"]

_CHART_HEIGHT = 10
_CHART_WIDTH = 78
_WORDS = ("axon", "hotkey", "now", "refusals")
_NUMBERS = ("rating", "admitted", "refused", "failed", "tokens", "down", "up", "seconds")
_COLUMNS = ("rank", *_WORDS[:-1], *_NUMBERS, _WORDS[-1])
_DROPPED_FIRST = ("down", "up", "seconds", "tokens", "hotkey", "failed", "refused", "refusals", "admitted", "rating")
_GAP = 2  # between columns
_COLOURS = {"admitted": "green", "refused": "red", "failed": "yellow"}


class Live:
    """An `Observer` on a terminal; a context, so that the terminal is left as it was found."""

    def __init__(self, console: Console) -> None:
        self.board = Board()
        self._console = console
        self._message = "starting"
        self._lock = threading.Lock()  # the picture is drawn in a thread of its own
        self._live = RichLive(console=console, auto_refresh=True, refresh_per_second=4, get_renderable=self.render)

    def __enter__(self) -> "Live":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(self, start: RunStart) -> None:
        """Show what run this is."""
        with self._lock:
            self.board.begin(start)

    def waiting(self, message: str) -> None:
        """Show what is being waited for."""
        self._message = message

    def round_done(self, record: RoundRecord) -> None:
        """Take a round into the picture."""
        self._message = ""
        with self._lock:
            self.board.add(record)

    def notice(self, line: str) -> None:
        """Show it below the miners for a while."""
        with self._lock:
            self.board.notices.append(line)

    def finished(self, end: RunEnd) -> None:
        """Say where the run lies and what it took."""
        self._message = closing_line(end, self.board.times)

    def render(self) -> RenderableType:
        """The whole picture."""
        with self._lock:
            return Group(*self._parts())

    def _parts(self) -> list[RenderableType]:
        parts: list[RenderableType] = [_heading(self.board), _progress(self.board), _losses(self.board)]
        parts += [_chart(self.board, self._console.width)] if self.board.train else []
        parts += [miners_table(self.board, self._console.width)] if self.board.miners else []
        parts += [Text(line, style="dim") for line in self.board.notices]
        parts += [Text(self._message, style="cyan")] if self._message else []
        return parts


def _heading(board: Board) -> RenderableType:
    start = board.start
    text = Text("Federated GPT2", style="bold")
    if start.model:
        size = f"  {start.model}, {count(start.parameters)} parameters  text: {start.source}  {start.aggregation}"
        text.append(size, style="dim")
    return text


def _progress(board: Board) -> RenderableType:
    number, rounds = (board.last.round if board.last else board.start.resumed_after), board.start.rounds
    grid = Table.grid(padding=(0, 2))
    cells: list[RenderableType] = [Text(f"round {number}{f' of {rounds}' if rounds else ''}", style="bold")]
    if rounds:
        cells.append(ProgressBar(total=rounds, completed=number, width=40))
    cells.append(Text(duration(board.seconds)))
    grid.add_row(*cells)
    return grid


def _losses(board: Board) -> RenderableType:
    train = board.train[-1][1] if board.train else None
    held_out = board.held_out[-1][1] if board.held_out else None
    text = Text()
    for name, value, style in (("train", train, "cyan"), ("held-out", held_out, "green")):
        text.append(f"{name} ", style="dim").append(f"{loss(value)}  ", style=style)
    if board.start.unigram_loss is not None:
        text.append("unigram ", style="dim").append(f"{loss(board.start.unigram_loss)}  ", style="yellow")
    traffic = f"{board.tokens:,} tokens  down {volume(board.bytes_down)}  up {volume(board.bytes_up)}"
    text.append(traffic, style="dim")
    if board.last is not None and not board.last.applied:
        text.append(f"  weights kept: {board.last.reason}", style="red")
    return text


def _chart(board: Board, width: int) -> RenderableType:
    lines = loss_chart(
        board.train,
        board.held_out,
        board.start.unigram_loss,
        width=min(width, _CHART_WIDTH),
        height=_CHART_HEIGHT,
    )
    text = Text("\n".join(lines), no_wrap=True)
    text.highlight_regex("·", "cyan")
    text.highlight_regex("●", "bold green")
    text.highlight_regex("╌", "yellow")
    return text


def miners_table(board: Board, width: int) -> Table:
    """A row for every miner, best first, with as many columns as fit into `width`."""
    rows = [_cells(miner) for miner in sorted(board.miners.values(), key=_rank_key)]
    table = Table(box=None, pad_edge=False, header_style="dim")
    shown = _shown(rows, width)
    for name in shown:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=name != "refusals")
    for cells in rows:
        table.add_row(*(cells[name] for name in shown))
    return table


def _shown(rows: Sequence[Mapping[str, Text]], width: int) -> list[str]:
    """The columns that fit side by side; the least important are dropped first."""
    shown = list(_COLUMNS)
    for name in _DROPPED_FIRST:
        if sum(_wide(column, rows) for column in shown) + _GAP * (len(shown) - 1) <= width:
            break
        shown.remove(name)
    return shown


def _wide(name: str, rows: Sequence[Mapping[str, Text]]) -> int:
    """Least width of a column: refusals may be wrapped between words."""
    cells = [cells[name].plain for cells in rows]
    pieces = " ".join(cells).split() if name == "refusals" else cells
    return max(map(len, [name, *pieces]))


def _rank_key(miner: MinerStats) -> int:
    """Sort key: the rank; miners without one come last."""
    return miner.last.rank if miner.last and miner.last.rank else sys.maxsize


def _rating(row: MinerRecord | None) -> str:
    if row is None or row.rating is None or row.sigma is None:
        return "-"
    return f"{row.rating:.1f}±{row.sigma:.1f}"


def _cells(miner: MinerStats) -> dict[str, Text]:
    """By column, in the order of `_COLUMNS`."""
    status = miner.last.status if miner.last else ""
    kept = miner.statuses
    reasons = ", ".join(f"{reason} {times}x" for reason, times in miner.reasons.items())
    rank = miner.last.rank if miner.last else None
    cells = (
        Text("-" if rank is None else str(rank)),
        Text(miner.axon),
        Text(short_key(miner.hotkey)),
        Text(status, style=_COLOURS.get(status, "dim")),
        Text(_rating(miner.last)),
        Text(str(kept["admitted"])),
        Text(str(kept["refused"])),
        Text(str(kept["failed"])),
        Text(f"{miner.tokens:,}"),
        Text(volume(miner.bytes_down)),
        Text(volume(miner.bytes_up)),
        Text(f"{miner.seconds:.2f}"),
        Text(reasons, style="red"),
    )
    return dict(zip(_COLUMNS, cells, strict=True))
