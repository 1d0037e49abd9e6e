"""What `lowland landscape` shows: pictures, the page, the table and the bar; and results drawn again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from . import screen


def draw(kind: str, found: dict[str, Any], out: Path, about: dict[str, str], names: list[str]) -> str:
    """Write the pictures of a result, and the page; returns what to open."""
    from ..figures.landscape_page import write_page

    page = write_page(found, out / f"{kind}.html", title=f"{kind.capitalize()}: {', '.join(names[:5])}", about=about)
    try:
        from ..figures.landscape import line_drawing, plane_drawing, rays_drawing, spectrum_drawing
    except ImportError:
        screen.say("no SVG and PNG: pip install 'lowland[plot]'")
        return str(page)
    (shown,) = found.values()
    if kind == "plane":
        drawing = plane_drawing(shown, about=about)
    elif kind == "line":
        values = list(shown.values)
        usual = "train loss" in values and "test error" in values
        left, right = ("train loss", "test error") if usual else (values[0], values[-1])
        drawing = line_drawing({"": shown}, left, right, about, (names[0], names[1]))
    elif kind == "rays":
        drawing = rays_drawing(shown, about=about)
    else:
        drawing = spectrum_drawing(shown, about=about)
    drawing.write(out / f"{kind}.svg")
    drawing.write(out / f"{kind}.png")
    drawing.write(out / f"{kind}-dark.png", dark=True)
    return str(page)


def redraw(path: Path, out: Path) -> None:
    """Draw a result again."""
    from ..landscape import Grid, Rays, Walk, load_result

    result, about = load_result(path)
    out.mkdir(parents=True, exist_ok=True)
    name = path.stem
    if isinstance(result, Grid):
        opened = draw("plane", {"Plane": result}, out, about, list(result.points))
    elif isinstance(result, Walk):
        opened = draw("line", {"Line": result}, out, about, [about.get("from", "a"), about.get("to", "b")])
    elif isinstance(result, Rays):
        opened = draw("rays", {"Rays": {name: result}}, out, about, [name])
    else:
        opened = draw("spectrum", {"Spectra": {name: result}}, out, about, [name])
    screen.say(f"Drawn again from {path}: open {opened}.")


def is_result(path: Path) -> bool:
    """Say whether a file is a landscape's result."""
    from ..landscape import load_result

    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        load_result(path)
    except ValueError:
        return False
    return True


def table(kind: str, told: dict[str, Any]) -> Table:
    """Return what is told as a table."""
    rows = told["values"]
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    rest = {k: v for k, v in told.items() if k not in ("values", "points")}
    caption = "; ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in rest.items()
    )
    made = Table(title=kind, caption=escape(caption), box=box.SIMPLE_HEAD, padding=(0, 1))
    made.add_column("")
    for key in keys:
        made.add_column(escape(key), justify="right")
    for name, row in rows.items():
        made.add_row(escape(name), *(f"{row[key]:.4g}" if key in row else "-" for key in keys))
    return made


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time that is left while the block runs."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, TextColumn("left"), console=screen.err, transient=True, disable=not screen.err.is_terminal
    ) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
