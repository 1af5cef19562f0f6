"""The losses of a run as a picture made of characters. Pure."""

from collections.abc import Sequence

__all__ = ["loss_chart"]

Points = Sequence[tuple[int, float]]

TRAIN, HELD_OUT, UNIGRAM = "·", "●", "╌"


def loss_chart(train: Points, held_out: Points, unigram: float | None, *, width: int, height: int) -> list[str]:
    """`height` lines of at most `width` characters: rounds to the right, loss upwards; empty without points.

    `·` is the training loss, `●` the held-out loss, a dashed line the unigram's. Of long runs a few rounds a column.
    """
    columns = width - _MARGIN
    train, held_out = (_sparse(series, _A_COLUMN * max(1, columns)) for series in (train, held_out))
    points = [*train, *held_out]
    if not points or columns < 2 or height < 2:
        return []
    losses = [loss for _, loss in points] + ([] if unigram is None else [unigram])
    low, high = min(losses), max(losses)
    span = high - low or 1.0
    first, last = min(r for r, _ in points), max(r for r, _ in points)
    grid = [[" "] * columns for _ in range(height)]

    def line_of(loss: float) -> int:
        return round((high - loss) / span * (height - 1))

    if unigram is not None:
        grid[line_of(unigram)] = [UNIGRAM] * columns
    for mark, series in ((TRAIN, train), (HELD_OUT, held_out)):
        for number, loss in series:
            column = round((number - first) / max(1, last - first) * (columns - 1))
            grid[line_of(loss)][column] = mark
    labels = {0: high, height - 1: low}
    if unigram is not None:
        labels[line_of(unigram)] = unigram
    return [f"{_label(labels.get(i))} {''.join(line).rstrip()}" for i, line in enumerate(grid)]


def _sparse(series: Points, most: int) -> Points:
    """Every so many-th, the last one and the first among them: a picture is drawn four times a second."""
    step = -(-len(series) // most)
    return [*series[:1], *series[:0:-step]] if step > 1 else series


_A_COLUMN = 8  # rounds that are looked at
_MARGIN = 6  # "10.82 "


def _label(loss: float | None) -> str:
    """Of `_MARGIN` less one characters: two decimals, fewer where they find no room."""
    room = _MARGIN - 1
    if loss is None:
        return " " * room
    fitting = (text for text in (f"{loss:.2f}", f"{loss:.1f}", f"{loss:.0f}") if len(text) <= room)
    return next(fitting, f"{loss:.0e}").rjust(room)
