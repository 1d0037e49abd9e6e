"""The screen: where tables, sentences and bars go. Tests put other consoles in the place of `out` and `err`."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.segment import Segment
from rich.table import Table


class _Screen(Console):
    """A console on which names out of files cannot move the cursor, ring, or rename the window."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as always, but show what steers a terminal as a sign."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(printable(text), style, control)


_STEERING = {
    **{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


def printable(text: str) -> str:
    """Return a text in which characters that steer a terminal, or turn the direction of writing, are visible signs.

    >>> printable("a\\x1b]0;b\\x07")
    'a␛]0;b␇'
    """
    return text.translate(_STEERING)


out: Console = _Screen()
err: Console = _Screen(stderr=True)

_going_on = ""


def goes_on(sentence: str) -> None:
    """Note what a command has kept, and how it goes on, for whoever stops it by Ctrl-C."""
    global _going_on
    _going_on = sentence


def study_goes_on(folder: Path) -> None:
    """Note how a study goes on that keeps its finished stages in `folder`."""
    again = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--debug")]
    goes_on(
        f"what is finished is kept in {folder}, and the same command goes on from there with --resume: "
        f"{shlex.join(['lowland', *again, '--resume'])}"
    )


def when_stopped() -> str:
    """Return the sentence of a command that was stopped."""
    return f"stopped: {_going_on or 'files are whole, the old or the new; the same command goes on from here'}"


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def say(sentence: str) -> None:
    """Print a sentence as it is."""
    out.print(sentence, highlight=False, markup=False, soft_wrap=not out.is_terminal)


def show(table: Table) -> None:
    """Print a table: with lines on a terminal, and in a pipe as plain columns, each row on one line however long."""
    if out.is_terminal:
        out.print(table)
        return
    table.box, table.show_lines, table.pad_edge = None, False, False
    table.title_justify = table.caption_justify = "left"
    for column in table.columns:
        column.no_wrap, column.overflow, column.max_width, column.width = True, "ignore", None, None
    text = StringIO()
    _Screen(file=text, width=100_000, color_system=None).print(table, crop=False, highlight=False)
    for line in text.getvalue().rstrip("\n").split("\n"):
        out.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print plain data as JSON."""
    # Plain: rich would wrap long lines.
    text = json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # names that are no text
        text = json.dumps(finite(content), indent=1, allow_nan=False)
    sys.stdout.write(text + "\n")


def finite(content: Any) -> Any:
    """Return plain data in which NaN and infinities, which JSON does not know, are null.

    >>> finite({"score": float("inf"), "rows": [1.5, (float("nan"),)]})
    {'score': None, 'rows': [1.5, [None]]}
    """
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    return [finite(value) for value in content] if isinstance(content, list | tuple) else content


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
