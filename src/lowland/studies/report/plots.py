"""The figures of the report, one function each: numbers in, SVG text out.

A panel is its own drawing of about 310 units, so that on a phone it stands at full width with letters of full size,
and on a wide page beside the next one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.patches
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from lowland.calibration import Reliability, SelectiveRisk
from lowland.figures.svg import DASHES, INK, MUTED, PAPER, SERIES, series, text_of

Floats = NDArray[np.floating[Any]]
PANEL, FLAT = (4.3, 3.6), (4.3, 2.9)


def intervals(cells: Mapping[str, Mapping[str, float]], metric: str, name: str) -> str:
    """Value and interval of one metric for every method, one under the other."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, cell in enumerate(cells.values()):
            colour = SERIES[1] if row == len(cells) - 1 else SERIES[0]
            axes.plot([cell["low"], cell["high"]], [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(cell["value"], row, "o", color=colour, markersize=5)
        axes.set_yticks(range(len(cells)), list(cells))
        axes.set_ylim(len(cells) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(metric)
        axes.tick_params(axis="y", length=0)

    said = "; ".join(f"{m} {c['value']:.3f} ({c['low']:.3f} to {c['high']:.3f})" for m, c in cells.items())
    return text_of(draw, FLAT, name, f"{metric} of every method", f"{metric} with its interval: {said}.")


def reliability(bins: Reliability, classes: int, method: str, ece: float, name: str) -> str:
    """Accuracy against confidence in each bin, the gap between them, and below how many predictions the bin holds."""
    edges, confidence, accuracy, count = (part.numpy() for part in bins)
    held = np.flatnonzero(count)
    left, width = edges[:-1], np.diff(edges)
    # nothing is less sure than 1/classes: that part of the axis would be empty in every diagram
    start = float(edges[int(len(left) / classes)])

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.bar(
            left[held], accuracy[held], width[held], align="edge", color=SERIES[0], alpha=0.75, edgecolor=PAPER,
            linewidth=0.8, label="accuracy",
        )  # fmt: skip
        top.plot(
            confidence[held],
            confidence[held],
            "_",
            color=SERIES[1],
            markersize=9,
            markeredgewidth=2.2,
            label="confidence",
        )  # fmt: skip
        top.vlines(confidence[held], accuracy[held], confidence[held], color=SERIES[1], linewidth=1.2)
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=DASHES[1], label="calibrated")
        top.set_xlim(start, 1.0)
        top.set_ylim(0, 1.04)
        top.set_ylabel("accuracy")
        handles, labels = top.get_legend_handles_labels()
        order = [labels.index(label) for label in ("accuracy", "confidence", "calibrated")]
        figure.legend(
            [handles[i] for i in order], [labels[i] for i in order], loc="outside upper center", ncols=3,
            columnspacing=1.2, handlelength=1.4,
        )  # fmt: skip
        bottom.bar(left[held], count[held], width[held], align="edge", color=MUTED, edgecolor=PAPER, linewidth=0.8)
        if len(held) <= 12:
            for b in held:
                middle = left[b] + width[b] / 2
                bottom.text(middle, count[b], f"{count[b]}", ha="center", va="bottom", fontsize=8)
        bottom.set_ylim(0, count.max() * 1.32)
        bottom.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        bottom.grid(axis="x", visible=False)
        bottom.set_ylabel("number")
        bottom.set_xlabel("confidence of the predicted class")

    full = np.argmax(count)
    alt = (
        f"Reliability diagram of {method}, {len(held)} bins hold predictions, ECE {ece:.3f}. The fullest bin holds "
        f"{count[full]} with mean confidence {confidence[full]:.2f} and accuracy {accuracy[full]:.2f}."
    )
    return text_of(draw, PANEL, name, f"Reliability of {method}", alt)


def history(members: Sequence[Mapping[str, Any]], phase: str, top: float, branch: float | None, name: str) -> str:
    """Training loss of every member in one phase as means of blocks of steps, with the validation NLL as marks.

    `branch` is the share of the phase after which the other phase starts, drawn as a line.
    """
    title = {"adamw": "AdamW phase", "swag": "SWAG phase"}[phase]
    n = 60 if len(members) <= 5 else 20  # many members are told apart by their smoother lines only

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for i, member in enumerate(members):
            colour, mark, dash = series(i)
            steps, losses = blocks(member[phase]["step"], member[phase]["loss"], n)
            axes.plot(steps, losses, color=colour, linestyle=dash, linewidth=1.3, label=f"member {member['member']}")
            at, values = validation_points(member[phase])
            axes.plot(at, values, mark, color=colour, markersize=5, markeredgecolor=PAPER, markeredgewidth=0.7)
        axes.plot([], [], "o", color=MUTED, markersize=5, label="validation NLL")
        if branch is not None and members and members[0][phase]["step"]:
            step = branch * members[0][phase]["step"][-1]
            axes.axvline(step, color=MUTED, linestyle=DASHES[1], linewidth=1.2)
            axes.annotate("SWAG starts", (step, 0.98 * top), (4, 0), textcoords="offset points", va="top", fontsize=9)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(f"step of the {title}")
        axes.set_ylabel("loss (nats)")
        columns = 2 if len(members) < 8 else 3
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, columnspacing=1.2)

    ends = []
    for member in members:
        _, losses = blocks(member[phase]["step"], member[phase]["loss"], n)
        if len(losses):
            ends.append(f"member {member['member']} from {losses[0]:.2f} to {losses[-1]:.2f}")
    size = (PANEL[0], PANEL[1] + 0.19 * max(0, len(members) // 3 - 2))
    return text_of(draw, size, name, title, f"Training loss in the {title}: {'; '.join(ends)}.")


def head(samples: Floats, means: Floats, names: tuple[str, str], only: int | None, name: str) -> str:
    """Samples (M, S, 2) of two weights: of all members in colours, or of one (`only`) with its 2-sigma ellipse."""
    shown = range(len(samples)) if only is None else [only]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        size = 3.0 if only is None else 4.0
        for i in shown:
            colour, mark, _ = series(i)
            axes.plot(*samples[i].T, mark, color=colour, alpha=0.4, markersize=size, markeredgewidth=0)
        for i in shown:
            colour, mark, dash = series(i)
            _ellipse(axes, samples[i], means[i], colour, dash)
            axes.plot(
                *means[i],
                mark,
                color=colour,
                markersize=8,
                markeredgecolor=INK,
                markeredgewidth=1.2,
                label=f"member {i}",
            )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("first weight")
        axes.set_ylabel("second weight")
        columns = min(len(shown), 3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, columnspacing=1.2)

    who = "all members" if only is None else f"member {only}"
    alt = (
        f"Scatter of {samples.shape[1]} samples of the weights {names[0]} and {names[1]} of {who}, SWAG means marked: "
    )
    alt += "; ".join(
        f"member {i} mean ({means[i][0]:.4f}, {means[i][1]:.4f}), standard deviations "
        f"{samples[i].std(0)[0]:.4f} and {samples[i].std(0)[1]:.4f}"
        for i in shown
    )
    size = (PANEL[0], PANEL[1] + 0.19 * max(0, len(samples) // 3 - 1) * (only is None))
    return text_of(draw, size, name, f"Samples of two head weights, {who}", alt + ".")


def selective_risk(curves: Mapping[str, SelectiveRisk], name: str, things: str = "texts") -> str:
    """Error among the texts, or other `things`, a method is most certain of, from few of them to all."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        highest = 0.01
        for i, (method, curve) in enumerate(curves.items()):
            coverage, risk = curve.coverage.numpy(), curve.risk.numpy()
            highest = max(highest, float(risk[coverage >= 0.1].max()))
            axes.step(
                coverage, risk, where="post", color=series(i)[0], linestyle=DASHES[i % 3], linewidth=1.7, label=method
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, highest * 1.15)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"{things} answered, the most certain first")
        axes.set_ylabel("wrong among the answered")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.2)

    said = "; ".join(
        f"{method} {at(curve, 0.5):.1%} wrong at half of the {things}, {at(curve, 0.8):.1%} at 80%, "
        f"{at(curve, 1.0):.1%} at all"
        for method, curve in curves.items()
    )
    return text_of(draw, FLAT, name, "Selective risk", f"Selective-risk curves: {said}.")


def cost(seconds: Mapping[str, float], name: str) -> str:
    """Seconds of each phase, summed over the members."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        bars = axes.barh(list(seconds), list(seconds.values()), color=SERIES[0], height=0.62)
        axes.bar_label(bars, labels=[f"{s:.0f} s" if s >= 10 else f"{s:.1f} s" for s in seconds.values()], padding=4)
        axes.invert_yaxis()
        axes.set_xlim(0, max([*seconds.values(), 1e-9]) * 1.2)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("seconds, all members")

    said = "; ".join(f"{phase} {s:.1f} seconds" for phase, s in seconds.items())
    return text_of(draw, (PANEL[0], 0.9 + 0.34 * len(seconds)), name, "Time by phase", f"Time by phase: {said}.")


def mean_risk(curves: Sequence[SelectiveRisk]) -> SelectiveRisk:
    """The mean of several members' curves, at the coverages of the first."""
    coverage = curves[0].coverage
    places = [torch.searchsorted(curve.coverage, coverage - 1e-9).clamp_max(len(curve.risk) - 1) for curve in curves]
    risks = [curve.risk[place] for curve, place in zip(curves, places, strict=True)]
    return SelectiveRisk(coverage, torch.stack(risks).mean(0))


def at(curve: SelectiveRisk, coverage: float) -> float:
    """Risk at the first point of the curve that covers at least `coverage`."""
    first = int(np.searchsorted(curve.coverage.numpy(), coverage - 1e-12))
    return float(curve.risk[min(first, len(curve.risk) - 1)])


def blocks(steps: Sequence[float], losses: Sequence[float], n: int) -> tuple[Floats, Floats]:
    """Means of at most `n` runs of neighbouring steps; what is not finite is left out."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    parts = np.array_split(np.arange(len(x)), max(1, min(n, len(x))))
    parts = [part for part in parts if len(part)]
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def validation_points(phase: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Step and NLL of every validation. They come at equal distances and the last one ends the phase."""
    nll = np.array([point["nll"] for point in phase["validation"]], dtype=np.float64)
    first, last = (phase["step"][0], phase["step"][-1]) if phase["step"] else (0, len(nll))
    return first + (last - first) * (np.arange(len(nll)) + 1) / max(1, len(nll)), nll


def _ellipse(axes: Axes, samples: Floats, mean: Floats, colour: str, dash: str) -> None:
    """Where a Gaussian of these samples' covariance has Mahalanobis distance 2 from the mean: 86% lie within."""
    variances, directions = np.linalg.eigh(np.cov(samples.astype(np.float64).T))
    width, height = 4 * np.sqrt(variances.clip(min=0.0))
    angle = float(np.degrees(np.arctan2(directions[1, 0], directions[0, 0])))
    axes.add_patch(
        matplotlib.patches.Ellipse(
            (float(mean[0]), float(mean[1])), float(width), float(height), angle=angle, fill=False, edgecolor=colour,
            linestyle=dash, linewidth=1.6,
        )
    )  # fmt: skip
