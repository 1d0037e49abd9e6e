"""Commands on the run folder of a study: predict with it, and write its page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from . import screen

if TYPE_CHECKING:
    from ..studies.text.config import TextStudy
    from ..studies.text.review import Reviewed


def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a finished study.")],
    input_file: Annotated[Path, typer.Option("--input", help="CSV, Parquet or JSONL.")],
    column: Annotated[
        str | None, typer.Option(help="The column with the texts \\[default: that of the study].")
    ] = None,
    risk: Annotated[float, typer.Option(help="Share of wrong answers you accept where no person looks.")] = 0.05,
    method: Annotated[
        str | None, typer.Option(help="A row of the study's table, such as SWA \\[default: what the study ships].")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="CSV to write \\[default: beside the input].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: screen.Json = False,
) -> None:
    """Classify new texts by the method that a study ships, and say which of them a person should see."""
    from ..studies.tables import looked_at, read_table
    from ..studies.text.datasets import texts_of
    from ..studies.text.review import check_run, review_texts, sentence, write_reviewed

    study = check_run(run)
    target = output or input_file.with_name(f"{input_file.stem}.predictions.csv")
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: name a file in a folder that exists")
    if target.resolve() == input_file.resolve():
        raise ValueError(f"--output {target} is the input: name another file")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} is there: name another file with --output, or replace it with --overwrite")
    written = looked_at(input_file)
    name = column or _column(study)
    try:
        table = read_table(input_file, [name], written)
    except ValueError as error:
        whose = f" (the study's column is {name!r}; --column names another)" if column is None else ""
        raise ValueError(f"{error}{whose}") from None
    texts = texts_of(table, name)
    with screen.bars() as bars:
        reviewed = review_texts(run, texts, risk, bars, method)
    kept = {other: values for other, values in table.columns.items() if other != name}
    write_reviewed(target, reviewed, texts, kept)
    notes = ([f"the file {input_file.name} was read with {written}"] if str(written) else []) + reviewed.notes()
    if as_json:
        screen.print_json(_plain(reviewed, target, notes))
        return
    screen.show(_classes(reviewed))
    for note in notes:
        screen.say(f"{note[:1].upper()}{note[1:]}.")
    screen.say(f"{reviewed.method} answered.")
    screen.say(
        f"{sentence(reviewed)}. Wrote {target}: sort it by `entropy` and look at the rows with review = yes first."
    )


def _column(study: TextStudy) -> str:
    return "text" if study.data.name else study.data.text


def _classes(reviewed: Reviewed) -> Table:
    table = Table(title=screen.counted(len(reviewed.probs), "text"))
    for heading in ("class", "texts", "mean confidence", "to a person"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    chosen, confidence = reviewed.probs.argmax(1), reviewed.probs.amax(1)
    for index, name in enumerate(reviewed.names):
        own = chosen == index
        mean = f"{float(confidence[own].mean()):.3f}" if bool(own.any()) else "-"
        table.add_row(escape(name), str(int(own.sum())), mean, str(int((own & reviewed.review).sum())))
    return table


def _plain(reviewed: Reviewed, target: Path, notes: list[str]) -> dict[str, Any]:
    number, answered, wrong = reviewed.checked
    counted = Counter(reviewed.names[index] for index in reviewed.probs.argmax(1).tolist())
    return {
        "method": reviewed.method,
        "texts": len(reviewed.probs),
        "review": int(reviewed.review.sum()),
        "classes": {name: counted[name] for name in reviewed.names},
        "risk": reviewed.risk,
        "threshold": None if reviewed.bound is None else reviewed.threshold,
        "validation": {"texts": number, "answered": answered, "wrong": wrong, "risk_bound": reviewed.bound},
        "cut": {"texts": reviewed.cut[0], "max_length": reviewed.cut[1]},
        "notes": notes,
        "output": str(target),
    }


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
    from ..studies.report import write

    try:
        return write(folder)
    except ImportError:  # of the extra, which only the writing needs
        return None
