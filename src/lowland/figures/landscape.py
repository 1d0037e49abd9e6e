"""Figures of landscapes: planes with contours, lines with two axes, rays with bands, spectra.

Contours are spaced evenly in the logarithm of the height above the lowest value, as in the figures of Izmailov and
others 2018, arXiv:1803.05407: near the minimum much happens and far from it nothing that matters. Colours are those of
cividis, which readers of all kinds of colour vision see alike; every contour has its number.

Needs matplotlib: `pip install 'lowland[plot]'`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from ..landscape.grid import Grid
from ..landscape.hessian import Spectrum
from ..landscape.rays import Rays
from ..landscape.walk import Walk
from .looks import Drawing, Look
from .svg import label as named

UNITS = {"error": "share", "loss": "nats"}
BANDS = 9  # of colour on a plane


def plane_drawing(grid: Grid, names: Sequence[str] | None = None, about: Mapping[str, str] | None = None) -> Drawing:
    """Draw one panel of contours for each value, with the solutions marked.

    Args:
        names: which values; all by default.
        about: what the caption says; the grid's own by default.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)
        >>> ends = tuple(x.tolist())
        >>> bowl = x[None] ** 2 + x[:, None] ** 2
        >>> grid = Grid(ends, ends, {"loss": bowl}, bowl > -1, {"SGD": (0.5, 0.0)})
        >>> plane_drawing(grid).title
        'loss on the plane through SGD'
    """
    shown = list(grid.values) if names is None else list(names)
    for name in shown:
        grid.of(name)
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    caption = caption_of(grid.about if about is None else about, 62 * columns)

    def draw(figure: Figure, look: Look) -> None:
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).flatten()
        for number, (ax, name) in enumerate(zip(axes, shown, strict=False)):
            _contours(ax, grid, name, look, number % columns == 0)
        for ax in axes[len(shown) :]:
            ax.set_visible(False)
        _captioned(figure, caption, look)

    lows = "; ".join(
        f"{name} lowest {v:.4g} at ({x:.3g}, {y:.3g})" for name in shown for x, y, v in [grid.lowest(name)]
    )
    marks = "; ".join(f"{name} at ({x:.3g}, {y:.3g})" for name, (x, y) in grid.points.items())
    title = f"{', '.join(shown)} on the plane through {', '.join(grid.points) or 'the origin'}"
    tall = min(1.0, max(0.4, (grid.y[-1] - grid.y[0]) / (grid.x[-1] - grid.x[0])))  # axes have one scale
    height = (1.2 + 2.7 * tall) * rows + 0.17 * (caption.count("\n") + 1)
    return Drawing(draw, (4.3 * columns, height), title, f"{title}. {marks}. {lows}. {caption}")


def line_drawing(
    walks: Mapping[str, Walk],
    left: str,
    right: str,
    about: Mapping[str, str] | None = None,
    ends: tuple[str, str] = ("a", "b"),
) -> Drawing:
    """Draw two values along lines, one on each axis, with the lowest place of each marked.

    An axis is logarithmic where its values are above 0 and the highest is a thousand times the lowest or more.

    Args:
        walks: by what they are of, such as a seed; several are drawn thin with their mean.
        left, right: the values.
        ends: what lies at 0 and 1.

    Example:
        >>> walk = Walk((0.0, 0.5, 1.0), {"train loss": (2.0, 1.0, 3.0), "test error": (0.3, 0.2, 0.1)}, (1.0, 1.0))
        >>> line_drawing({"": walk}, "train loss", "test error").title
        'train loss and test error from a to b'
    """
    caption = caption_of(about or {}, 84)
    ends = (named(ends[0]), named(ends[1]))

    def draw(figure: Figure, look: Look) -> None:
        ax = figure.subplots()
        twin = ax.twinx()
        twin.grid(False)
        twin.spines["right"].set_visible(True)
        handles: list[Any] = []
        for number, (side, name) in enumerate(((ax, left), (twin, right))):
            colour, mark, _ = look.of(number)
            dash = "-" if number == 0 else "--"
            t = next(iter(walks.values())).t
            rows = np.array([walk.values[name] for walk in walks.values()], dtype=float)
            if len(rows) > 1:
                for row in rows:
                    side.plot(t, row, color=colour, linestyle=dash, linewidth=0.6, alpha=0.5)
            mean = rows.mean(0)
            handles += side.plot(
                t,
                mean,
                color=colour,
                linestyle=dash,
                linewidth=1.8,
                label=f"{name} ({'left' if number == 0 else 'right'})",
            )
            lowest, value = Walk(t, {name: tuple(mean)}, (1.0,) * (len(t) - 1)).lowest(name)
            side.plot(lowest, value, mark, color=colour, markeredgecolor=look.paper, markersize=8)
            side.set_ylabel(_unit(name), color=colour)
            if rows.min() > 0 and rows.max() >= 1000 * rows.min():
                side.set_yscale("log")
                side.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                side.yaxis.set_minor_formatter(NullFormatter())
            else:
                side.yaxis.set_major_locator(MaxNLocator(5))
        for place, label in zip((0.0, 1.0), ends, strict=True):
            ax.axvline(place, color=look.muted, linewidth=0.8, linestyle=":")
            ax.annotate(
                label,
                (place, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=look.ink,
                fontsize=9,
            )
        ax.set_xlabel(f"place on the line: {ends[0]} at 0, {ends[1]} at 1")
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
        _captioned(figure, caption, look)

    told = []
    for label, walk in walks.items():
        for name in (left, right):
            t, value = walk.lowest(name)
            told.append(f"{label + ': ' if label else ''}{name} lowest {value:.4g} at {t:.3g}")
    title = f"{left} and {right} from {ends[0]} to {ends[1]}"
    return Drawing(draw, (6.2, 3.8), title, f"{title}: {'; '.join(told)}. {caption}")


def rays_drawing(
    solutions: Mapping[str, Rays], name: str | None = None, about: Mapping[str, str] | None = None
) -> Drawing:
    """Draw the mean of one value along rays, for several solutions, with its 95 % band over directions.

    Example:
        >>> import torch
        >>> rays = Rays((0.0, 1.0), {"loss": torch.tensor([[0.0, 1.0], [0.0, 2.0]])})
        >>> rays_drawing({"SGD": rays, "SWA": rays}).title
        'loss along random rays from SGD, SWA'
    """
    solutions = {named(own): rays for own, rays in solutions.items()}
    key = next(iter(next(iter(solutions.values())).values)) if name is None else name
    first = next(iter(solutions.values()))
    caption = caption_of(first.about if about is None else about, 84)
    unit = first.about.get("normalisation", "distance")

    def draw(figure: Figure, look: Look) -> None:
        ax = figure.subplots()
        for number, (label, rays) in enumerate(solutions.items()):
            colour, mark, dash = look.of(number)
            mean = rays.mean(key)
            ax.fill_between(
                rays.t, [m.low for m in mean], [m.high for m in mean], color=colour, alpha=0.25, linewidth=0
            )
            every = max(1, len(rays.t) // 8)
            ax.plot(
                rays.t,
                [m.mean for m in mean],
                color=colour,
                linestyle=("-", "--", "-.", ":")[number % 4],
                marker=mark,
                markevery=every,
                markersize=5,
                label=f"{label} ({len(rays.of(key))} directions)",
            )
        ax.set_xlabel("distance along the ray" + (f", {unit.split(':')[0].split(',')[0]}" if unit else ""))
        ax.set_ylabel(_unit(key))
        ax.yaxis.set_major_locator(MaxNLocator(6))
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        _captioned(figure, caption, look)

    told = "; ".join(
        f"{label} {rays.mean(key)[0].mean:.4g} at 0, {rays.mean(key)[-1]} at {rays.t[-1]:g}"
        for label, rays in solutions.items()
    )
    title = f"{key} along random rays from {', '.join(solutions)}"
    return Drawing(draw, (6.2, 3.8), title, f"{title}: {told}. {caption}")


def spectrum_drawing(spectra: Mapping[str, Spectrum], about: Mapping[str, str] | None = None) -> Drawing:
    """Draw the density of eigenvalues on a logarithmic axis, with the largest and smallest Ritz values marked below.

    Example:
        >>> from lowland.landscape import spectrum_of
        >>> import torch
        >>> d = torch.arange(1.0, 9.0)
        >>> found = spectrum_of(lambda v: {"w": d * v["w"]}, {"w": torch.zeros(8)}, steps=4, probes=2)
        >>> spectrum_drawing({"SGD": found}).title
        "Density of the Hessian's eigenvalues at SGD"
    """
    spectra = {named(own): found for own, found in spectra.items()}
    first = next(iter(spectra.values()))
    caption = caption_of(first.about if about is None else about, 84)
    low = min(float(s.nodes[s.weights > 0].min()) for s in spectra.values())
    high = max(float(s.nodes[s.weights > 0].max()) for s in spectra.values())
    spread = (high - low) or 1.0
    width = spread / 80

    def draw(figure: Figure, look: Look) -> None:
        import torch

        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(5, max(1, len(spectra))))
        grid = torch.linspace(low - 0.06 * spread, high + 0.06 * spread, 700, dtype=torch.float64)
        peak = 0.0
        for number, (label, spectrum) in enumerate(spectra.items()):
            colour, mark, _ = look.of(number)
            density = spectrum.density(grid, width=width)
            peak = max(peak, float(density.max()))
            top.plot(
                grid.numpy(), density.numpy(), color=colour, linestyle=("-", "--", "-.", ":")[number % 4], label=label
            )
            ends = [float(spectrum.eigenvalues[0]), float(spectrum.eigenvalues[-1])]
            bottom.plot(
                spectrum.eigenvalues.numpy(), [-number] * len(spectrum.eigenvalues), mark, color=colour, markersize=4
            )
            bottom.annotate(
                f"{ends[0]:.3g}",
                (ends[0], -number),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=look.ink,
                fontsize=8,
            )
        top.set_yscale("log")
        top.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e"))
        top.yaxis.set_minor_formatter(NullFormatter())
        top.set_ylim(peak / 1e6, peak * 3)
        top.set_ylabel("density")
        bottom.set_yticks([-k for k in range(len(spectra))], list(spectra))
        bottom.set_ylim(-len(spectra) + 0.4, 0.6)
        bottom.grid(axis="y", visible=False)
        bottom.set_xlabel("eigenvalue of the Hessian")
        if len(spectra) > 1:
            figure.legend(*top.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        _captioned(figure, caption, look)

    told = "; ".join(f"{label}: {spectrum}" for label, spectrum in spectra.items())
    title = f"Density of the Hessian's eigenvalues at {', '.join(spectra)}"
    return Drawing(draw, (6.2, 4.2), title, f"{title}: {told}. {caption}")


def levels_of(values: Any, count: int = BANDS) -> list[float]:
    """Return the lowest value, and levels evenly spaced in the logarithm of the height above it.

    The highest leaves a quarter of the finite values above it.

    >>> [round(level, 3) for level in levels_of(np.array([[0.0, 1.0], [100.0, 100.0]]), 3)]
    [0.0, 4.96, 22.271, 100.0]
    """
    finite = values[np.isfinite(values)]
    low = float(finite.min()) if finite.size else 0.0
    above = finite[finite > low]
    if not above.size:
        return [low - 0.5, low + 0.5]
    cap = float(np.quantile(finite, 0.75)) - low
    first = max(float(np.quantile(above, 0.02)) - low, cap / 100, 1e-12)
    if cap <= first:
        cap = float(above.max()) - low
    if cap <= first:
        return [low, low + cap]
    steps = np.exp(np.linspace(math.log(first), math.log(cap), count))
    return [low, *(low + float(step) for step in steps)]


def caption_of(about: Mapping[str, str], width: int = 84) -> str:
    """Return what a caption says, in lines: data, model, n, refresh, normalisation.

    >>> caption_of({"data": "digits", "n": "300"})
    'data: digits; n: 300'
    """
    text = "; ".join(f"{key}: {value}" for key, value in about.items())
    return "\n".join(textwrap.wrap(text, width))


def _contours(ax: Axes, grid: Grid, name: str, look: Look, first: bool) -> None:
    values = grid.of(name).double().numpy()
    levels = levels_of(values)
    x, y = np.array(grid.x), np.array(grid.y)
    shown = np.where(np.isfinite(values), values, 1e300)
    norm = BoundaryNorm([*levels, levels[-1] + 1e-12 * abs(levels[-1]) + 1e-12], 256)
    ax.contourf(x, y, shown, levels=[*levels, 1e301], cmap="cividis_r", norm=norm)
    lines = ax.contour(x, y, shown, levels=levels[1:], colors="#ffffff", linewidths=0.5)
    dark = len(levels) * 2 // 3  # from this band on the map is so dark that letters on it are light
    for text in ax.clabel(lines, list(lines.levels)[::2], fmt=_short, fontsize=7):
        beyond = sum(float(text.get_text()) > level * (1 - 1e-9) for level in map(float, map(_short, levels)))
        text.set_color("#ffffff" if beyond > dark else "#000000")
    if grid.path and len(grid.points) > 1:
        ax.plot(*zip(*grid.points.values(), strict=True), color=look.ink, linewidth=1.0, zorder=3)
    few = len(grid.points) <= 5
    for number, (label, (a, b)) in enumerate((named(own), place) for own, place in grid.points.items()):
        colour, mark, _ = look.of(number if few else 0)
        ax.plot(
            a,
            b,
            mark,
            color=colour,
            markeredgecolor="#ffffff",
            markeredgewidth=1.2,
            markersize=9 if few else 4,
            zorder=4,
        )
        if few or number in (0, len(grid.points) - 1):
            ax.annotate(
                label,
                (a, b),
                xytext=(7, 6),
                textcoords="offset points",
                color="#000000",
                fontsize=9,
                zorder=5,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "#ffffff", "edgecolor": "none", "alpha": 0.8},
            )
    if grid.draws:
        ax.plot(*zip(*grid.draws, strict=True), ".", color="#ffffff", markeredgecolor="#000000", markersize=4,
                markeredgewidth=0.4, zorder=3)  # fmt: skip
    if len(grid.draws) > 2:
        centre, axes = grid.ellipse()
        around = np.linspace(0, 2 * math.pi, 100)
        edge = centre.numpy() + np.cos(around)[:, None] * axes[0].numpy() + np.sin(around)[:, None] * axes[1].numpy()
        ax.plot(edge[:, 0], edge[:, 1], color="#000000", linewidth=1.2, linestyle="--", zorder=3)
        ax.set_xlim(x[0], x[-1])
        ax.set_ylim(y[0], y[-1])
    low = grid.lowest(name)
    ax.plot(low.x, low.y, "+", color="#000000", markersize=9, markeredgewidth=1.5, zorder=4)
    ax.set_title(f"{name}, lowest {low.value:.4g} (+)", fontsize=10, color=look.ink)
    ax.set_aspect("equal", adjustable="box")
    ax.grid(False)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("distance in weights")
    if first:
        ax.set_ylabel("distance in weights")


def _captioned(figure: Figure, caption: str, look: Look) -> None:
    if caption:
        figure.supxlabel(caption, fontsize=8, color=look.muted, x=0.01, ha="left")


def _unit(name: str) -> str:
    unit = UNITS.get(name.rsplit(" ", 1)[-1])
    return f"{name} ({unit})" if unit else name


def _short(value: float) -> str:
    return f"{value:.3g}"
