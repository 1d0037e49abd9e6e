"""Two processes that write one output at once: both end whole, or one is told so in a line and the other is whole."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .kills import Writer
from .processes import Ended, begun, ended, forked, leftovers


@dataclass(frozen=True)
class Paired:
    """What came of the pairs of one writer."""

    name: str
    pairs: int
    both: int  # pairs of which both ended well
    refused: int
    faults: list[str]


def pair(writer: Writer, home: Path, pairs: int) -> Paired:
    """Begin `writer` twice at once, `pairs` times, the second a little later each time."""
    room = home / f"pairs-{writer.name.replace(' ', '-')}"
    straight, out = room / "straight" / f"out{writer.suffix}", room / "both" / f"out{writer.suffix}"
    shutil.rmtree(room, ignore_errors=True)
    straight.parent.mkdir(parents=True)
    alone = forked(writer.job(straight), home / "log")
    if alone.code:
        return Paired(writer.name, 0, 0, 0, [f"undisturbed it ended with {alone.code}: {alone.output[-500:]}"])
    wanted, faults, both, refused = writer.compare(straight), [], 0, 0
    for number in range(pairs):
        out.parent.mkdir()
        logs = home / "log-1", home / "log-2"
        children = [begun(writer.job(out), log, wait=0.02 * number * place) for place, log in enumerate(logs)]
        found = [ended(child, log) for child, log in zip(children, logs, strict=True)]
        told = [one for one in found if one.code]
        faults += [fault for one in told if (fault := _fault(one))]
        if len(told) == 2:
            faults.append(f"neither ended well: {told[0].output[-200:]!r} {told[1].output[-200:]!r}")
        elif writer.compare(out) != wanted:
            faults.append("together they wrote other bytes than one alone")
        elif left := leftovers(out.parent):
            faults.append(f"together they left {left}")
        both += not told
        refused += len(told)
        shutil.rmtree(out.parent)
    return Paired(writer.name, pairs, both, refused, faults)


def _fault(one: Ended) -> str:
    errors = [line for line in one.output.splitlines() if line.startswith("error:")]
    if one.code != 2 or "Traceback" in one.output or len(errors) != 1:
        return f"the second ended with {one.code}: {one.output[-300:]}"
    words = ("another process", "is there already", "is not empty", "is there:")
    return "" if any(word in errors[0] for word in words) else f"it did not say why: {errors[0]}"
