"""Commands on checkpoint folders: average, soup, posterior, sample, info."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from . import screen
from .recipes import Asked, tail
from .remote import local

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint, Left, Plan

Inputs = Annotated[list[str], typer.Argument(help="Folders, files, glob patterns, or a run with checkpoint-* in it.")]
Out = Annotated[Path, typer.Option("--out", help="What to write; it must not be there yet.")]
Last = Annotated[int | None, typer.Option("--last", help="Take the last k only.")]
AsGiven = Annotated[bool, typer.Option("--as-given", help="Keep the order given \\[default: by number in the name].")]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16, float16 or float64 \\[default: as read].")
]
NoCheck = Annotated[bool, typer.Option("--no-check-finite", help="Let NaN and infinities pass.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say bytes and time, write nothing.")]
Card = Annotated[bool, typer.Option("--card", help="Write a README.md: recipe, hashes of the inputs, scores.")]
Restart = Annotated[bool, typer.Option("--restart", help="Forget an unfinished run instead of going on with it.")]
Key = Annotated[
    str | None,
    typer.Option("--key", help="Where the weights lie in each file, such as state_dict_ema \\[default: looked for]."),
]
Keep = Annotated[list[str] | None, typer.Option("--keep", help="Only tensors that fit this pattern, as 'decoder.*'.")]
Drop = Annotated[list[str] | None, typer.Option("--drop", help="No tensors that fit this pattern.")]


def average(
    inputs: Inputs,
    out: Out,
    weights: Annotated[
        str | None, typer.Option(help="One for each input: 1,2,1. They are divided by their sum.")
    ] = None,
    raw_weights: Annotated[
        str | None, typer.Option("--raw-weights", help="The same, divided by nothing: 1.5,-0.5.")
    ] = None,
    decay: Annotated[
        str | None,
        typer.Option(
            help="The average that stands for a decay of the rate: linear, minus-sqrt, cosine, '(1-x)^2', or a file "
            "of rates."
        ),
    ] = None,
    over: Annotated[
        str | None, typer.Option(help="Over the last part of the run: 20%, 100step or 5ckpt \\[default: all].")
    ] = None,
    blend: Annotated[
        float | None, typer.Option(help="Go this far from the last checkpoint to the average: 0.7; 1 is the average.")
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Exponential average: what the past keeps at each step.")] = None,
    half_life: Annotated[float | None, typer.Option(help="The same as a half-life, in checkpoints.")] = None,
    last: Last = None,
    form: Annotated[
        str | None, typer.Option("--as", help="dcp: a folder that torch.distributed.checkpoint loads.")
    ] = None,
    card: Card = False,
    dtype: Dtype = None,
    key: Key = None,
    keep: Keep = None,
    drop: Drop = None,
    as_given: AsGiven = False,
    no_check_finite: NoCheck = False,
    dry_run: DryRun = False,
    restart: Restart = False,
    as_json: screen.Json = False,
) -> None:
    """Average checkpoints: equally, weighted or exponentially, in bounded memory whatever their size."""
    from ..checkpoints import expand, plan_average
    from ..checkpoints.ranks import of_torchrun

    asked = Asked(weights, raw_weights, ema, half_life, decay, over, last, blend)
    asked.check()
    inputs = local(inputs)
    recipe = asked.recipe(expand(inputs, keep_order=as_given or asked.keeps_order))
    plan = plan_average(
        opened_inputs(recipe.paths, key, keep, drop),
        out,
        recipe.merge,
        dtype=_dtype(dtype),
        check_finite=not no_check_finite,
        form=form_of(form),
        with_card=card,
        also_left=models_beside(inputs),
    )
    plan = replace(plan, ranks=of_torchrun())
    _go(plan, recipe.title, dry_run, restart, as_json, _loads(plan), recipe.coefficients)


def soup(
    inputs: Inputs,
    out: Out,
    score: Annotated[
        str, typer.Option(help="Command to run on a candidate, such as 'python eval.py {}'; its last number counts.")
    ],
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="The score is a loss.")] = False,
    card: Card = False,
    dtype: Dtype = None,
    key: Key = None,
    keep: Keep = None,
    drop: Drop = None,
    no_check_finite: NoCheck = False,
    dry_run: DryRun = False,
    restart: Restart = False,
    as_json: screen.Json = False,
) -> None:
    """Build the greedy soup: go from the best checkpoint to the worst and keep those that raise the score."""
    from .. import soup as soups
    from ..checkpoints import expand, plan_average
    from ..files.replacing import alone
    from .scoring import Scorer, forget_finished

    forget_finished(out, "soup")
    inputs = local(inputs)
    paths = expand(inputs)
    opened = opened_inputs(paths, key, keep, drop)
    also = models_beside(inputs)
    plan = plan_average(
        opened, out, soups.uniform, dtype=_dtype(dtype), check_finite=not no_check_finite, also_left=also
    )
    scorer = Scorer(score, plan, lower_is_better, restart=restart)
    if dry_run:
        _go(
            plan, "greedy soup", True, False, as_json, f"{len(paths)} to {2 * len(paths) - 1} runs of the score follow."
        )
        return
    if not as_json:
        screen.show(_inputs(plan))
    with alone(scorer.folder, out):
        found = soups.search(len(paths), scorer)
        kept = [paths[place] for place in found.members]
        final = plan_average(
            [opened[place] for place in found.members],
            out,
            soups.uniform,
            dtype=_dtype(dtype),
            check_finite=not no_check_finite,
            with_card=card,
            scores=[-found.scores[place] if lower_is_better else found.scores[place] for place in found.members],
            also_left=also,
        )
        with screen.byte_bar("writing the soup", final.bytes_read + final.bytes_written) as report:
            final.run(report, restart=restart)
        scorer.forget()
    sign = -1 if lower_is_better else 1
    best = sign * found.trials[found.members[-1]]
    if as_json:
        rows = [
            {"input": str(path), "score": sign * alone, "in_soup": sign * trial, "kept": place in found.members}
            for place, (path, alone, trial) in enumerate(zip(paths, found.scores, found.trials, strict=True))
        ]
        screen.print_json(
            {"output": str(out), "score": best, "kept": list(map(str, kept)), "scores": rows} | final.account.as_dict()
        )
        return
    table = Table(title="greedy soup")
    for heading in ("checkpoint", "alone", "soup with it", "kept"):
        table.add_column(heading)
    for place, path in enumerate(paths):
        values = (f"{sign * value:.6g}" for value in (found.scores[place], found.trials[place]))
        table.add_row(escape(str(path)), *values, "yes" if place in found.members else "no")
    screen.show(table)
    screen.say(
        f"Wrote {out}: {len(kept)} of {len(paths)} checkpoints, score {best:.6g}. Judge it on data that chose nothing."
    )
    _close(final)


def posterior(
    inputs: Inputs,
    out: Out,
    rank: Annotated[int, typer.Option(help="Deviations held at most; 0 keeps the diagonal only.")] = 20,
    deviations: Annotated[str, typer.Option(help="float32, or bfloat16 for half the size.")] = "float32",
    select: Annotated[
        str | None, typer.Option(help="A regular expression: only tensors in whose name it is found.")
    ] = None,
    last: Last = None,
    key: Key = None,
    keep: Keep = None,
    drop: Drop = None,
    as_given: AsGiven = False,
    no_check_finite: NoCheck = False,
    dry_run: DryRun = False,
    restart: Restart = False,
    as_json: screen.Json = False,
) -> None:
    """Fit SWAG, a Gaussian over weights, to a row of checkpoints; the file is one that lowland.load reads."""
    from .. import SWAG
    from ..checkpoints import expand, plan_posterior
    from ..weights.named import matching

    paths = tail(expand(local(inputs), keep_order=as_given), last)
    if len(paths) < 2:
        raise ValueError("a Gaussian wants at least 2 checkpoints, got 1")
    make = partial(SWAG, rank=min(rank, len(paths)), deviations_dtype=deviations)
    chosen = None if select is None else matching(select)
    opened = opened_inputs(paths, key, keep, drop)
    plan = plan_posterior(opened, out, make, select=chosen, check_finite=not no_check_finite)
    follow = f"`lowland sample {out} --like {paths[-1]} -n 5 --out draws` writes checkpoints drawn from it."
    _go(plan, f"SWAG of rank {min(rank, len(paths))}", dry_run, restart, as_json, follow)


def opened_inputs(
    paths: Sequence[Path], key: str | None, keep: Sequence[str] | None, drop: Sequence[str] | None
) -> list[Checkpoint]:
    """Open the inputs of a command."""
    from ..checkpoints import open_checkpoint

    return [open_checkpoint(path, key=key, keep=keep or (), drop=drop or ()) for path in paths]


def models_beside(inputs: Sequence[str]) -> list[tuple[Left, tuple[int, ...]]]:
    """The models that lie beside a run's checkpoints, for the account."""
    from ..checkpoints import final_models

    return [(left, ()) for left in final_models(inputs)]


