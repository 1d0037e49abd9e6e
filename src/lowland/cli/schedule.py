"""The command that shows a learning-rate schedule and when it says to collect."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.table import Table

from lowland import cycles

from . import screen

KINDS: dict[str, type[Any]] = {
    name: kind for name, kind in vars(cycles).items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
# Numbers of a first look: 200 steps each.
EXAMPLES = {
    "swa_linear": "start=126 rate=0.5",
    "triangle": "cycle=40 low=0.01",
    "sawtooth": "cycle=40 low=0.1",
    "cosine_restarts": "steps=200 cycles=5",
    "constant_after": "start=150 rate=0.5 every=10",
    "anneal": "steps=20 rate=0.5 start=150",
}
BAR = 30  # characters of the highest rate


def schedule(
    kind: Annotated[
        str, typer.Argument(help="One of lowland.cycles, such as triangle (FGE); left out: lists them.")
    ] = "",
    arguments: Annotated[list[str] | None, typer.Argument(help="Its numbers: cycle=40 low=0.01. In steps.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="How many to show \\[default: 200, or its own].")] = None,
    rate: Annotated[float, typer.Option("--rate", help="The base rate; 1 shows shares of it.")] = 1.0,
    rows: Annotated[int, typer.Option("--rows", help="Rows of the table at most.")] = 20,
    svg: Annotated[Path | None, typer.Option("--svg", help="Write a figure to this file as well.")] = None,
    as_json: screen.Json = False,
) -> None:
    """Show a learning-rate schedule, and after which steps it says to collect weights."""
    if not kind:
        _list_them(as_json)
        return
    made = build(kind, arguments or [])
    if steps is None:
        steps = made.steps if isinstance(made, cycles.cosine_restarts) else 200
    if steps < 1 or rows < 2 or not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"--steps wants 1 or more, --rows 2 or more, --rate above 0, got {steps}, {rows}, {rate:g}")
    rates = [rate * made(step) for step in range(steps)]
    collected = [step for step in range(steps) if made.collect_at(step)]
    if svg is not None:
        from ..figures.write import write_schedule

        write_schedule(made, steps, svg, rate)
    if as_json:
        screen.print_json({"schedule": repr(made), "steps": steps, "rates": rates, "collect_after": collected})
        return
    screen.out.print(_table(repr(made), rates, collected, rows))  # a picture, with its lines in a pipe too
    last = f"; the figure is in {svg}" if svg is not None else "; --svg FILE draws it"
    screen.say(
        f"{len(collected)} collected in {steps} steps, after {_some(collected)}{last}. In code: "
        f"LambdaLR(optimiser, lowland.cycles.{made!r}), and update the average where its collect_at(step) is true."
    )


def build(kind: str, arguments: Sequence[str]) -> Any:
    """Return the schedule of this name with `key=value` arguments.

    Raises:
        ValueError: there is no such schedule or argument, one is missing, or a value is out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no schedule {kind!r}: it is one of {', '.join(KINDS)}")
    fields = {field.name: field for field in dataclasses.fields(KINDS[kind])}
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in fields:
            raise ValueError(f"{kind} takes {' '.join(_asked(KINDS[kind]))}, got {argument!r}")
        given[key] = _value(text)
    missing = [name for name, field in fields.items() if name not in given and field.default is dataclasses.MISSING]
    if missing:
        raise ValueError(f"{kind} wants {', '.join(missing)} too; such as: lowland schedule {kind} {EXAMPLES[kind]}")
    try:
        return KINDS[kind](**given)
    except TypeError as error:
        raise ValueError(f"{kind}: {error}: it takes {' '.join(_asked(KINDS[kind]))}") from None


def _value(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _asked(kind: type[Any]) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        choices = "|".join(choice for choice in get_args(field.type) if isinstance(choice, str))  # of a Literal
        default = "" if field.default is dataclasses.MISSING else f" ({_default(field.default)})"
        yield f"{field.name}={choices or '...'}{default}"


def _default(value: Any) -> str:
    return "none" if value is None else f"={value}"


def _list_them(as_json: bool) -> None:
    told = {name: (kind.__doc__ or "").strip().splitlines()[0] for name, kind in KINDS.items()}
    if as_json:
        listed = {name: {"is": told[name], "takes": list(_asked(kind))} for name, kind in KINDS.items()}
        screen.print_json(listed)
        return
    table = Table("schedule", "is", "for example", title="schedules of lowland.cycles")
    for name in KINDS:
        table.add_row(name, told[name], f"lowland schedule {name} {EXAMPLES[name]}")
    screen.show(table)
    screen.say("Numbers are in steps, rates in shares of the base rate; --rate 0.05 shows rates.")


def _table(title: str, rates: list[float], collected: list[int], rows: int) -> Table:
    table = Table(title=title)
    for heading in ("step", "rate"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("collected", justify="right")
    places, highest = set(collected), max(rates) or 1.0
    done = 0
    chosen, left_out = _rows(rates, collected, rows)
    shown = set(chosen)
    for step, rate in enumerate(rates):
        done += step in places
        if step in shown:
            bar = "█" * round(BAR * rate / highest)
            table.add_row(str(step), f"{rate:.6g}", bar, f"{done} *" if step in places else str(done))
    table.caption = "* collected after this step"
    if left_out:
        table.caption += f"; {left_out} later turning points are not shown (--rows {rows + left_out})"
    return table


def _rows(rates: list[float], collected: list[int], most: int) -> tuple[list[int], int]:
    """The steps that say most: first and last, those collected, those where the rate turns or jumps; then a grid.

    Where there are too many of them the first ones are shown: an even grid over many cycles draws a schedule that does
    not exist. The second value is how many are left out.
    """
    last = len(rates) - 1
    turns = [
        step
        for step in range(1, last)
        if (rates[step] - rates[step - 1]) * (rates[step + 1] - rates[step]) <= 0
        and (rates[step] != rates[step - 1] or rates[step] != rates[step + 1])
    ]
    shown = {0, last, *turns}
    if len(shown) > most:
        return [*sorted(shown)[: most - 1], last], len(shown) - most
    if len(shown | set(collected)) <= most:
        shown |= set(collected)
    best = shown
    for parts in range(1, most):
        grid = {round(part * last / parts) for part in range(parts + 1)}
        if len(shown | grid) > most:
            break
        best = shown | grid
    return sorted(best), 0


def _some(steps: list[int], most: int = 6) -> str:
    if not steps:
        return "none"
    if len(steps) <= most:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[: most - 1]))} ... {steps[-1]}"
