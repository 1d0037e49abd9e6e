"""Commands of the studies whose cells are data set, model and seed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from . import screen
from .runs import written_report
from .studies import Out, Resume, study_app

__all__ = ["decay", "images", "imbalance", "linear", "links", "population", "study_app"]

Config = Annotated[Path | None, typer.Option("--config", help="A TOML file; without one the packaged sets.")]
Seeds = Annotated[int | None, typer.Option(help="How many seeds, from 0 \\[default: 5].")]
Jobs = Annotated[int | None, typer.Option(help="Processes, one thread each \\[default: one a core].")]


@study_app.command()
def images(
    config: Config = None,
    sets: Annotated[str | None, typer.Option(help="Such as mnist,digits.")] = None,
    networks: Annotated[str | None, typer.Option(help="Such as cnn,vgg,preresnet.")] = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    out_folder: Out = None,
    resume: Resume = False,
    as_json: screen.Json = False,
) -> None:
    """Compare SGD, SWA, EMA, LAWA, FGE, Snapshot ensembles, SWAG, MultiSWAG and ASWA on images."""
    from ..studies import images as study

    given = {"data.sets": _words(sets), "networks.names": _words(networks), "training.seeds": _range(seeds)}
    _run(study, config, given, "images", jobs, out_folder, resume, as_json)


@study_app.command()
def links(
    config: Config = None,
    graphs: Annotated[str | None, typer.Option(help="Such as umls,kinships,nations.")] = None,
    models: Annotated[str | None, typer.Option(help="Scoring functions, such as distmult,complex.")] = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    out_folder: Out = None,
    resume: Resume = False,
    as_json: screen.Json = False,
) -> None:
    """Compare SWA, ASWA and EMA in link prediction and multi-hop queries on knowledge graphs."""
    from ..studies import links as study

    given = {"data.graphs": _words(graphs), "model.names": _words(models), "training.seeds": _range(seeds)}
    _run(study, config, given, "links", jobs, out_folder, resume, as_json)


@study_app.command()
def decay(
    config: Config = None,
    models: Annotated[str | None, typer.Option(help="Such as small,medium.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, from 0 \\[default: 8].")] = None,
    jobs: Jobs = None,
    out_folder: Out = None,
    resume: Resume = False,
    as_json: screen.Json = False,
) -> None:
    """Compare decays of the rate with averages of a run that keeps it, for a small language model."""
    from ..studies import decay as study

    given = {"model.names": _words(models), "training.seeds": _range(seeds)}
    _run(study, config, given, "decay", jobs, out_folder, resume, as_json)


@study_app.command()
def linear(
    config: Config = None,
    sets: Annotated[str | None, typer.Option(help="Such as r8,synthetic.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many partitionings, from 0 \\[default: 5].")] = None,
    jobs: Jobs = None,
    out_folder: Out = None,
    resume: Resume = False,
    as_json: screen.Json = False,
) -> None:
    """Compare averages and merges of sparse linear models, OWA and ACOWA among them, over partitionings."""
    from ..studies import linear as study

    given = {"data.sets": _words(sets), "training.seeds": _range(seeds)}
    _run(study, config, given, "linear", jobs, out_folder, resume, as_json)


@study_app.command()
def population(
    config: Config = None,
    sets: Annotated[str | None, typer.Option(help="Such as mnist,digits.")] = None,
    networks: Annotated[str | None, typer.Option(help="Such as cnn,vgg,preresnet.")] = None,
    members: Annotated[str | None, typer.Option(help="Members of a population, such as 3,5.")] = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    out_folder: Out = None,
    resume: Resume = False,
    as_json: screen.Json = False,
) -> None:
    """Compare PAPA, DART, WASH, IMWA and local SGD with independent networks, at equal cost, on images."""
    from ..studies import population as study

    counts = _words(members)
    if counts is not None and not all(word.isdecimal() for word in counts):
        raise ValueError(f"--members must be whole numbers such as 3,5, got {members!r}")
    given = {
        "data.sets": _words(sets),
        "networks.names": _words(networks),
        "networks.members": None if counts is None else tuple(map(int, counts)),
        "training.seeds": _range(seeds),
    }
    _run(study, config, given, "population", jobs, out_folder, resume, as_json)


@study_app.command()
def imbalance(
    config: Config = None,
    sets: Annotated[str | None, typer.Option(help="Images with a tail made for them, such as mnist,digits.")] = None,
    texts: Annotated[str | None, typer.Option(help="Texts with their own tail: r52.")] = None,
    semi: Annotated[str | None, typer.Option(help="Images with few labels, such as digits.")] = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    out_folder: Out = None,
    resume: Resume = False,
    as_json: screen.Json = False,
) -> None:
    """Compare IMWA with one network, its EMA and one average, at equal cost, where few classes have most examples."""
    from ..studies import imbalance as study

    given = {
        "data.images": _words(sets),
        "data.texts": _words(texts),
        "semi.images": _words(semi),
        "training.seeds": _range(seeds),
    }
    _run(study, config, given, "imbalance", jobs, out_folder, resume, as_json)


def _run(
    study: Any,
    config: Path | None,
    given: Mapping[str, tuple[Any, ...] | None],
    name: str,
    jobs: int | None,
    out_folder: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Run the study of a package `study`, show its tables, and write its report."""
    from ..studies.grid import run_grid
    from ..studies.runs.folder import read_json

    asked = study.read_config(config) if config else study.from_mapping({})
    asked = _with(asked, given)
    folder = out_folder or Path("runs") / (config.stem if config else name)
    # Before a run folder is begun: data that are not there are asked for by name.
    getattr(study, "check_data", lambda asked: None)(asked)
    screen.study_goes_on(folder)
    with screen.bars() as bars:
        metrics = run_grid(
            asked,
            study.KIND,
            study.cells(asked),
            study.run_cell,
            folder,
            build=study.from_mapping,
            jobs=(os.cpu_count() or 1) if jobs is None else jobs,
            resume=resume,
            progress=bars,
        )
    page = written_report(folder)
    if as_json:
        screen.print_json({"folder": str(folder), **metrics})
        return
    for data in metrics["table"]:
        screen.show(_table(study.KIND, metrics, data))
    screen.say(metrics["verdict"])
    timings = read_json(folder / "timings.json")
    screen.say(f"The cells took {timings['cells_seconds'] / 60:.1f} minutes, on one thread each.")
    shown = f"open {page}" if page else "no report (pip install 'lowland[plot]', then `lowland report`)"
    screen.say(f"Next: {shown}; run other data and models with `lowland study {name} --config FILE`.")


