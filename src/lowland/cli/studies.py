"""Commands of the studies: run them, report on them, classify by one, and the sets that they can use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from . import screen
from .runs import written_report

study_app = typer.Typer(no_args_is_help=True, help="Run a whole experiment from a configuration file.")

Out = Annotated[Path | None, typer.Option("--out", help="The run folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what the run folder holds.")]


def demo(
    full: Annotated[bool, typer.Option("--full", help="15 members, every text: an hour or more on two cores.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split and, through it, of all members.")] = 0,
    members: Annotated[int | None, typer.Option(help="How many models \\[default: 3, with --full 15].")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of training \\[default: 8, with --full 2].")] = None,
    out_folder: Out = None,
    resume: Resume = False,
    as_json: screen.Json = False,
) -> None:
    """Fine-tune MiniLM on packaged comments and compare eight methods, MultiSWAG among them."""
    from ..studies.text.config import demo as configured

    name = ("full" if full else "demo") + (f"-{seed}" if seed else "")
    _run_study(
        configured(full=full, seed=seed, members=members, epochs=epochs),
        out_folder or Path("runs") / name,
        resume,
        as_json,
    )


@study_app.command()
def text(
    config: Annotated[Path, typer.Option("--config", help="A TOML file.")],
    out_folder: Out = None,
    resume: Resume = False,
    as_json: screen.Json = False,
) -> None:
    """Run the text study on your own texts and encoder."""
    from ..studies.text.config import read_config

    _run_study(read_config(config), out_folder or Path("runs") / config.stem, resume, as_json)


@study_app.command()
def choice(
    config: Annotated[Path | None, typer.Option("--config", help="A TOML file; without one the packaged sets.")] = None,
    kind: Annotated[str, typer.Option(help='Without --config: "pairs" (MiniLM) or "letters" (SmolLM2).')] = "pairs",
    seed: Annotated[int, typer.Option(help="Without --config: of the split and of all members.")] = 0,
    members: Annotated[int, typer.Option(help="Without --config: how many models.")] = 3,
    out_folder: Out = None,
    resume: Resume = False,
    as_json: screen.Json = False,
) -> None:
    """Compare nine methods on multiple-choice questions, and on questions of other kinds."""
    from ..studies.choice import read_config, run_choice_study
    from ..studies.choice.config import small

    study = read_config(config) if config else small(kind, seed=seed, members=members)
    name = config.stem if config else f"choice-{kind}" + (f"-{seed}" if seed else "")
    _run_study(study, out_folder or Path("runs") / name, resume, as_json, run_choice_study)


def _run_study(study: Any, folder: Path, resume: bool, as_json: bool, run: Callable[..., Any] | None = None) -> None:
    from ..studies.runs.folder import read_json
    from ..studies.text.study import run_text_study

    screen.study_goes_on(folder)
    with screen.bars() as bars:
        metrics = (run or run_text_study)(study, folder, resume=resume, progress=bars)
    page = written_report(folder)
    if as_json:
        screen.print_json({"folder": str(folder), **metrics})
        return
    timings = read_json(folder / "timings.json")
    things = "texts" if run is None else "questions"
    screen.show(_table(metrics, len(study.training.seeds), study.evaluation.level, screen.out.width, things))
    if "shifted" in metrics:
        screen.show(_shifted(metrics))
    for note in metrics.get("notes", []):
        screen.say(f"{note[:1].upper()}{note[1:]}.")
    screen.say(metrics["verdict"])
    cost = timings["sampling"]
    screen.say(
        f"Took {timings['total_seconds'] / 60:.1f} minutes, {timings['peak_memory_mb']:.0f} MB at most; of that "
        f"{cost['seconds']:.0f} s for {cost['draws']} draws of SWAG "
        f"({cost['seconds_per_draw_per_1000']:.1f} s a draw and 1,000 {things})."
    )
    shown = f"open {page}" if page else "no report (pip install 'lowland[plot]', then `lowland report`)"
    own = f"classify your own texts with `lowland predict {folder} --input FILE`"
    if run is not None:
        own = "ask your own questions with a configuration: `lowland study choice --config FILE`"
    screen.say(f"Next: {shown}; {own}.")


def _shifted(metrics: dict[str, Any]) -> Table:
    """Metrics on sets of another kind, and how well entropy tells them from the test questions."""
    table = Table(
        title="questions of another kind",
        caption="AUROC of telling them from the test questions by entropy; 0.5 is chance",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("set, method", no_wrap=True)
    for head in ("accuracy", "NLL", "ECE", "AUROC"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, part in metrics["shifted"].items():
        for method, values in part["methods"].items():
            told = part["detection"].get(method, {}).get("entropy", {}).get("auroc")
            cells = [f"{values[metric]['value']:.3f}" for metric in ("accuracy", "nll", "ece")]
            table.add_row(f"{escape(name)}, {method}", *cells, "" if told is None else f"{told:.3f}")
    return table


def _table(metrics: dict[str, Any], members: int, level: float, width: int, things: str = "texts") -> Table:
    shown = ("precision", "recall", "f1", "accuracy", "nll", "ece", "brier")
    wide = width >= 110
    heads = ("macro P", "macro R", "macro F1", "accuracy", "NLL", "ECE", "Brier")
    # On a narrow screen the ends of an interval stand below each other.
    heads = heads if wide else ("P", "R", "F1", "acc.", "NLL", "ECE", "Brier")
    between = "-" if wide else "\n"
    trained = f"{metrics['n_train']} training, {metrics['n_test']} test {things}"
    table = Table(
        title=f"{screen.counted(members, 'member')}, {trained}",
        caption=f"{'' if wide else 'P, R, F1: macro averages; '}below each value its {level:.0%} bootstrap interval "
        f"over test {things}; rows of one model are means over members",
        box=box.SIMPLE_HEAD,
        padding=(0, 1) if wide else (0, 1, 0, 0),
        show_lines=not wide,
    )
    table.add_column("method", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for method, values in metrics["methods"].items():
        cells = (
            f"{values[m]['value']:.3f}\n[dim]{_short(values[m]['low'])}{between}{_short(values[m]['high'])}[/]"
            for m in shown
        )
        table.add_row(method, *cells, style="bold" if method == "MultiSWAG" else "")
    return table


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
