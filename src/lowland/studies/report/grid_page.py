"""The page of a grid study: tables and figures from its metrics.json."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from . import grids, templates
from .run import REMEDY
from .tables import flat

_AXES = {
    "start": "start of averaging, {unit}",
    "every": "epochs between two models averaged",
    "rate": "learning rate",
    "rank": "K: rank of SWAG, window of LAWA",
}


@dataclass(frozen=True)
class ShownMetric:
    """A metric as metrics.json names it: the page reads files, no code of a study."""

    key: str
    label: str
    higher: bool


@dataclass(frozen=True)
class ShownKind:
    """What the study says of itself in metrics.json."""

    name: str
    things: str
    metrics: list[ShownMetric]
    methods: list[str]
    meanings: Mapping[str, str]
    seeded: str
    parts: Mapping[str, str]

    @property
    def main(self) -> ShownMetric:
        """The metric of curves, of the generalisation gap and of the sensitivity."""
        return self.metrics[0]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "ShownKind":
        """Read it from what `Kind.plain` wrote."""
        metrics = [ShownMetric(one["key"], one["label"], one["higher"]) for one in given["metrics"]]
        plain = (given[key] for key in ("methods", "meanings", "seeded", "parts"))
        return cls(given["name"], given["things"], metrics, *plain)


_Gaps = tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]  # pairs; of each method a value and its spread


@dataclass(frozen=True)
class Cells:
    """One row of a table: a method and, for each column, mean ± sd and whether it is the best of its column."""

    method: str
    values: list[tuple[str, bool]]


def is_grid(folder: Path) -> bool:
    """Whether a run folder holds a grid study; a broken one is left to `render_grid`."""
    path = folder / "metrics.json"
    if not path.is_file():
        return (folder / "cells").is_dir()
    try:
        return "study" in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, RecursionError):
        return (folder / "cells").is_dir()


def render_grid(folder: Path) -> str:
    """The whole page as HTML text.

    Raises `FileNotFoundError` for a missing file and `ValueError` for a broken one, naming it.
    """
    metrics, timings, versions = (_json(folder / f"{name}.json") for name in ("metrics", "timings", "versions"))
    config = _text(folder / "config.toml")
    for name, content in (("timings", timings), ("versions", versions)):
        if not isinstance(content, dict):
            raise ValueError(f"{folder / f'{name}.json'} is no table of names: it is of another version; {REMEDY}")
    seconds = timings.get("cells_seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError(
            f"{folder / 'timings.json'} has no number cells_seconds, got {seconds!r}: it is cut off or of another "
            f"version; {REMEDY}"
        )
    try:
        return _render(metrics, timings, versions, config)
    except ImportError:
        raise
    except Exception as error:  # whatever a foreign file makes Jinja2, numpy and matplotlib raise
        raise ValueError(
            f"{folder / 'metrics.json'} lacks what the report needs ({type(error).__name__}: {error}): "
            f"it is cut off or of another version; {REMEDY}"
        ) from None


def _render(metrics: Any, timings: Any, versions: Any, config: str) -> str:
    kind = ShownKind.of(metrics["kind"])
    sentence, _, scope = metrics["verdict"].rpartition(". Means over ")
    return templates.render(
        "grid.html.j2",
        kind=kind,
        metrics=metrics,
        timings=timings,
        verdict=sentence.split("; "),
        scope=f"Means over {scope}",
        tables=[(data, models, _tables(kind, models)) for data, models in metrics["table"].items()],
        claims=_claims(kind, metrics["claims"]),
        least=_least(len(metrics["claims"]), len(metrics["pairs"])),
        gap_plots=[
            (claim, Markup(grids.gaps_figure(claim, found[kind.main.key], kind.main.label, f"gap{i}")))
            for i, (claim, found) in enumerate(metrics["claims"].items())
        ],
        generalisation=_generalisation(kind, metrics),
        shifted=[(data, rows) for data, models in metrics["table"].items() if (rows := _shifted(kind, models))],
        curve_plots=_curve_plots(kind, metrics),
        sensitivity_plots=_sensitivity_plots(kind, metrics),
        line_plots=_line_plots(metrics),
        lines=_lines(metrics),
        decisions=[
            (f"{data}, {model}", [f"{own[action]['mean']:.1f}" for action in ("first", "hard", "soft", "reject")])
            for data, model, own in _each(metrics["decisions"])
        ],
        seconds=[
            (f"{data}, {model}", f"{own['mean']:.0f} ± {own['sd']:.0f}")
            for data, model, own in _each(metrics["seconds"])
        ],
        versions=list(flat(versions)),
        config=config,
    )  # fmt: skip


def _curve_plots(kind: ShownKind, metrics: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    found = []
    for data, model, own in _each(metrics["curves"]):
        title, name = f"{data}, {model}", f"curve-{data}-{model}"
        if own:
            found.append((title, Markup(grids.curves_figure(own, "test", kind.main.label, name, title))))
    return found


def _sensitivity_plots(kind: ShownKind, metrics: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    found = []
    for data, model, axes in _each(metrics["sensitivity"]):
        for axis, rows in axes.items():
            said, name = _axis(axis, rows), f"sensitivity-{data}-{model}-{axis}"
            title = f"{data}, {model}"
            svg = grids.sensitivity_figure(said, rows, kind.main.label, name, title, factors=axis != "start")
            found.append((f"{title}: {said}", Markup(svg)))
    return found


def _line_plots(metrics: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    return [
        (
            f"{data}, {model}",
            Markup(grids.line_figure(own, "train loss", "test error", f"line-{data}-{model}", f"{data}, {model}")),
        )
        for data, model, own in _each(metrics.get("landscape", {}))
        if own
    ]


def _lines(metrics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Of each pair: where both values are lowest, how far apart, and how long the line is."""
    rows = []
    for data, model, own in _each(metrics.get("landscape", {})):
        if own:
            found = (own["lowest"]["train loss"], own["lowest"]["test error"], own["shift"], own["length"])
            rows.append((f"{data}, {model}", [f"{cell['mean']:.2f} ± {cell['sd']:.2f}" for cell in found]))
    return rows