def _with(study: Any, given: Mapping[str, tuple[Any, ...] | None]) -> Any:
    """The study with what options say in place of its own settings."""
    for place, value in given.items():
        if value is not None:
            section, key = place.split(".")
            changed = dataclasses.replace(getattr(study, section), **{key: value})
            study = dataclasses.replace(study, **{section: changed})
    return study


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def _range(count: int | None) -> tuple[int, ...] | None:
    if count is not None and count < 1:
        raise ValueError(f"--seeds must be at least 1, got {count}")
    return None if count is None else tuple(range(count))


def _table(kind: Any, metrics: dict[str, Any], data: str) -> Table:
    """The main metric on the test part of one data set: methods down, models across."""
    metric, several, models = kind.main, len(metrics["seeds"]) > 1, metrics["table"][data]
    table = Table(
        title=f"{data}: {metric.label} on test {kind.things}, {len(metrics['seeds'])} seed{'s' * several}",
        caption="mean ± standard deviation over seeds; bold: the best mean" if several else "bold: the best",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("method", no_wrap=True)
    for model in models:
        table.add_column(escape(model), justify="right", no_wrap=True)
    pick = max if metric.higher else min
    columns = [{m: own[m]["test"][metric.key] for m in kind.methods} for own in models.values()]
    best = [pick(cell["mean"] for cell in column.values()) for column in columns]
    for method in kind.methods:
        cells = []
        for column, top in zip(columns, best, strict=True):
            mean, sd = column[method]["mean"], column[method]["sd"]
            shown = f"[bold]{mean:.3f}[/]" if mean == top else f"{mean:.3f}"
            cells.append(f"{shown} [dim]± {sd:.3f}[/]" if several else shown)
        table.add_row(method, *cells)
    return table