def _loads(plan: Plan) -> str:
    return f"`lowland info {plan.target}` says what it holds; load it as any checkpoint."


def _close(plan: Plan, verb: str = "averaged") -> None:
    for line in plan.account.lines(len(plan.checkpoints), verb):
        screen.say(line)


def form_of(name: str | None) -> Literal["files", "dcp"]:
    """Return the form of an output by its name on the command line.

    Raises:
        ValueError: there is no such form.
    """
    if name not in (None, "dcp", "files"):
        raise ValueError(f"--as wants dcp, or files as the inputs have them; got {name}")
    return "dcp" if name == "dcp" else "files"


def _dtype(name: str | None) -> Any:
    import torch

    names = ("float32", "bfloat16", "float16", "float64")
    name = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}.get(name or "", name)
    if name is not None and name not in names:
        raise ValueError(f"--dtype must be one of {', '.join(names)}, got {name}")
    return None if name is None else getattr(torch, name)


def _inputs(plan: Plan, coefficients: Sequence[float] | None = None) -> Table:
    count = len(plan.checkpoints)
    table = Table(title=f"{count} checkpoints, in this order" if count > 1 else "1 checkpoint")
    for heading in ("", "checkpoint", "kind", "size", *(["coefficient"] if coefficients else [])):
        table.add_column(heading)
    rows = [
        (str(n), str(c.path), c.kind, screen.size(c.nbytes), *([f"{coefficients[n - 1]:.6g}"] if coefficients else []))
        for n, c in enumerate(plan.checkpoints, start=1)
    ]
    for row in rows if len(rows) <= 24 else [*rows[:12], ("...",), *rows[-11:]]:
        table.add_row(*map(escape, row))
    return table