def _axis(axis: str, rows: Sequence[Mapping[str, Any]]) -> str:
    said = _AXES.get(axis, axis)
    return said.format(unit="% of the budget" if max(row["value"] for row in rows) > 2 else "share of the budget")


def _each(nested: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    return [(data, model, own) for data, models in nested.items() for model, own in models.items()]


def _tables(kind: ShownKind, models: Mapping[str, Any]) -> list[tuple[ShownMetric, list[Cells]]]:
    """One table a metric: methods down, models across."""
    return [
        (
            metric,
            _marked(
                metric.higher,
                {method: [own[method]["test"][metric.key] for own in models.values()] for method in kind.methods},
            ),
        )
        for metric in kind.metrics
    ]


def _marked(higher: bool, rows: Mapping[str, list[Mapping[str, Any]]]) -> list[Cells]:
    """Rows with the best mean of every column marked, ties as they are shown included."""
    columns = list(zip(*([round(cell["mean"], 4) for cell in cells] for cells in rows.values()), strict=True))
    best = [(max if higher else min)(column) for column in columns]
    return [
        Cells(
            method,
            [
                (f"{cell['mean']:.4f} ± {cell['sd']:.4f}", round(cell["mean"], 4) == top)
                for cell, top in zip(cells, best, strict=True)
            ],
        )
        for method, cells in rows.items()
    ]


def _shifted(kind: ShownKind, models: Mapping[str, Any]) -> list[tuple[str, list[str], list[Cells]]]:
    """For every model: the main metric on test data and on every part beside it."""
    found = []
    for model, own in models.items():
        parts = [part for part in own[kind.methods[0]] if part not in ("train", "validation")]
        if parts == ["test"]:
            continue
        rows = {method: [own[method][part][kind.main.key] for part in parts] for method in kind.methods}
        found.append((model, [kind.parts.get(part, part) for part in parts], _marked(kind.main.higher, rows)))
    return found


def _claims(kind: ShownKind, claims: Mapping[str, Any]) -> list[tuple[str, list[dict[str, str]]]]:
    rows = []
    for claim, found in claims.items():
        cells = []
        for metric in kind.metrics:
            own = found[metric.key]
            favours = (own["side"] > 0) == metric.higher
            word = "not told apart" if own["p_holm"] >= 0.05 else "better" if favours else "worse"
            if own["n"] == 1 and own["pairs"][0]["low"] is not None:  # no test over pairs can tell of one: over seeds
                gap = own["pairs"][0]
                told = gap["low"] > 0 or gap["high"] < 0
                word = ("better" if (gap["mean"] > 0) == metric.higher else "worse") if told else "not told apart"
            cells.append(
                {
                    "value": _signed(own["mean"]),
                    "won": f"{own['better']} of {own['n']}",
                    "p": _p(own["p"]),
                    "holm": _p(own["p_holm"]),
                    "word": word,
                }
            )
        rows.append((claim.replace(" - ", " minus "), cells))
    return rows


def _least(claims: int, pairs: int) -> tuple[str, bool]:
    """The smallest p after Holm's correction that so many pairs can give, and whether it lies below 0.05."""
    least = min(1.0, claims * 2.0 ** (1 - pairs))  # all ranks on one side, either one, before the correction
    return _p(least), least < 0.05


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def _generalisation(kind: ShownKind, metrics: Mapping[str, Any]) -> _Gaps:
    pairs = [(data, model) for data, models in metrics["generalisation"].items() for model in models]
    rows = [
        (
            method,
            [
                (_signed(cell["mean"]), f"± {cell['sd']:.4f}")
                for cell in (metrics["generalisation"][data][model][method] for data, model in pairs)
            ],
        )
        for method in kind.methods
    ]
    return [f"{data}, {model}" for data, model in pairs], rows


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is cut off or no file of a run; {REMEDY}") from None


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            tomllib.loads(text)
        return text
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: the report needs it; {REMEDY}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is cut off or no file of a run; {REMEDY}") from None
