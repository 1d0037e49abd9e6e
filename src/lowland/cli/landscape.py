"""The command `lowland landscape`: what a loss does around and between checkpoints, as numbers and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from . import screen

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ..landscape import Work
    from .measures import FromFiles

KINDS = ("plane", "line", "rays", "spectrum")


def landscape(
    inputs: Annotated[list[str], typer.Argument(help="Checkpoints A B [C ...], or one result to draw again.")],
    model: Annotated[
        str, typer.Option(help="FILE:FUNCTION that builds the model \\[default: the first folder, by Transformers].")
    ] = "",
    data: Annotated[
        str, typer.Option(help="FILE:FUNCTION that returns batches, or several lists by name: train, test.")
    ] = "",
    kind: Annotated[str, typer.Option(help="plane, line, rays or spectrum.")] = "plane",
    loss: Annotated[
        str, typer.Option(help="FILE:FUNCTION of model and batch \\[default: cross-entropy and error].")
    ] = "",
    bn: Annotated[str, typer.Option("--bn", help="BatchNorm at each place: exact, fast or frozen.")] = "exact",
    points: Annotated[int, typer.Option(help="Columns and rows, or places between the ends, or along a ray.")] = 21,
    margin: Annotated[float, typer.Option(help="Around a plane's points, or beyond a line's ends.")] = 0.3,
    levels: Annotated[str, typer.Option(help="Refine a plane near these levels only, such as 'test error=0.2'.")] = "",
    directions: Annotated[int, typer.Option(help="Rays.")] = 20,
    reach: Annotated[float | None, typer.Option(help="Length of a ray \\[default: 1, raw a tenth of |w|].")] = None,
    rise: Annotated[float, typer.Option(help="What the first value gains at the distance that is told.")] = 0.1,
    normalise: Annotated[str, typer.Option(help="Of rays: none, norm or filter.")] = "filter",
    steps: Annotated[int, typer.Option(help="Lanczos steps of a spectrum.")] = 30,
    probes: Annotated[int, typer.Option(help="Random starts of a spectrum.")] = 5,
    names: Annotated[str, typer.Option(help="Of the checkpoints, by commas \\[default: of their files].")] = "",
    seed: Annotated[int, typer.Option(help="Of random directions and probes.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes, one thread each.")] = 1,
    out_folder: Annotated[Path, typer.Option("--out", help="Where results and pictures go.")] = Path("landscape"),
    as_json: screen.Json = False,
) -> None:
    """Draw planes, lines, rays or Hessian spectra of checkpoints, with numbers; a killed grid goes on."""
    import torch

    from ..files.replacing import alone

    if kind not in KINDS:
        raise ValueError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if bn not in ("exact", "fast", "frozen"):
        raise ValueError(f"--bn must be exact, fast or frozen, got {bn!r}")
    if normalise not in ("none", "norm", "filter"):
        raise ValueError(f"--normalise must be none, norm or filter, got {normalise!r}")
    if len(inputs) == 1 and _is_result(Path(inputs[0])):
        _redraw(Path(inputs[0]), out_folder)
        return
    if not data:
        raise ValueError("--data FILE:FUNCTION is wanted: what to measure on")
    asked = _Asked(inputs, model, data, loss, bn, names, kind)
    generator = torch.Generator().manual_seed(seed)
    with alone(out_folder, out_folder):
        if kind == "plane":
            found, told = _plane(asked, points, margin, _levels(levels), generator, jobs, out_folder)
        elif kind == "line":
            found, told = _line(asked, points, margin, jobs, out_folder)
        elif kind == "rays":
            how = None if normalise == "none" else normalise
            found, told = _rays(asked, points, directions, reach, rise, how, seed, jobs, out_folder)
        else:
            found, told = _spectrum(asked, steps, probes, seed, out_folder)
        pictures = draw(kind, found, out_folder, asked.about, asked.names)
    if as_json:
        screen.print_json({"folder": str(out_folder), **told})
        return
    screen.out.print(_table(kind, told))
    screen.say(f"Next: open {pictures}; --kind {KINDS[(KINDS.index(kind) + 1) % 4]} shows the same otherwise.")


class _Asked:
    """The checkpoints and the measure that were named."""

    def __init__(self, inputs: list[str], model: str, data: str, loss: str, bn: str, names: str, kind: str) -> None:
        from ..checkpoints import expand
        from .measures import FromFiles, weights_in

        self.paths = expand(inputs, keep_order=True)
        least = {"plane": 2, "line": 2, "rays": 1, "spectrum": 1}[kind]
        if len(self.paths) < least or (kind == "line" and len(self.paths) > 2):
            raise ValueError(
                f"a {kind} wants {'two' if kind == 'line' else f'{least} or more'} checkpoints, got {len(self.paths)}"
            )
        self.names = (
            [name.strip() for name in names.split(",")]
            if names
            else _short([p.stem if p.is_file() else p.name for p in self.paths])
        )
        if len(self.names) != len(self.paths) or len(set(self.names)) < len(self.names):
            raise ValueError(f"--names wants {len(self.paths)} different names, got {self.names}")
        spec = model or str(self.paths[0])
        self.measure: FromFiles = FromFiles(spec, data, loss, bn, str(self.paths[-1]))
        self.weights: list[dict[str, Tensor]] = [self.measure.fitted(weights_in(path)) for path in self.paths]
        self.about = {**self.measure.about(), "n": "one run"}
        self.journal = {"model": spec, "data": data, "loss": loss, "bn": bn}

    def work(self, jobs: int, out_folder: Path, kind: str, progress: Callable[[int, int], None]) -> Work:
        """How its places are measured."""
        from ..landscape import Work

        return Work(jobs=jobs, keep=out_folder / f"{kind}.jsonl", about=self.journal, progress=progress)


Found = tuple[dict[str, Any], dict[str, Any]]


def _plane(
    asked: _Asked,
    points: int,
    margin: float,
    levels: dict[str, list[float]],
    generator: Generator,
    jobs: int,
    out: Path,
) -> Found:
    import dataclasses

    from ..arithmetic.philox import new_key
    from ..landscape import Plane, plane, random_direction, save_result, window

    if len(asked.weights) == 2:
        a, b = asked.weights
        p = Plane.with_direction(a, b, random_direction(a, new_key(generator), 0), names=asked.names)
    elif len(asked.weights) == 3:
        p = Plane.through(*asked.weights, names=asked.names)
    else:
        p = Plane.principal(asked.weights, names=asked.names)
    with _bar("places") as progress:
        work = asked.work(jobs, out, "plane", progress)
        if len(asked.weights) == 2:
            wide = p.points[1][0]
            x = (-margin * wide, (1 + margin) * wide)
            half = (0.5 + margin) * wide
            grid = window(p, asked.measure, x, (-half, half), points=points, levels=levels or None, work=work)
        else:
            grid = plane(p, asked.measure, points=points, margin=margin, levels=levels or None, work=work)
    if p.explained is not None:
        asked.about["explained"] = " + ".join(f"{share:.1%}" for share in p.explained)
    if len(asked.weights) == 2:
        asked.about["across"] = "a random direction"
    grid = dataclasses.replace(grid, about=asked.about)
    save_result(grid, out / "plane.safetensors")
    (out / "plane.jsonl").unlink()
    rows: dict[str, Any] = {}
    for name in grid.values:
        low = grid.lowest(name)
        rows[name] = {"lowest": low.value, "x": low.x, "y": low.y}
        rows[name] |= {
            f"from {title}": math.hypot(low.x - x, low.y - y) for title, (x, y) in list(grid.points.items())[:3]
        }
    told = {
        "values": rows,
        "places": int(grid.measured.sum()),
        "points": grid.points,
        **_shift(grid, list(grid.values)),
    }
    return {"Plane": grid}, told


def _line(asked: _Asked, points: int, margin: float, jobs: int, out: Path) -> Found:
    from ..landscape import line, save_result

    a, b = asked.weights
    with _bar("places") as progress:
        work = asked.work(jobs, out, "line", progress)
        walk = line(a, b, asked.measure, points=points, beyond=margin, work=work)
    save_result(walk, out / "line.safetensors", {**asked.about, "from": asked.names[0], "to": asked.names[1]})
    (out / "line.jsonl").unlink()
    rows = {}
    for name in walk.values:
        t, value = walk.lowest(name)
        rows[name] = {"lowest": value, "at": t, "barrier": walk.barrier(name)}
    return {"Line": walk}, {"values": rows, "length": walk.length, **_shift(walk, list(walk.values))}


def _shift(result: Any, names: list[str]) -> dict[str, Any]:
    if "train loss" in names and "test error" in names:
        return {"test error from train loss": result.shift("train loss", "test error")}
    return {}


def _rays(
    asked: _Asked,
    points: int,
    directions: int,
    reach: float | None,
    rise: float,
    how: Any,
    seed: int,
    jobs: int,
    out: Path,
) -> Found:
    import torch

    from ..landscape import Estimate, rays, save_result
    from ..landscape.vectors import norm

    if reach is None:
        reach = 1.0 if how else norm(asked.weights[0]) / 10
    places = [reach * (k / (points - 1)) for k in range(1, points)]
    found, rows, first = {}, {}, None
    for name, weights in zip(asked.names, asked.weights, strict=True):
        with _bar(f"rays from {name}") as progress:
            work = asked.work(jobs, out, f"rays-{name}", progress)
            generator = torch.Generator().manual_seed(seed)  # the same directions for each
            one = rays(
                weights,
                asked.measure,
                directions=directions,
                places=places,
                normalise=how,
                generator=generator,
                work=work,
            )
        one.about.update(asked.about)
        save_result(one, out / f"rays-{name}.safetensors")
        found[name] = one
    for name, one in found.items():
        (out / f"rays-{name}.jsonl").unlink()
        distances = one.distances(rise)
        reached = [d for d in distances if math.isfinite(d)]
        row: dict[str, Any] = {"reached": len(reached), "directions": len(distances)}
        if len(reached) == len(distances):
            estimate = Estimate.of(distances)
            row |= {"distance": estimate.mean, "low": estimate.low, "high": estimate.high}
            if first is not None:
                paired = estimate.minus(first)
                row |= {"more than the first": paired.mean, "from": paired.low, "to": paired.high}
            first = estimate if first is None else first
        rows[name] = row
    asked.about["normalisation"] = next(iter(found.values())).about["normalisation"]
    return {"Rays": found}, {"values": rows, "rise": rise, "of": next(iter(one.values))}


def _spectrum(asked: _Asked, steps: int, probes: int, seed: int, out: Path) -> Found:
    import torch

    from ..landscape import save_result, spectrum

    model, sets, loss, refresh = asked.measure.parts
    batches = sets.get("train", next(iter(sets.values())))
    found, rows = {}, {}
    for name, weights in zip(asked.names, asked.weights, strict=True):
        with _bar(f"products at {name}") as progress:
            one = spectrum(
                model, weights, batches, loss, steps=steps, probes=probes, refresh=refresh, progress=progress,
                generator=torch.Generator().manual_seed(seed), about=dict(asked.about),
            )  # fmt: skip
        save_result(one, out / f"spectrum-{name}.safetensors")
        found[name] = one
        rows[name] = {
            "largest": float(one.eigenvalues[0]),
            "within": float(one.errors[0]),
            "smallest": float(one.eigenvalues[-1]),
            "trace": one.trace.mean,
            "low": one.trace.low,
            "high": one.trace.high,
        }
    return {"Spectra": found}, {"values": rows, "steps": steps, "probes": probes}


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


def _redraw(path: Path, out: Path) -> None:
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


def _is_result(path: Path) -> bool:
    from ..landscape import load_result

    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        load_result(path)
    except ValueError:
        return False
    return True


def _levels(text: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.rpartition("=")
        try:
            found.setdefault(name.strip(), []).append(float(value))
        except ValueError:
            raise ValueError(f"--levels wants NAME=NUMBER by commas, such as 'test error=0.2', got {part!r}") from None
    return found


def _short(names: list[str]) -> list[str]:
    """Names of checkpoints without what all begin or end with, where that leaves something of each."""
    if len(set(names)) == len(names):
        return names
    return [f"{name} {number}" for number, name in enumerate(names, start=1)]


def _table(kind: str, told: dict[str, Any]) -> Table:
    rows = told["values"]
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    rest = {k: v for k, v in told.items() if k not in ("values", "points")}
    caption = "; ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in rest.items()
    )
    table = Table(title=kind, caption=escape(caption), box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for key in keys:
        table.add_column(escape(key), justify="right")
    for name, row in rows.items():
        table.add_row(escape(name), *(f"{row[key]:.4g}" if key in row else "-" for key in keys))
    return table


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
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
