"""What a person sees while cells run: a bar with what is running and how long it will take, or lines in a pipe."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trials.cells import Cell
from trials.running import Failed, Place, Result, Store, run
from trials.twins import spared

__all__ = ["watched"]


def watched(
    cells: Sequence[Cell], common: Sequence[str], store: Store, place: Place | None, jobs: int, console: Console
) -> list[Failed]:
    """`running.run`, seen on `console`; returns the cells that failed."""
    ready = len(store.finished(cells))
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(cells), completed=ready)

        def told(running: Sequence[Cell], result: Result | Failed | None) -> None:
            bar.update(task, description=" ".join(cell.name for cell in running))
            if result is not None:
                bar.advance(task)
                bar.console.print(_line(result), highlight=False, soft_wrap=True)

        def known(cell: Cell) -> bool:
            found = spared(cell, store.finished([cell.twin]))
            if found:
                bar.advance(task)
            return found

        waiting = {c.seed for c in cells if store.get(c) is None and not spared(c, store.finished([c.twin]))}
        if place:
            place.prepare(sorted(waiting), lambda line: bar.console.print(line, highlight=False))
        return run(cells, common, store, jobs, told, known, place)


def _line(result: Result | Failed) -> str:
    if isinstance(result, Failed):
        return f"{result.name}  failed: {result.said}"
    loss = "diverged" if result.final_val_loss is None else f"{result.final_val_loss:.4f}"
    return f"{result.name}  {loss}  {result.cpu_seconds:.0f} s of CPU"
