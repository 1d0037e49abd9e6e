"""An interactive page of landscapes: one HTML file that refers to nothing outside itself.

The script in it is written for this page, 21 kB beside the numbers. The bundle in plotly 7.1.0, which draws contours
and turns surfaces too, weighs 4.8 MB: more than any grid it would show.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from ..files.replacing import Replacing
from ..landscape.grid import Grid
from ..landscape.hessian import Spectrum
from ..landscape.rays import Rays
from ..landscape.results import Result
from ..landscape.walk import Walk

Shown = Result | Mapping[str, Walk] | Mapping[str, Rays] | Mapping[str, Spectrum]


def write_page(
    results: Mapping[str, Shown],
    path: str | os.PathLike[str],
    *,
    title: str = "Landscape",
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a page on which one hovers, switches values and levels, and turns surfaces; returns its path.

    Args:
        results: by the heading of its section: a grid, or lines, rays or spectra, one or several by name.
        about: what is said of all: data, model, refresh.

    Raises:
        ValueError: there is no result.

    >>> import tempfile
    >>> walk = Walk((0.0, 1.0), {"loss": (1.0, 2.0)}, (3.0,))
    >>> page = write_page({"From a to b": walk}, Path(tempfile.mkdtemp()) / "page.html")
    >>> "http" in page.read_text().lower()
    False
    """
    if not results:
        raise ValueError("a page wants at least one result, got none")
    data = {"items": [_item(heading, shown) for heading, shown in results.items()]}
    # "</" would end the script, "<!--" open a comment in it
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = files(__package__).joinpath("landscape.html").read_text(encoding="utf-8")
    said = _said(about or {})
    parts = {"title": html.escape(title), "about": html.escape(said), "data": text}
    for key in ("title", "about", "data"):
        page = page.replace("{{" + key + "}}", parts[key])
    path = Path(path)
    content = page.encode("utf-8")
    with Replacing(path, len(content)) as file:
        file.write(content)
    return path


def _item(heading: str, shown: Shown) -> dict[str, Any]:
    values: dict[str, list[Any]]
    if isinstance(shown, Grid):
        values = {name: [[_number(v) for v in row] for row in grid.tolist()] for name, grid in shown.values.items()}
        lows = "; ".join(f"{n} lowest {low.value:.4g}" for n in shown.values for low in [shown.lowest(n)])
        measured = None if bool(shown.measured.all()) else shown.measured.int().tolist()
        return {
            "kind": "plane",
            "title": heading,
            "about": _said(shown.about),
            "alt": f"{heading}: {lows}",
            "x": list(map(_number, shown.x)),
            "y": list(map(_number, shown.y)),
            "values": values,
            "measured": measured,
            "points": {name: [_number(x), _number(y)] for name, (x, y) in shown.points.items()},
            "path": shown.path,
            "draws": [[_number(x), _number(y)] for x, y in shown.draws],
        }
    several: dict[str, Any] = dict(shown) if isinstance(shown, Mapping) else {"": shown}
    first = next(iter(several.values()))
    if isinstance(first, Walk):
        x, axis = first.t, "place on the line"
        values = {n: [_series(label, walk.values[n]) for label, walk in several.items()] for n in first.values}
    elif isinstance(first, Rays):
        x, axis = first.t, "distance along the ray"
        values = {n: [_banded(label, rays, n) for label, rays in several.items()] for n in first.values}
    else:
        low = min(float(one.nodes[one.weights > 0].min()) for one in several.values())
        high = max(float(one.nodes[one.weights > 0].max()) for one in several.values())
        spread = (high - low) or 1.0
        places = torch.linspace(low - 0.06 * spread, high + 0.06 * spread, 400, dtype=torch.float64)
        x, axis = tuple(places.tolist()), "eigenvalue of the Hessian"
        values = {
            "density": [_series(n, one.density(places, width=spread / 80).tolist()) for n, one in several.items()]
        }
    about = getattr(first, "about", {})
    return {
        "kind": "lines",
        "title": heading,
        "about": _said(about),
        "alt": f"{heading}: {', '.join(several)}",
        "x": list(map(_number, x)),
        "axis": axis,
        "log": isinstance(first, Spectrum),
        "values": values,
    }


def _series(label: str, values: Any) -> dict[str, Any]:
    return {"label": label, "mean": [_number(value) for value in values]}


def _banded(label: str, rays: Rays, name: str) -> dict[str, Any]:
    means = rays.mean(name)
    return _series(label, [one.mean for one in means]) | {
        "low": [_number(one.low) for one in means],
        "high": [_number(one.high) for one in means],
    }


def _number(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _said(about: Mapping[str, str]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in about.items())
