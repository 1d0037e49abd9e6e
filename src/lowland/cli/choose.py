"""The command that chooses the average of a run to ship: candidates streamed, scored once, and the winner written."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import screen
from .asking import Asking, Soup, merge_of
from .checkpoints import Card, Drop, Inputs, Keep, Key, NoCheck, Out, Restart, form_of, models_beside, opened_inputs
from .chosen import plain, record, record_path, sentences, table
from .recipes import numbers, steps_of
from .remote import local
from .scoring import forget_finished

if TYPE_CHECKING:
    from ..checkpoints import Merge
    from ..retroactive import Choice


def choose(
    inputs: Inputs,
    out: Out,
    score: Annotated[
        str, typer.Option(help="Command to run on a candidate, such as 'python eval.py {}'; its last number counts.")
    ],
    examples: Annotated[
        bool, typer.Option("--examples", help="The command prints a number for each validation example, one a line.")
    ] = False,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="The score is a loss.")] = False,
    shapes: Annotated[
        str | None, typer.Option(help="Decays, such as linear,minus-sqrt,cosine,(1-x)^2 \\[default: these].")
    ] = None,
    windows: Annotated[
        str | None, typer.Option(help="Numbers of checkpoints, such as 5,10,20 \\[default: searched].")
    ] = None,
    blends: Annotated[
        str | None, typer.Option(help="Shares of the way to the average \\[default: 0.5,0.7,0.85,1,1.15].")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Patterns of names with a blend of their own: '*embed*,*.attn.*'.")
    ] = None,
    soup: Annotated[bool, typer.Option("--soup", help="Try the greedy soup too.")] = False,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Score every candidate.")] = False,
    form: Annotated[
        str | None, typer.Option("--as", help="dcp: candidates and winner as torch.distributed.checkpoint loads them.")
    ] = None,
    card: Card = False,
    figure: Annotated[Path | None, typer.Option(help="An SVG file of score against window.")] = None,
    key: Key = None,
    keep: Keep = None,
    drop: Drop = None,
    no_check_finite: NoCheck = False,
    restart: Restart = False,
    as_json: screen.Json = False,
) -> None:
    """Choose the average of a run's checkpoints that scores best, say what it is worth, and write it."""
    from ..checkpoints import expand, plan_average
    from ..checkpoints.layout import is_file_name
    from ..files.replacing import alone, write_bytes
    from ..retroactive import BLENDS, SHAPES
    from ..retroactive import choose as search

    forget_finished(out, "choose")
    inputs = local(inputs)
    paths = expand(inputs)
    opened = opened_inputs(paths, key, keep, drop)
    steps = steps_of(paths) or [float(place) for place in range(1, len(paths) + 1)]
    plan_of = partial(
        plan_average,
        check_finite=not no_check_finite,
        form=form_of(form),
        with_card=card,
        also_left=models_beside(inputs),
    )
    plan_of(opened, out, merge_of(None, steps))  # checked as a whole before anything is scored
    asked = Asking(score, out, opened, steps, examples, lower_is_better, not no_check_finite, restart, form_of(form))
    with alone(asked.folder, out):
        found = search(
            steps,
            asked,
            shapes=_words(shapes) or SHAPES,
            windows=[int(n) for n in _numbers("--windows", windows)],
            blends=_numbers("--blends", blends) or BLENDS,
            groups=_words(groups),
            exhaustive=exhaustive,
        )
        made = asked.soup(found) if soup else None
        if figure is not None:
            from ..figures import write_choice

            write_choice(found, figure)
        if made is not None and made.taken:
            from .. import soup as soups

            places, title = list(made.members), f"greedy soup of {len(made.members)}"
            merge: Merge = soups.uniform
        else:
            winner = found.winner.candidate
            places, title = asked.places(winner), str(winner)
            merge = merge_of(winner, [steps[place] for place in places])
        told, words = plain(found, asked, made), sentences(found, asked, made)
        single = is_file_name(out)
        if single:
            write_bytes(record_path(out, single=True), record(asked, told).encode())
        final = plan_of(
            [opened[place] for place in places],
            out,
            merge,
            notes=[f"Chosen by `lowland choose` as {title}, score {_score(found, asked, made):.6g}.", *words],
            also_written={} if single else {record_path(out, single=False).name: record(asked, told)},
        )
        with screen.byte_bar("writing the winner", final.bytes_read + final.bytes_written) as report:
            final.run(report, restart=True)
        asked.forget()
    if as_json:
        screen.print_json({"output": str(out), "chosen": title, "runs": asked.runs, **told})
        return
    screen.show(table(found, asked, made))
    for line in [*words, f"The score command ran {screen.counted(asked.runs, 'time')}."]:
        screen.say(line)
    screen.say(f"Wrote {title} to {out}; its scores are in {record_path(out, single=single)}.")


def _score(found: Choice, asked: Asking, soup: Soup | None) -> float:
    return asked.sign * (soup.score if soup is not None and soup.taken else found.winner.score)


def _words(text: str | None) -> list[str]:
    # A comma inside of brackets belongs to a pattern.
    return [word.strip() for word in re.split(r",(?![^\[(]*[\])])", text or "") if word.strip()]


def _numbers(option: str, text: str | None) -> list[float]:
    return [] if text is None else numbers(option, text)