def _go(
    plan: Plan,
    title: str,
    dry_run: bool,
    restart: bool,
    as_json: bool,
    follow: str,
    coefficients: Sequence[float] | None = None,
) -> None:
    """Show the inputs, then do the plan or say what it would take."""
    from ..checkpoints import estimate

    facts: dict[str, Any] = {
        "method": title,
        "output": str(plan.target),
        "inputs": [str(checkpoint.path) for checkpoint in plan.checkpoints],
        **({"coefficients": list(coefficients)} if coefficients else {}),
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "dry_run": dry_run,
        **plan.account.as_dict(),
    }
    quiet = plan.ranks.rank > 0  # one of several processes speaks
    if not as_json and not quiet:
        screen.show(_inputs(plan, coefficients))
    moved = f"{screen.size(plan.bytes_read)} read, {screen.size(plan.bytes_written)} written"
    if dry_run:
        rates = estimate(plan)
        if as_json:
            screen.print_json({**facts, "estimate": rates._asdict()})
            return
        screen.say(
            f"The {title} would take about {rates.seconds:.0f} s: {moved}, at {screen.size(rates.read)} and "
            f"{screen.size(rates.write)} a second just now. Nothing was written: the same "
            "command without --dry-run does it."
        )
        _close(plan, "to be averaged")
        return
    begin = time.perf_counter()
    with screen.byte_bar(title, plan.bytes_read + plan.bytes_written) as report:
        plan.run(report, restart=restart)
    seconds = time.perf_counter() - begin
    if quiet:
        return
    if as_json:
        screen.print_json({**facts, "seconds": seconds})
        return
    screen.say(f"Wrote the {title} to {plan.target} in {seconds:.1f} s ({moved}). {follow}")
    _close(plan)
