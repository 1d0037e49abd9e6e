"""The long form, `make faults`: writes docs/faults.md and benchmarks/results/faults.json."""

from __future__ import annotations

import argparse
import json
import platform
import re
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from . import commands, disk, kills, mutations, pairs

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run every part and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25, help="of each writer")
    parser.add_argument("--files", type=int, default=1000, help="changed files of each format")
    parser.add_argument("--levels", type=int, default=20, help="of a full disk, for each writer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of writers and formats that this pattern fits")
    parser.add_argument("--pairs", type=int, default=3, help="of processes on one output, for each writer")
    parser.add_argument("--parts", default="kills,disk,mutations,pairs", help="which parts")
    parser.add_argument("--fold", type=Path, help="an older faults.json, whose rows fill what this one lacks")
    given = parser.parse_args()
    parts = given.parts.split(",")
    torch.set_num_threads(1)
    began = time.monotonic()
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in ("kills", "disk", "mutations", "pairs")}

    def note(part: str, row: Any, what: str) -> None:
        found[part].append(asdict(row))
        _say(row.name, what, row.faults)

    with tempfile.TemporaryDirectory(prefix="lowland-faults-") as name:
        home = kills.inputs(Path(name))
        main_ones, others = kills.writers(home), commands.others(home)
        chosen = [writer for writer in (*main_ones, *others) if re.search(given.only, writer.name)]
        if parts != ["mutations"] and any(writer in others for writer in chosen):
            commands.prepare(home)
        for writer in chosen if "kills" in parts else []:
            row = kills.kill(writer, home, given.kills if writer in main_ones else -(-given.kills // 4), given.seed)
            note("kills", row, f"{row.kills} kills")
        for writer in chosen if "pairs" in parts else []:
            twice = pairs.pair(writer, home, given.pairs)
            note("pairs", twice, f"{twice.both} of {twice.pairs} pairs ended both, {twice.refused} were told")
        try:
            for writer in chosen if "disk" in parts else []:
                if writer.name not in ("study text", "report"):
                    full = disk.fill(writer, home, given.levels)
                    note("disk", full, f"{full.written} written, {full.refused} refused")
        except PermissionError as error:
            print(f"no full disks: {error}")
        for format in mutations.formats(home) if "mutations" in parts else []:
            if re.search(given.only, format.name):
                read = mutations.mutate(format, home / "mutated", given.files, given.seed)
                note("mutations", read, f"{read.accepted} accepted, {read.refused} refused")
    write(found, round(time.monotonic() - began), given)
    faults = [fault for rows in found.values() for row in rows for fault in row["faults"]]
    raise SystemExit(f"{len(faults)} faults" if faults else None)


def write(found: dict[str, list[dict[str, Any]]], seconds: int, given: argparse.Namespace) -> None:
    """Write the rows that were made into the table, in the place of older ones of the same names."""
    place = ROOT / "benchmarks" / "results" / "faults.json"
    kept = json.loads(place.read_text()) if place.exists() else {}
    for part, rows in (json.loads(given.fold.read_text()) if given.fold else {}).items():
        if isinstance(rows, list):
            names = {row["name"] for row in kept.get(part, [])}
            kept[part] = [*(row for row in rows if row["name"] not in names), *kept.get(part, [])]
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": "make faults",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds": seconds + (kept.get("seconds", 0) if given.only or len(given.parts.split(",")) < 4 else 0),
    }
    for part, rows in found.items():
        new = {row["name"]: row for row in rows}
        old = [new.pop(row["name"], row) for row in kept.get(part, [])]
        result[part] = [*old, *new.values()]
    place.write_text(json.dumps(result, indent=1) + "\n")
    (ROOT / "docs" / "faults.md").write_text(page(result))


def _say(name: str, what: str, faults: list[str]) -> None:
    print(f"{name}: {what}, {len(faults)} faults", flush=True)
    for fault in faults[:10]:
        print("   ", fault, flush=True)


def page(result: dict[str, Any]) -> str:
    """The docs page: what was done to lowland's files, and what came of it."""
    rows = {key: result[key] for key in ("kills", "disk", "mutations", "pairs")}
    tables = {
        "kills": _table(rows["kills"], {"what writes": "name", "kills that found it at work": "kills"}),
        "disk": _table(rows["disk"], {"what writes": "name", "written whole": "written", "refused": "refused"}),
        "mutations": _table(
            rows["mutations"], {"what is read": "name", "files": "files", "read": "accepted", "refused": "refused"}
        ),
        "pairs": _table(
            rows["pairs"],
            {"what writes": "name", "pairs": "pairs", "both ended well": "both", "one was told": "refused"},
        ),
    }
    return f"""# Kills, full disks, damaged files and two at once

Made by `{result["command"]}`, some rows anew by themselves (`ARGS='--parts disk --only save'`), last on
{result["date"]}, Python {result["python"]}, torch {result["torch"]}; the numbers stand in
`benchmarks/results/faults.json`. A short form of all of it runs with the tests.

## Kills

SIGKILL at a random moment, up to four times in a row; then the same command again. It must end with the bytes of a run
that was never killed, and leave nothing beside them.

{tables["kills"]}

## Full disks

A disk with room for a share of what is written, from nothing to more than all of it. Other files must stay
whole, no output may be half written, and one line must say that room is missing.

{tables["disk"]}

## Damaged and hostile files

Bytes flipped, cut, put in and repeated; numbers made huge, negative or not finite; brackets nested 100,000 deep;
pickles that would run code. Every file must be read as what it is or refused in one clear line: no crash, no code run,
no endless loop, no more than 4 GB.

{tables["mutations"]}

## Two processes, one output

The same command twice at the same time. Both end with the bytes of one alone, or one is told in a line that another
process is at it, and the other is whole; nothing is left beside them.

{tables["pairs"]}

A flipped bit among the numbers of a tensor is read as another number: state files carry no checksum of their own.
"""


def _table(rows: object, columns: dict[str, str]) -> str:
    assert isinstance(rows, list)
    lines = [" | ".join(["", *columns, "faults", ""]).strip(), "|".join(["", "---", *["---:"] * len(columns), ""])]
    for row in rows:
        lines.append("| " + " | ".join([*(str(row[key]) for key in columns.values()), str(len(row["faults"]))]) + " |")
    numbers = [key for key in columns.values() if key != "name"]
    totals = [str(sum(row[key] for row in rows)) for key in numbers]
    lines.append("| all | " + " | ".join([*totals, str(sum(len(row["faults"]) for row in rows))]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
