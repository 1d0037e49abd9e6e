"""The command `lowland landscape`: what a loss does around and between checkpoints, as numbers and pictures."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from . import screen
from .landscape_asked import of_files, of_run
from .landscape_kinds import line_of, plane_of, rays_of, spectrum_of
from .landscape_shown import draw, is_result, redraw, table
from .run_folders import is_run

KINDS = ("plane", "line", "rays", "spectrum")


def landscape(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Checkpoints A B [C ...], the run folder of a study, or one result to draw again."),
    ],
    model: Annotated[
        str, typer.Option(help="FILE:FUNCTION that builds the model \\[default: the first folder, by Transformers].")
    ] = "",
    data: Annotated[
        str, typer.Option(help="FILE:FUNCTION that returns batches, or several lists by name: train, test.")
    ] = "",
    kind: Annotated[str, typer.Option(help="plane, line, rays or spectrum.")] = "plane",
    loss: Annotated[
        str, typer.Option(help="FILE:FUNCTION of model and batch \\[default: cross-entropy and error].")
    ] = "",
    bn: Annotated[str, typer.Option("--bn", help="BatchNorm at each place: exact, fast or frozen.")] = "exact",
    points: Annotated[int, typer.Option(help="Columns and rows, or places between the ends, or along a ray.")] = 21,
    margin: Annotated[float, typer.Option(help="Around a plane's points, or beyond a line's ends.")] = 0.3,
    levels: Annotated[str, typer.Option(help="Refine a plane near these levels only, such as 'test error=0.2'.")] = "",
    directions: Annotated[int, typer.Option(help="Rays.")] = 20,
    reach: Annotated[float | None, typer.Option(help="Length of a ray \\[default: 1, raw a tenth of |w|].")] = None,
    rise: Annotated[float, typer.Option(help="What the first value gains at the distance that is told.")] = 0.1,
    normalise: Annotated[str, typer.Option(help="Of rays: none, norm or filter.")] = "filter",
    steps: Annotated[int, typer.Option(help="Lanczos steps of a spectrum.")] = 30,
    probes: Annotated[int, typer.Option(help="Random starts of a spectrum.")] = 5,
    names: Annotated[
        str,
        typer.Option(
            help="Of the checkpoints, by commas \\[default: of their files]; of a run folder, which solutions."
        ),
    ] = "",
    across: Annotated[
        str, typer.Option(help="Of a plane through two: random, or hessian, its top direction.")
    ] = "random",
    cell: Annotated[
        str, typer.Option(help="Of a run folder: DATA-MODEL-SEED, or a member \\[default: the first].")
    ] = "",
    rule: Annotated[str, typer.Option(help="Of a population's run folder \\[default: independent].")] = "",
    seed: Annotated[int, typer.Option(help="Of random directions and probes.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes, one thread each.")] = 1,
    out_folder: Annotated[Path, typer.Option("--out", help="Where results and pictures go.")] = Path("landscape"),
    as_json: screen.Json = False,
) -> None:
    """Draw planes, lines, rays or Hessian spectra of checkpoints, with numbers; a killed grid goes on."""
    import torch

    from ..files.replacing import alone

    if kind not in KINDS:
        raise ValueError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if bn not in ("exact", "fast", "frozen"):
        raise ValueError(f"--bn must be exact, fast or frozen, got {bn!r}")
    if normalise not in ("none", "norm", "filter"):
        raise ValueError(f"--normalise must be none, norm or filter, got {normalise!r}")
    if across not in ("random", "hessian"):
        raise ValueError(f"--across must be random or hessian, got {across!r}")
    if len(inputs) == 1 and is_result(Path(inputs[0])):
        redraw(Path(inputs[0]), out_folder)
        return
    if len(inputs) == 1 and is_run(Path(inputs[0])):
        if model or data or loss:
            raise ValueError("--model, --data and --loss are those of the study in a run folder: leave them out")
        asked = of_run(Path(inputs[0]), cell, rule, bn, names, kind)
    elif cell or rule:
        raise ValueError("--cell and --rule pick from the run folder of a study: name one, and nothing else")
    elif not data:
        raise ValueError("--data FILE:FUNCTION is wanted: what to measure on")
    else:
        asked = of_files(inputs, model, data, loss, bn, names, kind)
    generator = torch.Generator().manual_seed(seed)
    if asked.ranks.world > 1 and (jobs > 1 or kind == "spectrum"):
        raise ValueError("torchrun shares the places of planes, lines and rays: leave --jobs out, and spectra to one")
    with alone(out_folder, out_folder) if asked.speaks else nullcontext():
        if kind == "plane":
            found, told = plane_of(asked, points, margin, _levels(levels), across, generator, jobs, out_folder)
        elif kind == "line":
            found, told = line_of(asked, points, margin, jobs, out_folder)
        elif kind == "rays":
            how = None if normalise == "none" else normalise
            found, told = rays_of(asked, points, directions, reach, rise, how, seed, jobs, out_folder)
        else:
            found, told = spectrum_of(asked, steps, probes, seed, out_folder)
        if not asked.speaks:
            return
        pictures = draw(kind, found, out_folder, asked.about, asked.names)
    if as_json:
        screen.print_json({"folder": str(out_folder), **told})
        return
    screen.show(table(kind, told))
    screen.say(f"Next: open {pictures}; --kind {KINDS[(KINDS.index(kind) + 1) % 4]} shows the same otherwise.")


def _levels(text: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.rpartition("=")
        try:
            found.setdefault(name.strip(), []).append(float(value))
        except ValueError:
            raise ValueError(f"--levels wants NAME=NUMBER by commas, such as 'test error=0.2', got {part!r}") from None
    return found
