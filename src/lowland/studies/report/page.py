"""The page: draws every figure, fills the template, and hands back the HTML."""

from typing import Any

import numpy as np
from markupsafe import Markup

from lowland import calibration

from . import plots, tables, templates
from .run import METRICS, Run

_RELIABILITY = ("base", "temperature-scaled base", "SWAG", "MultiSWAG")
_RISK = ("base", "deep ensemble", "MultiSWAG")
_INTERVALS = ("nll", "ece", "accuracy", "f1")


def render(run: Run) -> str:
    """The whole report as HTML text."""
    things = tables.things(run)
    return templates.render(
        "page.html.j2",
        run=run,
        members=len(run.samples),
        bins=tables.bins(run),
        level=f"{100 * tables.level(run):g}%",
        metrics=METRICS,
        titles=tables.TITLES,
        lower=tables.LOWER,
        metric_meanings=tables.spoken(tables.METRIC_MEANINGS, things),
        meanings=tables.spoken({method: tables.MEANINGS[method] for method in run.methods}, things),
        verdict=[part.strip() for part in run.metrics["verdict"].partition(". ") if part.strip(". ")],
        rows=tables.results(run),
        overlap=tables.overlap_sentences(run),
        paired=tables.PAIRED,
        differences=tables.differences(run),
        spread=tables.spread(run),
        shifted=tables.shifted(run),
        things=things,
        notes=[f"{note[:1].upper()}{note[1:]}" for note in run.metrics.get("notes", [])],
        thing=things.removesuffix("s"),
        shipped=tables.shipped(run),
        shipping=tables.shipping(run),
        tried=tables.tried(run),
        groups={
            "uncertain": tables.uncertain(run.texts),
            "wrong": tables.confidently_wrong(run.texts),
        },
        shortened=tables.shortened,
        number=tables.number,
        between=tables.between,
        guessing=tables.guessing(run),
        listed=tables.listed,
        chosen=list(tables.flat(run.metrics.get("chosen", {}))),
        temperature=_temperature(run),
        versions=list(tables.flat(run.versions)),
        seeds=[(key, value) for key, value in tables.flat(run.settings) if "seed" in key.lower()],
        **_figures(run),
    )


def _figures(run: Run) -> dict[str, Any]:
    curves = {}
    for method in _RISK:
        each = [calibration.selective_risk(probs, run.labels) for probs in run.probs[method]]
        curves[method] = plots.mean_risk(each)
    seconds = tables.phases(run)
    top = _loss_top(run)
    return {
        "interval_plots": [(metric, Markup(_interval(run, metric))) for metric in _INTERVALS],
        "reliability_plots": [
            (
                method,
                run.metrics["methods"][method]["ece"],
                len(run.probs[method]),
                Markup(_reliability(run, method, f"reliability-{i}")),
            )
            for i, method in enumerate(_RELIABILITY)
        ],
        "history_plots": [
            ("adamw", Markup(plots.history(run.history, "adamw", top, _branch(run), "history-adamw"))),
            ("swag", Markup(plots.history(run.history, "swag", top, None, "history-swag"))),
        ],
        "head_one": Markup(plots.head(run.samples, run.means, run.weight_names, 0, "head-one")),
        "head_all": Markup(plots.head(run.samples, run.means, run.weight_names, None, "head-all")),
        "risk_plot": Markup(plots.selective_risk(curves, "risk", tables.things(run))),
        "risk_at": [
            (method, [f"{plots.at(curve, coverage):.1%}" for coverage in (0.5, 0.8, 1.0)])
            for method, curve in curves.items()
        ],
        "cost_plot": Markup(plots.cost(seconds, "cost")),
    }


def _interval(run: Run, metric: str) -> str:
    cells = {method: each[metric] for method, each in run.metrics["methods"].items()}
    return plots.intervals(cells, tables.TITLES[metric], f"interval-{metric}")


def _reliability(run: Run, method: str, name: str) -> str:
    """The diagram of a method; of single models the predictions of all members together."""
    members, _, classes = run.probs[method].shape
    bins = calibration.reliability(
        run.probs[method].reshape(-1, classes), np.tile(run.labels, members), bins=tables.bins(run)
    )
    return plots.reliability(bins, classes, method, run.metrics["methods"][method]["ece"]["value"], name)


def _loss_top(run: Run) -> float:
    """Upper end of the loss axis that both phases share."""
    highest = [0.1]
    for member in run.history:
        for phase in ("adamw", "swag"):
            _, losses = plots.blocks(member[phase]["step"], member[phase]["loss"], 60)
            _, validation = plots.validation_points(member[phase])
            highest += [*losses, *validation[np.isfinite(validation)]]
    return float(max(highest)) * 1.15


def _branch(run: Run) -> float | None:
    """Share of the AdamW phase after which the SWAG phase starts, if the configuration says it."""
    start = run.metrics.get("chosen", {}).get("start", run.settings.get("swag", {}).get("start"))
    epochs = run.settings.get("training", {}).get("epochs")
    return start / epochs if isinstance(start, int) and isinstance(epochs, int) and epochs > 0 else None


def _temperature(run: Run) -> str:
    value = run.metrics.get("temperature", [])
    return ", ".join(f"{t:.2f}" for t in (value if isinstance(value, list) else [value]))
