"""Figures of library objects, each as one SVG file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.replacing import write_bytes

if TYPE_CHECKING:
    from ..aswa import ASWA
    from ..cycles import Schedule
    from ..landscape import Grid, Rays, Spectrum, Walk
    from ..predict.accumulation import Accumulation
    from ..retroactive.choice import Choice
    from ..retroactive.sweep import Sweep


def write_sweep(sweep: Sweep, path: str | os.PathLike[str], metric: str = "validation score") -> Path:
    """Write score against half-life as one SVG file that stands alone, and return its path.

    Raises `ImportError` where matplotlib is missing.

    >>> import tempfile, torch
    >>> from lowland.retroactive import Window
    >>> from lowland.retroactive import intervals, sweep
    >>> found = sweep(intervals([(5, {"w": torch.ones(1)})]), [Window(4, 5)], lambda weights: 0.0)
    >>> write_sweep(found, Path(tempfile.mkdtemp()) / "sweep.svg").name
    'sweep.svg'
    """
    _need_matplotlib()
    from .sweep import half_life_figure

    return _alone(half_life_figure(sweep, metric=metric), path)


def write_trace(average: ASWA, path: str | os.PathLike[str], metric: str = "validation score") -> Path:
    """Write the trace of an ASWA run as one SVG file that stands alone, and return its path.

    Raises `ImportError` where matplotlib is missing, `RuntimeError` before the first update.

    >>> import tempfile, torch
    >>> from lowland import ASWA
    >>> average = ASWA(lambda weights: 0.0)
    >>> average.update({"w": torch.ones(1)})
    >>> write_trace(average, Path(tempfile.mkdtemp()) / "trace.svg").name
    'trace.svg'
    """
    _need_matplotlib()
    from .trace import trace_figure

    return _alone(trace_figure(average, metric=metric), path)


def write_schedule(schedule: Schedule, steps: int, path: str | os.PathLike[str], rate: float = 1.0) -> Path:
    """Write the rate of every step, and when to collect, as one SVG file that stands alone, and return its path.

    Raises `ImportError` where matplotlib is missing.

    >>> import tempfile
    >>> from lowland.cycles import triangle
    >>> write_schedule(triangle(8, 0.01), 32, Path(tempfile.mkdtemp()) / "fge.svg", rate=0.05).name
    'fge.svg'
    """
    _need_matplotlib()
    from .ensembles import schedule_figure

    return _alone(schedule_figure(schedule, steps, rate), path)


def write_accumulation(curves: Accumulation, metric: str, path: str | os.PathLike[str]) -> Path:
    """Write a metric against the number of members as one SVG file that stands alone, and return its path.

    Raises `ImportError` where matplotlib is missing.

    >>> import tempfile
    >>> from lowland.predict import Accumulation
    >>> rows = [{"nll": 0.5}]
    >>> write_accumulation(Accumulation(rows, rows, rows), "nll", Path(tempfile.mkdtemp()) / "nll.svg").name
    'nll.svg'
    """
    _need_matplotlib()
    from .ensembles import accumulation_figure

    return _alone(accumulation_figure(curves, metric), path)


def write_choice(choice: Choice, path: str | os.PathLike[str], metric: str = "score, higher is better") -> Path:
    """Write the scores of a run's averages against their windows as one SVG file, and return its path.

    Raises `ImportError` where matplotlib is missing.

    >>> import tempfile
    >>> from lowland.retroactive import choose
    >>> write_choice(choose([1, 2], lambda c: c.window), Path(tempfile.mkdtemp()) / "choice.svg").name
    'choice.svg'
    """
    _need_matplotlib()
    from .choice import choice_figure

    return _alone(choice_figure(choice, metric=metric), path)


def write_landscape(
    result: Grid | Mapping[str, Walk] | Mapping[str, Rays] | Mapping[str, Spectrum],
    path: str | os.PathLike[str],
    *,
    values: Sequence[str] | None = None,
    about: Mapping[str, str] | None = None,
    ends: tuple[str, str] = ("a", "b"),
    dark: bool = False,
) -> Path:
    """Write a picture of a landscape as SVG or PNG, by the ending of `path`, and return its path.

    Args:
        result: a grid; or lines, rays or spectra by name: several lines are seeds, several rays or spectra solutions.
        values: which are drawn: panels of a plane, left and right axis of lines, one value of rays.
        about: what the caption says: data, model, n, refresh, normalisation.
        ends: what lies at both ends of lines.
        dark: of a PNG; an SVG follows its page.

    Raises `ImportError` where matplotlib is missing, `ValueError` for another ending or for values not measured.

    >>> import tempfile
    >>> from lowland.landscape import Walk
    >>> walk = Walk((0.0, 0.5, 1.0), {"train loss": (2.0, 1.0, 3.0), "test error": (0.3, 0.2, 0.1)}, (1.0, 1.0))
    >>> write_landscape({"0": walk}, Path(tempfile.mkdtemp()) / "line.png").name
    'line.png'
    """
    _need_matplotlib()
    from ..landscape import Grid, Rays, Walk
    from . import landscape

    if isinstance(result, Grid):
        drawing = landscape.plane_drawing(result, values, about)
    else:
        shown: dict[str, Any] = dict(result)
        first = next(iter(shown.values()))
        if isinstance(first, Walk):
            names = list(first.values) if values is None else list(values)
            drawing = landscape.line_drawing(shown, names[0], names[-1], about, ends)
        elif isinstance(first, Rays):
            drawing = landscape.rays_drawing(shown, None if values is None else values[0], about)
        else:
            drawing = landscape.spectrum_drawing(shown, about)
    return drawing.write(path, dark=dark)


def _need_matplotlib() -> None:
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError("the figure needs matplotlib: pip install 'lowland[plot]'") from error


def _alone(figure: str, path: str | os.PathLike[str]) -> Path:
    from .svg import alone  # where matplotlib is

    path = Path(path)
    write_bytes(path, alone(figure).encode())
    return path
