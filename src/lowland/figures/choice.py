"""The figure of a choice: the score of every average of a run against its window, a line a shape.

Needs matplotlib: `pip install 'lowland[plot]'`.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..retroactive import Choice, Tried
from .svg import INK, MUTED, PAPER, series, text_of

SIZE = (6.2, 3.8)


def choice_figure(choice: Choice, name: str = "choice", metric: str = "score, higher is better") -> str:
    """Return SVG text: a mark for every average without a blend, and one for every blend of the best.

    Bars are two standard errors of the difference to the best, where they are known.

    >>> from lowland.retroactive import choose
    >>> found = choose([1, 2, 3], lambda c: -abs(sum(c.coefficients([1, 2, 3])[1:]) - 0.5))
    >>> choice_figure(found).startswith('<svg class="plot" role="img"')
    True
    """
    groups: dict[str, list[Tried]] = {}
    for tried in choice.tried:
        kind = tried.candidate.shape if tried.candidate.blend == 1 and not tried.candidate.groups else "blends"
        groups.setdefault(kind, []).append(tried)
    best = choice.winner

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (kind, found) in enumerate(groups.items()):
            found = sorted(found, key=lambda tried: tried.candidate.window)
            colour, mark, dash = series(place)
            x = np.array([tried.candidate.window for tried in found])
            y = np.array([tried.score for tried in found])
            line = "" if kind in ("checkpoint", "blends") else dash
            axes.plot(x, y, color=colour, linestyle=line or "none", linewidth=1.3)
            noise = np.array([2 * (tried.behind_error or 0.0) for tried in found])
            if noise.any():
                axes.vlines(x, y - noise, y + noise, color=colour, linewidth=1.0, alpha=0.6)
            full = {"checkpoint": "single checkpoints", "blends": "other blends"}.get(kind, kind)
            axes.plot(x, y, mark, markerfacecolor=PAPER, markeredgecolor=colour, markersize=6, label=full)
            tied = np.array([tried.tied for tried in found])
            axes.plot(x[tied], y[tied], mark, color=colour, markersize=6)
        axes.plot(best.candidate.window, best.score, "o", markersize=13, fillstyle="none", color=INK, label="chosen")
        axes.plot([], [], "s", color=MUTED, markersize=5, label="ties with it")
        axes.set_xlabel("window: the last checkpoints that are averaged (a single one: its place from the end)")
        axes.set_ylabel(metric)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, columnspacing=1.2)

    said = "; ".join(f"{tried.candidate} {tried.score:.4f}" for tried in choice.tried)
    return text_of(draw, SIZE, name, f"{metric} against window", f"Chosen: {best.candidate}, {best.score:.4f}. {said}.")
