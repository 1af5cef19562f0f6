"""Run cells with a progress bar on a terminal, or a line a cell in a pipe."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trials.cells import Cell
from trials.running import Failed, RunDirectories, run
from trials.table import Result, ResultTable
from trials.twins import known_from_twin

__all__ = ["run_with_progress"]


def run_with_progress(
    cells: Sequence[Cell],
    common: Sequence[str],
    table: ResultTable,
    directories: RunDirectories | None,
    jobs: int,
    console: Console,
) -> list[Failed]:
    """Call `running.run` and show its progress on `console`; return the failed cells."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(cells), completed=len(table.finished(cells)))

        def on_change(running: Sequence[Cell], result: Result | Failed | None) -> None:
            bar.update(task, description=" ".join(cell.name for cell in running))
            if result is not None:
                bar.advance(task)
                bar.console.print(_line(result), highlight=False, soft_wrap=True)

        def known(cell: Cell) -> bool:
            found = _known(cell, table)
            if found:
                bar.advance(task)
            return found

        waiting = {cell.seed for cell in cells if table.get(cell) is None and not _known(cell, table)}
        if directories:
            directories.prepare(sorted(waiting), lambda line: bar.console.print(line, highlight=False))
        return run(cells, common, table, jobs, on_change, known, directories)


def _known(cell: Cell, table: ResultTable) -> bool:
    return known_from_twin(cell, table.finished([cell.twin]))


def _line(result: Result | Failed) -> str:
    if isinstance(result, Failed):
        return f"{result.name}  failed: {result.error}"
    loss = "diverged" if result.final_val_loss is None else f"{result.final_val_loss:.4f}"
    return f"{result.name}  {loss}  {result.cpu_seconds:.0f} s of CPU"
