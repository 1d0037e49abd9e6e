"""The figure and the page of `lowland linear path`: accuracy and log-loss against non-zeros, and a table.

Needs matplotlib and Jinja2: `pip install 'lowland[plot]'`.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lowland.files.replacing import write_bytes

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def write_path(found: Rows, folder: Path) -> Path:
    """Write path.svg and report.html into a folder, each replaced whole, and return the page's path.

    Raises `ImportError` where matplotlib or Jinja2 is missing; nothing is written then.
    """
    for package in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"the report needs {package}: pip install 'lowland[plot]'") from error
    from lowland.figures.svg import alone

    from . import templates

    figure = path_figure(found)
    write_bytes(folder / "path.svg", alone(figure).encode())
    page = templates.render("linear_path.html.j2", found=found, figure=Markup(figure))
    write_bytes(folder / "report.html", page.encode())
    return folder / "report.html"


def path_figure(found: Rows) -> str:
    """Return SVG text: accuracy and log-loss on test rows against non-zeros, a line for each method."""
    from matplotlib.figure import Figure

    from lowland.figures.svg import PAPER, series, text_of

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2)
        for axis, key, label in zip(axes, ("accuracy", "nll"), ("accuracy", "log-loss"), strict=True):
            for place, (name, rows) in enumerate(found.items()):
                colour, mark, dash = series(place)
                kept = sorted((row for row in rows if row["non-zeros"]), key=lambda row: int(row["non-zeros"]))
                many, said = [row["non-zeros"] for row in kept], [row["test"][key] for row in kept]
                axis.plot(many, said, dash, marker=mark, color=colour, markerfacecolor=PAPER, label=name)
            axis.set_xscale("log")
            axis.set_xlabel("non-zeros")
            axis.set_ylabel(label)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)

    best = {name: max(row["test"]["accuracy"] for row in rows) for name, rows in found.items()}
    told = ", ".join(f"{name} {value:.3f}" for name, value in best.items())
    alt = f"Accuracy and log-loss on test rows against non-zeros; best accuracies: {told}."
    return text_of(draw, (8.4, 3.8), "linear-path", "accuracy and log-loss against non-zeros", alt)
