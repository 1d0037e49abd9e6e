"""Commands on the run folder of a study: predict with it, and write its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from . import screen


def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a finished study.")],
    input_file: Annotated[Path, typer.Option("--input", help="CSV, Parquet or JSONL.")],
    column: Annotated[str, typer.Option(help="The column with the texts.")] = "text",
    risk: Annotated[float, typer.Option(help="Share of wrong answers you accept where no person looks.")] = 0.05,
    output: Annotated[Path | None, typer.Option(help="CSV to write \\[default: beside the input].")] = None,
    as_json: screen.Json = False,
) -> None:
    """Classify new texts by a study's MultiSWAG, and say which of them a person should see."""
    from ..studies.text.datasets import read_texts
    from ..studies.text.review import review_texts, sentence, write_reviewed

    texts = read_texts(input_file, column)
    target = output or input_file.with_name(f"{input_file.stem}.predictions.csv")
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: name a file in a folder that exists")
    if target.resolve() == input_file.resolve():
        raise ValueError(f"--output {target} is the input: name another file")
    with screen.bars() as bars:
        reviewed = review_texts(run, texts, risk, bars)
    write_reviewed(target, reviewed, texts)
    if as_json:
        screen.print_json({"texts": len(texts), "review": int(reviewed.review.sum()), "output": str(target)})
        return
    table = Table(title=f"{len(texts)} texts")
    for heading in ("class", "texts", "mean confidence", "to a person"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    chosen, confidence = reviewed.probs.argmax(1), reviewed.probs.amax(1)
    for index, name in enumerate(reviewed.names):
        own = chosen == index
        mean = f"{float(confidence[own].mean()):.3f}" if bool(own.any()) else "-"
        table.add_row(escape(name), str(int(own.sum())), mean, str(int((own & reviewed.review).sum())))
    screen.out.print(table)
    screen.say(
        f"{sentence(reviewed)}. Wrote {target}: sort it by `entropy` and look at the rows with review = yes first."
    )


def report(run: Annotated[Path, typer.Argument(help="The folder of a finished study.")]) -> None:
    """Write the report of a finished study anew."""
    if not (run / "config.toml").is_file():
        raise ValueError(f"{run} holds no study (no config.toml): name the folder that a study wrote")
    path = written_report(run)
    if path is None:
        raise ImportError("reports need matplotlib and Jinja2: pip install 'lowland[plot]'")
    screen.say(f"Wrote {path}: open it in a browser.")


def written_report(folder: Path) -> Path | None:
    """Write the report of a run folder; None where the packages for it are missing."""
    from ..studies.report.write import write

    try:
        return write(folder)
    except ImportError:  # of the extra, which only the writing needs
        return None
