"""The screen: where tables, sentences and bars go. Tests put other consoles in the place of `out` and `err`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def say(sentence: str) -> None:
    """Print a sentence as it is."""
    out.print(sentence, highlight=False, markup=False)


def print_json(content: Any) -> None:
    """Print plain data as JSON."""
    # Plain: rich would wrap long lines.
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


class Bars:
    """A bar for the whole and one for the stage at hand; a stage that is over leaves a line."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.whole: Any = None
        self.stage: Any = None
        self.share = 0.0
        self.done = 0.0

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.bars.console.print(line, highlight=False, markup=False)

    def plan(self, total: float) -> None:
        """Open the bar of the whole."""
        self.whole = self.bars.add_task("whole study", total=total)

    def begin(self, stage: str, work: float) -> None:
        """Open the bar of a stage."""
        self.share, self.done = work, 0.0
        self.stage = self.bars.add_task(stage, total=work)

    def advance(self, work: float) -> None:
        """Move both bars."""
        self.done += work
        self.bars.advance(self.stage, work)
        self.bars.advance(self.whole, work)

    def end(self, line: str) -> None:
        """Close the bar of the stage."""
        # A stage that was found done advances by what it would have taken.
        self.bars.advance(self.whole, self.share - self.done)
        self.bars.remove_task(self.stage)
        if line:
            self.bars.console.print(line, highlight=False)


@contextmanager
def bars() -> Iterator[Bars]:
    """Show bars on the error stream while the block runs."""
    columns: tuple[Callable[[], Any], ...] = (SpinnerColumn, BarColumn, TimeElapsedColumn, TimeRemainingColumn)
    parts = [columns[0](), TextColumn("{task.description}"), *(column() for column in columns[1:])]
    # Where nobody watches, only the lines of finished stages are printed.
    with Progress(*parts, TextColumn("left"), console=err, transient=True, disable=not err.is_terminal) as shown:
        yield Bars(shown)


@contextmanager
def byte_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of bytes while the block runs; what is yielded takes numbers of bytes, from any thread."""
    parts = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*parts, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal) as shown:
        task = shown.add_task(title, total=total)
        yield lambda nbytes: shown.advance(task, nbytes)


def counted(count: int, thing: str) -> str:
    """Return a number and what it counts, in the singular for one.

    >>> counted(1, "text"), counted(2, "class")
    ('1 text', '2 classes')
    """
    ending = "" if count == 1 else "es" if thing.endswith(("s", "ch", "x")) else "s"
    return f"{count:,} {thing}{ending}"


def size(nbytes: float) -> str:
    """Return bytes as a person reads them: powers of ten, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
