"""The figures of an ensemble out of one run: its learning-rate schedule, and its metrics as members are added.

Needs matplotlib: `pip install 'lowland[plot]'`.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..cycles import Schedule
from ..predict.accumulation import Accumulation
from .svg import MUTED, PAPER, series, text_of

WIDE, PANEL = (6.2, 3.2), (4.3, 3.0)
MOST = 4000  # points of a line; more would not be seen


def schedule_figure(schedule: Schedule, steps: int, rate: float = 1.0, name: str = "schedule") -> str:
    """Return SVG text: the rate of every step, and a mark after each step whose weights are collected.

    Example:
        >>> from lowland.cycles import triangle
        >>> schedule_figure(triangle(8, 0.01), 32, 0.05).startswith('<svg class="plot" role="img"')
        True
    """
    every = range(steps)
    rates = [rate * schedule(step) for step in every]
    collected = [step for step in every if schedule.collect_at(step)]
    # Where steps are left out of the line, its corners stay: a step whose neighbours lie on one line with it is none.
    corners = {
        step for step in every[1:-1] if abs(rates[step - 1] - 2 * rates[step] + rates[step + 1]) > 1e-6 * max(rates)
    }
    coarse = set(range(0, steps, -(-steps // MOST))) | {steps - 1}
    shown = sorted(coarse | (corners if len(corners) <= MOST else set()))
    marked = collected[:: -(-len(collected) // 200)] if collected else []

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        colour, _, _ = series(0)
        axes.plot(shown, [rates[step] for step in shown], color=colour, linewidth=1.4, label="learning rate")
        if marked:
            mark = "|" if len(collected) > 40 else "o"
            other, _, _ = series(1)
            axes.plot(
                marked, [rates[step] for step in marked], mark, color=other, markeredgecolor=other, markersize=6,
                label=f"collected after this step: {len(collected)}",
            )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("learning rate" if rate != 1.0 else "share of the base rate")
        axes.set_ylim(0, 1.06 * max(rates))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)

    said = f"{schedule}: rate {rates[0]:.4g} at step 0, between {min(rates):.4g} and {max(rates):.4g} in {steps} steps"
    alt = f"{said}; {len(collected)} collected, after steps {_listed(collected)}."
    return text_of(draw, WIDE, name, f"learning rate of {schedule}", alt)


def accumulation_figure(curves: Accumulation, metric: str, name: str = "accumulation") -> str:
    """Return SVG text: a metric of every member alone, and of the ensembles of the first and of the last members.

    Example:
        >>> rows = [{"nll": 0.5}, {"nll": 0.4}]
        >>> accumulation_figure(Accumulation(rows, rows, rows), "nll").startswith('<svg class="plot" role="img"')
        True
    """
    sizes = range(1, curves.size + 1)
    words = {"forward": "the first m members", "backward": "the last m members"}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(sizes, curves.curve("alone", metric), "_", color=MUTED, markersize=9, label="member m alone")
        for place, (order, word) in enumerate(words.items()):
            colour, mark, dash = series(place)
            axes.plot(
                sizes, curves.curve(order, metric), color=colour, marker=mark, linestyle=dash, markeredgecolor=PAPER,
                linewidth=1.4, markersize=6, label=word,
            )  # fmt: skip
        axes.set_xlabel("m")
        axes.set_ylabel(metric)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=1)

    said = "; ".join(
        f"{word} {', '.join(f'{value:.4g}' for value in curves.curve(order, metric))}"
        for order, word in {"alone": "alone", **words}.items()
    )
    return text_of(draw, PANEL, name, f"{metric} as members are added", f"{metric}, m from 1 to {curves.size}: {said}.")


def _listed(steps: Sequence[int], most: int = 12) -> str:
    shown = ", ".join(map(str, steps[:most]))
    return f"{shown}, ..., {steps[-1]}" if len(steps) > most else shown or "none"
