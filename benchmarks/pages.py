"""What a result page says of the machine and the versions, and how it looks."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return CPU, vector units, cores, memory and system."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    told = dict(line.split(":", 1) for line in about.splitlines() if ":" in line)
    told = {key.strip(): value.strip() for key, value in told.items()}
    flags = set(told.get("flags", "").split())
    return {
        "cpu": f"{told.get('model name', platform.processor() or platform.machine())}, "
        f"family {told.get('cpu family', '?')} model {told.get('model', '?')}",
        "vector units": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in flags],
        "cores": os.cpu_count(),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
    }


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of python, lowland, torch, numpy, numba and `packages`; a peer's is its pin."""
    from tests.peers.loading import PEERS

    found = {"python": platform.python_version()}
    for name in dict.fromkeys(("lowland", "torch", "numpy", "numba", *packages)):
        try:
            pins = PEERS[name].pins if name in PEERS else ()
            found[name] = pins[0].split("==")[1] if pins else version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def page(
    known: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, object]]],
    checks: Sequence[Mapping[str, Any]],
) -> str:
    """Return the Markdown of a result."""
    lines = [f"# {known['title']}", ""]
    for key in ("machine", "versions"):
        inside = ", ".join(f"{what} {_cell(value)}" for what, value in known[key].items())
        lines.append(f"{key.capitalize()}: {inside}.")
    lines += [f"Date: {known['date']}. Command: `{known['command']}`.", ""]
    if checks:
        cells = [{**check, "ok": "yes" if check["ok"] else "**no**"} for check in checks]
        lines += ["## Checks", "", *table(cells), ""]
    for head, rows in tables.items():
        lines += [f"## {head}", "", *table(rows), ""]
    if known["notes"]:
        lines += ["## Notes", "", *(f"- {note}" for note in known["notes"]), ""]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the lines of a Markdown table; a row that lacks a column has an empty cell there."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    body = ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *body]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
