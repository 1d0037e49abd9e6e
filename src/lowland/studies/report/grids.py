"""The figures of a grid study, one function each: what its metrics.json holds in, SVG text out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowland.figures.svg import INK, MUTED, SERIES, label, series, text_of

WIDTH = 4.3  # inches: a panel, as in the other reports


def gaps_figure(claim: str, found: Mapping[str, Any], metric: str, name: str) -> str:
    """Paired difference of two methods for every pair of data set and model, with its interval over seeds."""
    rows = found["pairs"]
    labels = [label(f"{row['data']}, {row['model']}") for row in rows]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.9)
        for place, row in enumerate(rows):
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=SERIES[0], linewidth=2.2)
            axes.plot(row["values"], [place] * len(row["values"]), "|", color=MUTED, markersize=6)
            axes.plot(row["mean"], place, "o", color=SERIES[0], markersize=5)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label(f"{metric}, {claim.replace(' - ', ' minus ')}", 80))
        axes.tick_params(axis="y", length=0)

    said = "; ".join(f"{pair} {row['mean']:+.4f}" for pair, row in zip(labels, rows, strict=True))
    size = (WIDTH, 1.0 + 0.26 * len(rows))
    return text_of(draw, size, name, f"{claim} in {metric}", f"{claim} in {metric}, mean over seeds: {said}.")


def curves_figure(curves: Mapping[str, Any], part: str, metric: str, name: str, title: str) -> str:
    """One metric along training, mean over seeds and a band of one standard deviation."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        shown = []
        for place, (averaged, curve) in enumerate(curves.items()):
            colour, _, dash = series(place)
            mean, sd = np.array(curve[part]["mean"]), np.array(curve[part]["sd"])
            axes.fill_between(curve["epoch"], mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
            axes.plot(curve["epoch"], mean, color=colour, linestyle=dash, linewidth=1.5, label=label(averaged))
            shown.append(mean)
        axes.set_ylim(*_window(shown))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label(f"{part} {metric}"))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, columnspacing=1.2)

    ends = "; ".join(f"{averaged} ends at {curve[part]['mean'][-1]:.4f}" for averaged, curve in curves.items())
    size = (WIDTH, 3.0 + 0.19 * ((len(curves) + 1) // 2))
    return text_of(draw, size, name, title, f"{part} {metric} along training, {title}: {ends}.")


def _window(shown: Sequence[np.ndarray]) -> tuple[float, float]:
    """Axis limits that leave out the first tenth of training, where an untrained model would set the scale."""
    late = np.concatenate([mean[len(mean) // 10 :] for mean in shown])
    low, high = float(late.min()), float(late.max())
    pad = 0.06 * (high - low) or 0.01
    return low - pad, high + pad


def line_figure(found: Mapping[str, Any], left: str, right: str, name: str, title: str) -> str:
    """Two values on the line between two solutions, an axis each: mean over seeds, band of one standard deviation."""
    ends = found["ends"]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        twin = axes.twinx()
        twin.grid(visible=False)
        handles = []
        for place, (own, value) in enumerate(((axes, left), (twin, right))):
            colour, mark, _ = series(place)
            mean, sd = (np.array(found["values"][value][key]) for key in ("mean", "sd"))
            own.fill_between(found["t"], mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
            dash = "--" if place else "-"
            side = "right" if place else "left"
            look: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": mark, "markersize": 4}
            handles += own.plot(found["t"], mean, label=f"{label(value)} ({side})", **look)
            own.yaxis.set_major_locator(MaxNLocator(5))
            own.set_ylabel(label(value), color=colour)
        for at, end in zip((0, 1), ends, strict=True):
            axes.axvline(at, color=MUTED, linewidth=0.8, linestyle=":")
            above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
            axes.annotate(label(end), (at, 1), xycoords=("data", "axes fraction"), **above)
        axes.set_xlabel(f"{label(ends[0])} at 0, {label(ends[1])} at 1")
        figure.legend(handles=handles, loc="outside lower center", ncols=2, columnspacing=1.2)

    lows = "; ".join(f"{value} lowest at {found['lowest'][value]['mean']:.2f}" for value in (left, right))
    return text_of(draw, (WIDTH, 3.3), name, title, f"{left} and {right} from {ends[0]} to {ends[1]}, {title}: {lows}.")


def sensitivity_figure(
    axis: str, rows: Sequence[Mapping[str, Any]], metric: str, name: str, title: str, *, factors: bool
) -> str:
    """The main metric against one setting, on validation and on test data: mean and standard deviation over seeds.

    `factors`: the setting is varied by factors, so its axis is logarithmic.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, method in enumerate(methods):
            own = [row for row in rows if row["method"] == method]
            values = [row["value"] for row in own]
            for dash, part in (("-", "test"), ("--", "validation")):
                colour, mark, _ = series(place)
                mean, sd = ([row[part][key] for row in own] for key in ("mean", "sd"))
                several = all(row[part]["n"] > 1 for row in own)  # one seed has no spread
                axes.errorbar(
                    values, mean, yerr=sd if several else None, color=colour, marker=mark, linestyle=dash,
                    linewidth=1.3, markersize=4.5, elinewidth=0.9,
                    label=label(f"{method}, {part}") if len(methods) > 1 else part,
                )  # fmt: skip
        every = [row["value"] for row in rows]
        if factors:
            axes.set_xscale("log")
        axes.set_xticks(sorted(set(every)), [f"{value:g}" for value in sorted(set(every))], minor=False)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label(axis, 60))
        axes.set_ylabel(label(metric))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, columnspacing=1.2)

    said = "; ".join(f"{row['method']} at {row['value']:g}: {row['test']['mean']:.4f}" for row in rows)
    size = (WIDTH, 3.0 + 0.19 * len(methods))
    return text_of(draw, size, name, title, f"{metric} on test data against {axis}, {title}: {said}.")
