"""What a choice is told by: a table, sentences, and plain data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from . import screen
from .asking import Asking, Soup

if TYPE_CHECKING:
    from ..retroactive import Choice

_SHOWN = 20  # candidates of the table


def table(found: Choice, asked: Asking, soup: Soup | None) -> Table:
    """Return the best candidates, the last checkpoint and the soup, each with how far it is behind the best."""
    several, best = found.expected is not None, found.winner.score
    made = Table(title=f"{len(found.tried)} candidates, the best first")
    for heading in ("average", "score", "behind the best", ""):
        made.add_column(heading, justify="left" if heading in ("average", "") else "right")
    shown = sorted(found.tried, key=lambda tried: -tried.score)
    last = [tried for tried in shown if str(tried.candidate) == "the last checkpoint"]
    if soup is not None:
        gap = "" if soup.taken else f"{best - soup.score:.4f}"
        made.add_row(_named(soup), f"{asked.sign * soup.score:.4f}", gap, "chosen" if soup.taken else "")
    for tried in [*shown[:_SHOWN], *(tried for tried in last if tried not in shown[:_SHOWN])]:
        noise = f" ± {tried.error:.4f}" if several else ""
        first = tried is found.winner
        gap = "" if first else f"{tried.behind:.4f}" + (f" ± {tried.behind_error:.4f}" if several else "")
        chosen = first and not (soup is not None and soup.taken)
        mark = "chosen" if chosen else "tied" if tried.tied and not first else ""
        made.add_row(escape(str(tried.candidate)), f"{asked.sign * tried.score:.4f}{noise}", gap, mark)
    return made


def _named(soup: Soup) -> str:
    return f"greedy soup of {screen.counted(len(soup.members), 'checkpoint')}"


def sentences(found: Choice, asked: Asking, soup: Soup | None) -> list[str]:
    """Return what a choice is worth, in words."""
    winner, lines = found.winner, []
    tied = sum(tried.tied for tried in found.tried) - 1
    if tied:
        lines.append(f"{screen.counted(tied, 'other candidate')} cannot be told from the best.")
    if found.expected is not None:
        lines.append(
            f"On examples that did not choose it, what is chosen so is expected to score "
            f"{asked.sign * found.expected:.4f}; the {asked.sign * winner.score:.4f} of the table is of the examples "
            "that chose it."
        )
    else:
        lines.append("The best of many scores is too high: with --examples the expected score on others is told.")
    last = next((t for t in found.tried if str(t.candidate) == "the last checkpoint"), None)
    single = found.single()
    if last is not None and single is not None:
        lines.append(
            f"The last checkpoint scores {asked.sign * last.score:.4f}, the best single one "
            f"({single.candidate}) {asked.sign * single.score:.4f}."
        )
    if soup is not None and soup.taken:
        lines.append(
            f"The {_named(soup)} scores {asked.sign * soup.score:.4f}: it is taken. Its score is of the examples that "
            "built it, and no expected score is told for it."
        )
    elif winner.candidate.shape != "checkpoint" and winner.candidate.window > 1:
        begin = asked.steps[-winner.candidate.window]
        lines.append(
            f"It stands for a {winner.candidate.shape} decay of the rate that begins at step {begin:g}"
            + (f", gone {winner.candidate.blend:g} of the way." if winner.candidate.blend != 1 else ".")
        )
    return lines


def plain(found: Choice, asked: Asking, soup: Soup | None) -> dict[str, Any]:
    """Return a choice as plain data."""
    rows = [
        {
            "average": str(tried.candidate),
            "shape": tried.candidate.shape,
            "window": tried.candidate.window,
            "blend": tried.candidate.blend,
            "groups": dict(tried.candidate.groups),
            "score": asked.sign * tried.score,
            "error": tried.error,
            "behind": tried.behind,
            "behind_error": tried.behind_error,
            "tied": tried.tied,
            "coefficients": tried.candidate.coefficients(asked.steps),
        }
        for tried in found.tried
    ]
    told = None
    if soup is not None:
        told = {"members": list(soup.members), "score": asked.sign * soup.score, "taken": soup.taken}
    return {
        "winner": rows[found.best],
        "expected": None if found.expected is None else asked.sign * found.expected,
        "soup": told,
        "checkpoints": [str(checkpoint.path) for checkpoint in asked.opened],
        "tried": rows,
    }


def record(asked: Asking, told: Mapping[str, Any]) -> str:
    """Return the text of the file beside the winner: the command, and every candidate with its score."""
    content = {"score": shlex.join(asked.words), **told}
    return json.dumps(screen.finite(content), indent=1) + "\n"


def record_path(target: Path, *, single: bool) -> Path:
    """Return where that file lies: in the winner's folder, or beside a single file."""
    return target.with_name(f"{target.name}.choice.json") if single else target / "lowland_choice.json"
