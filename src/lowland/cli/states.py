"""Commands on what lies on the disk: draws from a posterior, what a file holds, whether an output is what it says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from . import screen
from .checkpoints import Key


def sample(
    posterior: Annotated[Path, typer.Argument(help="What `lowland posterior` or lowland.save wrote.")],
    like: Annotated[Path, typer.Option(help="A checkpoint or adapter whose layout and other tensors the draws take.")],
    out: Annotated[Path, typer.Option("--out", help="A folder for sample-0, sample-1, ...")],
    n: Annotated[int, typer.Option("-n", "--samples", help="How many draws.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed, the same draws.")] = 0,
    scale: Annotated[float | None, typer.Option(help="Multiplies the covariance \\[default: 1, the paper's].")] = None,
    as_json: screen.Json = False,
) -> None:
    """Draw weights from a saved posterior and write them as ordinary checkpoints or adapters."""
    from ..checkpoints import open_checkpoint
    from ..checkpoints import sample as draw

    begin = time.perf_counter()
    first = open_checkpoint(like)
    with screen.byte_bar("drawing", n * first.nbytes) as report:
        made = draw(
            posterior, first, n, out, seed=seed, view=None if scale is None else _tempered(scale), report=report
        )
    seconds = time.perf_counter() - begin
    if as_json:
        screen.print_json({"output": list(map(str, made)), "seed": seed, "seconds": seconds})
        return
    draws = "draw" if n == 1 else "draws"
    screen.say(f"Wrote {n} {draws} to {out} in {seconds:.1f} s: predict with each and average the probabilities.")


def info(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or what lowland.save wrote.")],
    key: Key = None,
    names: Annotated[bool, typer.Option("--names", help="List every tensor with its type and shape.")] = False,
    as_json: screen.Json = False,
) -> None:
    """Say what a checkpoint or a state file holds."""
    from ..checkpoints import describe

    held = describe(path) if key is None else describe(path, key=key)
    if as_json:
        screen.print_json(held)
        return
    table = Table(title=escape(f"{path.name}: {held['class']}, {screen.size(held['bytes'])}"))
    for heading in held["parts"][0] if held["parts"] else ():
        table.add_column(heading)
    for part in held["parts"]:
        table.add_row(*(escape(_cell(key, value)) for key, value in part.items()))
    screen.show(table)
    if names:
        for name, told in held.get("names", {}).items():
            screen.say(f"{name}  {told['dtype']} {tuple(told['shape'])}")
    if "adapter" in held:
        screen.say("Adapter: " + ", ".join(f"{k} {v}" for k, v in held["adapter"].items()) + ".")
    for left in held.get("left", ()):
        screen.say(f"Beside it: {left['name']} ({left['why']}).")
    if "tied" not in held:
        screen.say(f"Read it in Python: lowland.load({str(path)!r}).")
        return
    numbers = ", ".join(f"{count:,} {dtype}" for dtype, count in held["numbers"].items())
    tied = f" Tied: {'; '.join(' = '.join(group) for group in held['tied'][:3])}." if held["tied"] else ""
    screen.say(f"{held['tensors']} tensors: {numbers}.{tied} Average several with `lowland average`.")


def _cell(key: str, value: object) -> str:
    if key == "bytes" and isinstance(value, int):
        return screen.size(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _tempered(scale: float) -> Any:
    return lambda loaded: loaded.tempered(scale)


def verify(
    path: Annotated[Path, typer.Argument(help="What `lowland average`, `choose` or `soup` wrote.")],
    runs: Annotated[
        list[Path] | None, typer.Option("--run", help="A folder in which checkpoints lie that were moved or renamed.")
    ] = None,
    as_json: screen.Json = False,
) -> None:
    """Make a merge again from its ingredients and compare every tensor; exit code 0 equal, 3 not, 2 a wrong command."""
    from .. import soup
    from ..checkpoints import verify as verified
    from ..retroactive import grouped

    begin = time.perf_counter()
    with screen.byte_bar("verifying", 0) as report:
        found = verified(path, (soup.uniform, soup.weighted, soup.combined, grouped), report, runs=runs or ())
    if as_json:
        screen.print_json({"output": str(path), "equal": found.right, "tensors": found.tensors, "differ": found.differ})
    elif found.right:
        screen.say(
            f"{path} is what its record says: {found.tensors} tensors, made again in "
            f"{time.perf_counter() - begin:.1f} s, are equal bit for bit."
        )
    else:
        screen.say(f"{path} is not what its record says: {'; '.join(found.differ[:8])}.")
    raise typer.Exit(0 if found.right else 3)
