"""The long form, `make faults`: writes docs/faults.md and benchmarks/results/faults.json."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from . import disk, kills, mutations

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run every part and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25, help="of each writer")
    parser.add_argument("--files", type=int, default=1000, help="changed files of each format")
    parser.add_argument("--levels", type=int, default=20, help="of a full disk, for each writer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of writers and formats that contain this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time(), time.monotonic()
    killed, filled, mutated = [], [], []
    with tempfile.TemporaryDirectory(prefix="lowland-faults-") as name:
        home = kills.inputs(Path(name))
        for writer in kills.writers(home):
            if given.only in writer.name:
                killed.append(kills.kill(writer, home, given.kills, given.seed))
                _say(writer.name, f"{killed[-1].kills} kills", killed[-1].faults)
        try:
            for writer in kills.writers(home):
                if given.only in writer.name and writer.name != "study text":
                    filled.append(disk.fill(writer, home, given.levels))
                    _say(writer.name, f"{filled[-1].written} written, {filled[-1].refused} refused", filled[-1].faults)
        except PermissionError as error:
            print(f"no full disks: {error}")
        for format in mutations.formats(home):
            if given.only in format.name:
                mutated.append(mutations.mutate(format, home / "mutated", given.files, given.seed))
                _say(format.name, f"{mutated[-1].accepted} accepted, {mutated[-1].refused} refused", mutated[-1].faults)
    faults = [fault for part in (*killed, *filled, *mutated) for fault in part.faults]
    if not given.only:
        result = {
            "date": date.today().isoformat(),
            "command": f"make faults ARGS='--kills {given.kills} --files {given.files} --levels {given.levels}'",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "seconds": round(time.monotonic() - began[1]),
            "kills": [asdict(one) for one in killed],
            "disk": [asdict(one) for one in filled],
            "mutations": [asdict(one) for one in mutated],
        }
        (ROOT / "benchmarks" / "results" / "faults.json").write_text(json.dumps(result, indent=1) + "\n")
        (ROOT / "docs" / "faults.md").write_text(page(result))
    raise SystemExit(f"{len(faults)} faults" if faults else None)


def _say(name: str, what: str, faults: list[str]) -> None:
    print(f"{name}: {what}, {len(faults)} faults", flush=True)
    for fault in faults[:10]:
        print("   ", fault, flush=True)


def page(result: dict[str, object]) -> str:
    """The docs page: what was done to lowland's files, and what came of it."""
    rows = {key: result[key] for key in ("kills", "disk", "mutations")}
    tables = {
        "kills": _table(rows["kills"], {"what writes": "name", "kills that found it at work": "kills"}),
        "disk": _table(rows["disk"], {"what writes": "name", "written whole": "written", "refused": "refused"}),
        "mutations": _table(
            rows["mutations"], {"what is read": "name", "files": "files", "read": "accepted", "refused": "refused"}
        ),
    }
    return f"""# Kills, full disks and damaged files

Made by `{result["command"]}` on {result["date"]}, Python {result["python"]}, torch {result["torch"]};
the numbers stand in `benchmarks/results/faults.json`. A short form of all three runs with the tests.

## Kills

SIGKILL at a random moment, up to four times in a row; then the same command again. It must end with the bytes of a run
that was never killed, and leave nothing beside them.

{tables["kills"]}

## Full disks

A disk with room for a share of what is written, from nothing to one and a half times all of it. Other files must stay
whole, no output may be half written, and one line must say that room is missing.

{tables["disk"]}

## Damaged and hostile files

Bytes flipped, cut, put in and repeated; numbers made huge, negative or not finite; brackets nested 100,000 deep;
pickles that would run code. Every file must be read as what it is or refused in one clear line: no crash, no code run,
no endless loop, no more than 4 GB.

{tables["mutations"]}

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
