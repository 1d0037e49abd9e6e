"""The commands `lowland linear fit|predict|path`: L1 logistic regression on a folder of shards."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from . import screen

app = typer.Typer(no_args_is_help=True, help="L1 logistic regression on shards, in one or two rounds.")

Folder = Annotated[Path, typer.Argument(help="A folder of .parquet, .npz or .svm shards.")]
Features = Annotated[int | None, typer.Option(help="Columns, where the shards do not say.")]
Names = Annotated[Path | None, typer.Option(help="A file with a feature's name in each line.")]
Words = Annotated[Path | None, typer.Option(help="A file with a word in each line: the columns of `tokens`.")]
Zero = Annotated[bool, typer.Option("--zero-based", help="Places in svmlight files begin at 0.")]
Jobs = Annotated[int, typer.Option(help="Processes; each holds one shard.")]
Scheduler = Annotated[str | None, typer.Option(help="A Dask scheduler, such as tcp://10.0.0.1:8786.")]
Seed = Annotated[int, typer.Option(help="Of samples and folds.")]


@app.command()
def fit(
    shards: Folder,
    out_file: Annotated[Path, typer.Option("--out", help="The model, a .safetensors file.")],
    method: Annotated[str, typer.Option(help="acowa, owa, naive, debiased, csl or proxcsl.")] = "acowa",
    lambda_: Annotated[float, typer.Option("--lambda", help="The penalty, beside the mean loss.")] = 1e-3,
    features: Features = None,
    names: Names = None,
    vocabulary: Words = None,
    zero_based: Zero = False,
    balanced: Annotated[bool, typer.Option("--balanced", help="Give classes the same weight.")] = False,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    as_json: screen.Json = False,
) -> None:
    """Fit a model; a shard is a machine."""
    from ..files.replacing import Replacing
    from ..linear import to_bytes
    from ..studies.linear.following import METHODS

    known = {name.lower(): cls for name, cls in METHODS.items()}
    if method not in known:
        raise ValueError(f"--method must be one of {', '.join(known)}, got {method!r}")
    if not out_file.parent.is_dir():
        raise OSError(f"cannot write {out_file}: the folder {out_file.parent} does not exist; make it first")
    words = _lines(vocabulary)
    called = _lines(names) if names is not None else words
    model = known[method](
        lambda_, class_weight="balanced" if balanced else None, n_jobs=jobs if jobs > 1 else None, random_state=seed
    )
    with _client(scheduler) as client, _progress() as told:
        model.fit_partitions(_holders(shards, features, zero_based, words), client=client, progress=told)
    content = to_bytes(model, called)
    with Replacing(out_file, len(content)) as file:
        file.write(content)
    found = {
        "model": str(out_file),
        "method": method,
        "lambda": lambda_,
        "classes": model.classes_.tolist(),
        "features": model.n_features_in_,
        "non-zeros": len(model.support_),
        "rounds": model.n_rounds_,
        "gap": model.duality_gap_,
        "bytes": model.bytes_sent_,
    }
    if as_json:
        screen.print_json(found)
        return
    sent = model.bytes_sent_
    screen.say(
        f"{len(model.support_)} of {model.n_features_in_} features have a coefficient; the largest duality gap of a "
        f"local fit is {model.duality_gap_:.1g}. "
        f"{screen.size(sent['up'])} went up and {screen.size(sent['down'])} down."
    )
    screen.say(f"Wrote {out_file}. Next: `lowland linear predict {out_file} SHARDS --out predictions.csv`.")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="What `lowland linear fit` wrote.")],
    shards: Folder,
    out_file: Annotated[Path, typer.Option("--out", help="A .csv file: shard, row, class, probability.")],
    vocabulary: Words = None,
    zero_based: Zero = False,
    as_json: screen.Json = False,
) -> None:
    """Predict the rows of shards, one shard in memory at a time."""
    from ..files.replacing import Replacing
    from ..linear import from_bytes
    from ..linear.partitions import open_part

    if out_file.resolve() == model.resolve():
        raise ValueError(f"--out {out_file} is the model: name another file")
    fitted, _ = from_bytes(model.read_bytes())
    right, rows = 0, 0
    holders = _holders(shards, fitted.n_features_in_, zero_based, _lines(vocabulary))
    with Replacing(out_file, 0) as file, io.TextIOWrapper(io.BufferedWriter(_Open(file)), newline="") as text:
        table = csv.writer(text)
        table.writerow(["shard", "row", "class", "probability"])
        for number, shard in enumerate(holders):
            part = open_part(shard, number)
            said, chances = fitted.predict(part.X), fitted.predict_proba(part.X).max(axis=1)
            name = Path(shard.path).name
            for row, (label, chance) in enumerate(zip(said.tolist(), chances.tolist(), strict=True)):
                table.writerow([name, row, label, f"{chance:.6g}"])
            right, rows = right + int((said == part.y).sum()), rows + len(said)
    if as_json:
        screen.print_json({"output": str(out_file), "rows": rows, "accuracy": right / rows})
        return
    screen.say(f"{rows} rows; {right / rows:.1%} have the label that their shard gives. Wrote {out_file}.")


@app.command()
def path(
    shards: Folder,
    test: Annotated[Path | None, typer.Option(help="Shards to judge on \\[default: the last one, left out].")] = None,
    lambdas: Annotated[str, typer.Option(help="FROM:TO:COUNT, by equal factors.")] = "1e-1:1e-4:7",
    methods: Annotated[str, typer.Option(help="Such as naive,OWA,ACOWA.")] = "naive,debiased,CSL,OWA,ACOWA",
    full: Annotated[bool, typer.Option("--full", help="Also fit all rows at once, in memory.")] = False,
    features: Features = None,
    vocabulary: Words = None,
    zero_based: Zero = False,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    out_folder: Annotated[Path, typer.Option("--out", help="For path.json, path.svg and report.html.")] = Path(
        "runs/linear-path"
    ),
    as_json: screen.Json = False,
) -> None:
    """Follow a path of lambdas with every method: accuracy against non-zeros."""
    from ..files.replacing import alone
    from ..studies.linear.following import FULL, follow
    from ..studies.runs.folder import write_json

    steps = _steps(lambdas)
    words = _lines(vocabulary)
    holders = _holders(shards, features, zero_based, words)
    judged = _holders(test, features, zero_based, words) if test is not None else holders[-1:]
    holders = holders if test is not None else holders[:-1]
    if not holders:
        raise ValueError(f"{shards} holds one shard: one more to judge on is needed, or --test")
    chosen = [name.strip() for name in methods.split(",") if name.strip()] + [FULL] * full
    with _client(scheduler) as client, screen.bars() as bars:
        bars.plan(len(chosen))

        def told(name: str) -> None:
            bars.begin(name, 1)
            bars.end(f"{name}: fitting")

        settings: dict[str, Any] = {"random_state": seed, "n_jobs": jobs if jobs > 1 else None}
        found = follow(holders, {"test": judged}, steps, chosen, client=client, told=told, **settings)
    with alone(out_folder, out_folder):
        write_json(out_folder / "path.json", found)
        try:
            from ..studies.report.linear_path import write_path

            page: Path | None = write_path(found, out_folder)
        except ImportError:  # of the extra, which only the writing needs
            page = None
    if as_json:
        screen.print_json({"folder": str(out_folder), "paths": found})
        return
    table = Table(title="accuracy on rows that no machine had, and non-zeros in brackets")
    table.add_column("lambda")
    for name in found:
        table.add_column(name, justify="right")
    for place, step in enumerate(steps):
        cells = [f"{rows[place]['test']['accuracy']:.3f} ({rows[place]['non-zeros']})" for rows in found.values()]
        table.add_row(f"{step:.3g}", *cells)
    screen.show(table)
    shown = f"open {page}" if page else "pip install 'lowland[plot]' for the figure and the page"
    screen.say(f"Next: {shown}; fit one with `lowland linear fit {shards} --lambda ... --out model.safetensors`.")


class _Open(io.RawIOBase):
    """A file that others may close and that stays open: whoever replaces with it flushes it."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        return self.file.write(content)


