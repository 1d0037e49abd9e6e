"""The report of a study, one HTML file that holds everything it shows, and figures: of a sweep, of a trace of
ASWA, of a schedule, of an ensemble that grows.

Needs matplotlib and Jinja2: `pip install 'lowland[plot]'`.
"""

import importlib
import os
import tempfile
from pathlib import Path

from ..accumulation import Accumulation
from ..aswa import ASWA
from ..cycles import Schedule
from ..retroactive import Sweep


def write(run_folder: Path) -> Path:
    """Write `report.html` into a finished run folder and return its path.

    The file refers to nothing outside itself, and the same run folder gives the same bytes. It replaces an older report
    in one step: whoever reads meanwhile sees the old one or the new one.

    Raises `ImportError` where matplotlib or Jinja2 is missing, `FileNotFoundError` for a missing file of the run and
    `ValueError` for a broken one, naming it; nothing is written then.

    >>> write(Path("no-such-run"))
    Traceback (most recent call last):
    ...
    FileNotFoundError: no-such-run is not a run folder: got no such directory, wanted one that a study wrote
    """
    for package in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"the report needs {package}: pip install 'lowland[plot]'") from error
    from .grid_page import is_grid, render_grid
    from .page import render
    from .run import read

    run_folder = Path(run_folder)
    text = render_grid(run_folder) if is_grid(run_folder) else render(read(run_folder))
    path = run_folder / "report.html"
    handle, name = tempfile.mkstemp(dir=run_folder, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # a temporary file is private, a report is not
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_sweep(sweep: Sweep, path: str | os.PathLike[str], metric: str = "validation score") -> Path:
    """Write score against half-life as one SVG file that stands alone, and return its path.

    Raises `ImportError` where matplotlib is missing.

    >>> import torch
    >>> from lowland.profiles import Window
    >>> from lowland.retroactive import intervals, sweep
    >>> found = sweep(intervals([(5, {"w": torch.ones(1)})]), [Window(4, 5)], lambda weights: 0.0)
    >>> write_sweep(found, Path(tempfile.mkdtemp()) / "sweep.svg").name
    'sweep.svg'
    """
    _need_matplotlib()
    from .sweeps import half_life_figure

    return _alone(half_life_figure(sweep, metric=metric), path)


def write_trace(average: ASWA, path: str | os.PathLike[str], metric: str = "validation score") -> Path:
    """Write the trace of an ASWA run as one SVG file that stands alone, and return its path.

    Raises `ImportError` where matplotlib is missing, `RuntimeError` before the first update.

    >>> import torch
    >>> average = ASWA(lambda weights: 0.0)
    >>> average.update({"w": torch.ones(1)})
    >>> write_trace(average, Path(tempfile.mkdtemp()) / "trace.svg").name
    'trace.svg'
    """
    _need_matplotlib()
    from .traces import trace_figure

    return _alone(trace_figure(average, metric=metric), path)


def write_schedule(schedule: Schedule, steps: int, path: str | os.PathLike[str], rate: float = 1.0) -> Path:
    """Write the rate of every step, and when to collect, as one SVG file that stands alone, and return its path.

    Raises `ImportError` where matplotlib is missing.

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

    >>> rows = [{"nll": 0.5}]
    >>> write_accumulation(Accumulation(rows, rows, rows), "nll", Path(tempfile.mkdtemp()) / "nll.svg").name
    'nll.svg'
    """
    _need_matplotlib()
    from .ensembles import accumulation_figure

    return _alone(accumulation_figure(curves, metric), path)


def _need_matplotlib() -> None:
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError("the figure needs matplotlib: pip install 'lowland[plot]'") from error


def _alone(figure: str, path: str | os.PathLike[str]) -> Path:
    alone = figure.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)
    path = Path(path)
    path.write_text(alone, encoding="utf-8")
    return path
