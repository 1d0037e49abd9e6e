"""The figure of a sweep over averages: score against half-life, and below what the record could not express.

Needs matplotlib: `pip install 'lowland[plot]'`.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ..retroactive.sweep import Sweep, Trial
from .svg import INK, MUTED, PAPER, series, text_of

SIZE = (6.2, 4.4)
KINDS = {"Window": "window", "Exponential": "EMA", "PowerLaw": "power EMA"}


def half_life_figure(sweep: Sweep, name: str = "sweep", metric: str = "validation score") -> str:
    """Return SVG text: a mark for every average tried, joined within a kind, filled where it ties with the best.

    Bars are two standard errors of the difference to the best, where the sweep knows them: averages are told apart by
    that difference, whose noise is far below that of a score.

    Example:
        >>> import torch
        >>> from lowland.retroactive import Window
        >>> from lowland.retroactive import intervals, sweep
        >>> kept = intervals([(step, {"w": torch.tensor([float(step)])}) for step in (10, 20, 30)])
        >>> found = sweep(kept, [Window(0, 30), Window(10, 30)], lambda weights: -abs(weights["w"].item() - 24))
        >>> half_life_figure(found).startswith('<svg class="plot" role="img"')
        True
    """
    groups: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        kind = type(trial.target).__name__
        groups.setdefault(KINDS.get(kind, kind), []).append(trial)
    best = sweep.trials[sweep.best]

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for place, (kind, trials) in enumerate(groups.items()):
            _group(top, bottom, sorted(trials, key=lambda trial: trial.target.half_life), kind, place)
        top.plot(
            best.target.half_life, best.score, "o", markersize=13, fillstyle="none", color=INK, label="best"
        )  # fmt: skip
        top.plot([], [], "s", color=MUTED, markersize=5, label="ties with the best")
        top.set_ylabel(metric)
        top.yaxis.set_major_locator(MaxNLocator(6))
        bottom.set_xscale("log")
        bottom.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        bottom.xaxis.set_minor_formatter(NullFormatter())
        bottom.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        bottom.set_xlabel("half-life: steps that hold the younger half of the weight")
        bottom.set_ylabel("residual")
        bottom.set_ylim(0, 1.15 * max(0.05, max(trial.residual for trial in sweep.trials)))
        bottom.yaxis.set_major_locator(MaxNLocator(3))
        figure.legend(*top.get_legend_handles_labels(), loc="outside upper center", ncols=5, columnspacing=1.2)

    said = "; ".join(
        f"{t.target} (half-life {t.target.half_life:.4g}) {t.score:.4f}{', tied' if t.tied else ''}"
        for t in sweep.trials
    )
    alt = f"{metric} against half-life, best {best.target} with {best.score:.4f}: {said}."
    return text_of(draw, SIZE, name, f"{metric} against half-life", alt)


def _group(top: Axes, bottom: Axes, trials: list[Trial], kind: str, place: int) -> None:
    colour, mark, dash = series(place)
    ages = np.array([trial.target.half_life for trial in trials])
    scores = np.array([trial.score for trial in trials])
    top.plot(ages, scores, color=colour, linestyle=dash, linewidth=1.3)
    noise = [2 * (trial.behind_error or 0.0) for trial in trials]
    if any(noise):
        top.vlines(ages, scores - noise, scores + noise, color=colour, linewidth=1.0, alpha=0.6)
    # An empty mark is told from the best, a full one is not.
    top.plot(ages, scores, mark, markerfacecolor=PAPER, markeredgecolor=colour, markersize=6, label=kind)
    tied = np.array([trial.tied for trial in trials])
    top.plot(ages[tied], scores[tied], mark, color=colour, markersize=6)
    bottom.plot(ages, [trial.residual for trial in trials], mark, color=colour, markersize=4, linestyle=dash)