def _holders(folder: Path, features: int | None, zero_based: bool, words: Sequence[str] | None) -> list[Any]:
    from ..linear import shards_in

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: name one that holds .parquet, .npz or .svm shards")
    return list(shards_in(folder, features=features, zero_based=zero_based, vocabulary=words))


def _lines(file: Path | None) -> list[str] | None:
    return None if file is None else file.read_text(encoding="utf-8").splitlines()


def _steps(asked: str) -> list[float]:
    try:
        first, last, count = asked.split(":")
        start, end, number = float(first), float(last), int(count)
        if not (start > 0 and end > 0 and number > 1):
            raise ValueError
    except ValueError:
        raise ValueError(f"--lambdas must be FROM:TO:COUNT, such as 1e-1:1e-4:7, got {asked!r}") from None
    return [float(start * (end / start) ** (k / (number - 1))) for k in range(number)]


@contextmanager
def _client(address: str | None) -> Iterator[Any]:
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--scheduler needs Dask: pip install 'lowland[linear]'") from error
    try:
        client = Client(address, timeout=10)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        yield client


@contextmanager
def _progress() -> Iterator[Any]:
    with screen.bars() as bars:

        def told(stage: str, done: int, count: int) -> None:
            if done == 1:
                bars.begin(stage, count)
            bars.advance(1)
            if done == count:
                bars.end(f"{stage}: {count} of {count}")

        bars.plan(0)
        yield told
