"""One drawing, three looks: marked for SVG that follows its page, and light or dark for PNG.

Needs matplotlib: `pip install 'lowland[plot]'`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files.replacing import Replacing
from .svg import DARK, DASHES, GRID, INK, LIGHT, MARKS, MUTED, PAPER, SERIES, STYLE, alone, text_of

DOTS = 200  # an inch, of a PNG


@dataclass(frozen=True)
class Look:
    """The colours of a drawing.

    >>> MARKED.of(0)[1:]
    ('o', '-')
    """

    ink: str
    muted: str
    grid: str
    paper: str
    series: tuple[str, ...]

    def of(self, i: int) -> tuple[str, str, str]:
        """Return colour, mark and dash of series i: a series is known by its mark too."""
        return self.series[i % 7], MARKS[(i + i // 7) % 7], DASHES[i // 7 % 3]


MARKED = Look(INK, MUTED, GRID, PAPER, SERIES)
LIGHT_LOOK = Look(LIGHT[INK], LIGHT[MUTED], LIGHT[GRID], LIGHT[PAPER], tuple(LIGHT[colour] for colour in SERIES))
DARK_LOOK = Look(DARK[INK], DARK[MUTED], DARK[GRID], DARK[PAPER], tuple(DARK[colour] for colour in SERIES))
Draw = Callable[[Figure, Look], None]


@dataclass(frozen=True)
class Drawing:
    """What is drawn, and the words with it.

    Attributes:
        draw: puts it on a figure in a look's colours.
        size: inches.
        title, alt: for readers who do not see it; `alt` holds its numbers.

    >>> drawing = Drawing(lambda figure, look: None, (2.0, 1.0), "Nothing", "An empty figure.")
    >>> drawing.svg("empty").startswith('<svg class="plot" role="img"')
    True
    """

    draw: Draw
    size: tuple[float, float]
    title: str
    alt: str

    def svg(self, name: str) -> str:
        """Return SVG text for a page; `name` starts every id in it."""
        return text_of(lambda figure: self.draw(figure, MARKED), self.size, name, self.title, self.alt)

    def png(self, *, dark: bool = False) -> bytes:
        """Return a PNG."""
        look = DARK_LOOK if dark else LIGHT_LOOK
        real = dict(
            zip(
                (INK, MUTED, GRID, PAPER, *SERIES),
                (look.ink, look.muted, look.grid, look.paper, *look.series),
                strict=True,
            )
        )
        style = {key: real.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()}
        style["figure.facecolor"] = look.paper
        with matplotlib.style.context(["default", style], after_reset=True):
            figure = Figure(figsize=self.size, layout="constrained", dpi=DOTS)
            FigureCanvasAgg(figure)
            self.draw(figure, look)
            file = io.BytesIO()
            figure.savefig(
                file, format="png", metadata={"Software": None, "Title": self.title, "Description": self.alt}
            )
        return file.getvalue()

    def write(self, path: str | os.PathLike[str], *, dark: bool = False) -> Path:
        """Write an SVG or a PNG, by the ending of the path, in place of an older one in one step.

        Raises:
            ValueError: the path ends otherwise.
        """
        path = Path(path)
        if path.suffix == ".svg":
            content = alone(self.svg(path.stem)).encode()
        elif path.suffix == ".png":
            content = self.png(dark=dark)
        else:
            raise ValueError(f"a figure is written as .svg or .png, got {path.name}: name it so")
        with Replacing(path, len(content)) as file:
            file.write(content)
        return path
