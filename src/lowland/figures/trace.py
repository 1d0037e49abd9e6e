"""The figure of an ASWA run: the scores that decided each update, and below how many models the average holds.

Needs matplotlib: `pip install 'lowland[plot]'`.
"""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..aswa import ASWA
from .svg import INK, MUTED, PAPER, SERIES, text_of

SIZE = (6.2, 4.4)
# What an update did, in words that say it; a mark each, so that it is known without its colour.
ACTIONS = {
    "first": ("begin", "D", MUTED),
    "hard": ("replace", "^", SERIES[1]),
    "soft": ("extend", "o", SERIES[0]),
    "reject": ("reject", "X", SERIES[3]),
}


def trace_figure(average: ASWA, name: str = "trace", metric: str = "validation score") -> str:
    """Return SVG text: a mark for the weights of every update, a line for the average, and the models in it below.

    Infinite scores are left out.

    Example:
        >>> import torch
        >>> average = ASWA(lambda weights: -abs(weights["w"].item() - 5))
        >>> for w in (0.0, 4.0, 7.0):
        ...     average.update({"w": torch.tensor(w)})
        >>> trace_figure(average).startswith('<svg class="plot" role="img"')
        True
    """
    if not average.trace:
        raise RuntimeError("ASWA has no trace yet: call update(model) first")
    updates = range(1, len(average.trace) + 1)
    best = _of_the_average(average)

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot(updates, best, color=INK, linewidth=1.5, drawstyle="steps-post", label="the average")
        for action, (word, mark, colour) in ACTIONS.items():
            places = [i for i, decision in enumerate(average.trace) if decision.action == action]
            if not places:
                continue
            top.plot(
                [updates[i] for i in places],
                [average.trace[i].running for i in places],
                mark,
                color=colour,
                markeredgecolor=PAPER,
                markersize=7,
                label=word,
            )
        top.set_ylabel(metric)
        top.yaxis.set_major_locator(MaxNLocator(6))
        held = [decision.averaged for decision in average.trace]
        bottom.bar(updates, held, width=0.8, color=MUTED, edgecolor=PAPER, linewidth=0.4)
        bottom.set_ylabel("models")
        bottom.set_xlabel("update")
        bottom.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        figure.legend(*top.get_legend_handles_labels(), loc="outside upper center", ncols=5, columnspacing=1.2)

    said = "; ".join(
        f"update {update} {ACTIONS[d.action][0]} at {d.running:.4g}, average {score:.4g} of {d.averaged}"
        for update, d, score in zip(updates, average.trace, best, strict=True)
    )
    return text_of(draw, SIZE, name, f"{metric} of every update of ASWA", f"{metric} along ASWA: {said}.")


def _of_the_average(average: ASWA) -> list[float]:
    """The score of the average after every update."""
    scores: list[float] = []
    for decision in average.trace:
        if not decision.accepted:
            scores.append(scores[-1])
        elif decision.action == "soft" and decision.ahead is not None:
            scores.append(decision.ahead)
        else:
            scores.append(decision.running)
    return scores
