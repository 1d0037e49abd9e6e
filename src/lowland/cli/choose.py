"""The command that chooses the average of a run to ship: candidates streamed, scored once, and the winner written."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from . import screen
from .checkpoints import Drop, Inputs, Keep, Key, NoCheck, Out, Restart
from .recipes import steps_of
from .remote import local

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint
    from ..retroactive import Candidate, Choice


def choose(
    inputs: Inputs,
    out: Out,
    score: Annotated[
        str, typer.Option(help="Command to run on a candidate, such as 'python eval.py {}'; its last number counts.")
    ],
    examples: Annotated[
        bool, typer.Option("--examples", help="The command prints a number for each validation example, one a line.")
    ] = False,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="The score is a loss.")] = False,
    shapes: Annotated[
        str | None, typer.Option(help="Decays, such as linear,minus-sqrt,cosine,(1-x)^2 \\[default: these].")
    ] = None,
    windows: Annotated[
        str | None, typer.Option(help="Numbers of checkpoints, such as 5,10,20 \\[default: searched].")
    ] = None,
    blends: Annotated[
        str | None, typer.Option(help="Shares of the way to the average \\[default: 0.5,0.7,0.85,1,1.15].")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Patterns of names with a blend of their own: '*embed*,*.attn.*'.")
    ] = None,
    soup: Annotated[bool, typer.Option("--soup", help="Try the greedy soup too.")] = False,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Score every candidate.")] = False,
    figure: Annotated[Path | None, typer.Option(help="An SVG file of score against window.")] = None,
    key: Key = None,
    keep: Keep = None,
    drop: Drop = None,
    no_check_finite: NoCheck = False,
    restart: Restart = False,
    as_json: screen.Json = False,
) -> None:
    """Choose the average of a run's checkpoints that scores best, say what it is worth, and write it."""
    from ..checkpoints import expand, plan_average
    from ..retroactive import BLENDS, SHAPES
    from ..retroactive import choose as search
    from .checkpoints import models_beside, opened_inputs
    from .scoring import forget_finished

    forget_finished(out, "choose")
    inputs = local(inputs)
    paths = expand(inputs)
    opened = opened_inputs(paths, key, keep, drop)
    steps = steps_of(paths) or [float(place) for place in range(1, len(paths) + 1)]
    # Checked as a whole before anything is scored.
    plan = plan_average(
        opened, out, _merge_of(None, steps), check_finite=not no_check_finite, also_left=models_beside(inputs)
    )
    asked = _Asked(score, plan.target, opened, steps, examples, lower_is_better, not no_check_finite, restart)
    found = search(
        steps,
        asked,
        shapes=_words(shapes) or SHAPES,
        windows=[int(n) for n in _numbers("--windows", windows)],
        blends=_numbers("--blends", blends) or BLENDS,
        groups=_words(groups),
        exhaustive=exhaustive,
    )
    members = asked.soup(found) if soup else None
    if figure is not None:
        from ..figures import write_choice

        write_choice(found, figure)
    if members is not None:
        from .. import soup as soups

        chosen, merge, title = (
            [opened[place] for place in members[0]],
            soups.uniform,
            f"greedy soup of {len(members[0])}",
        )
    else:
        winner = found.winner.candidate
        places = asked.places(winner)
        chosen = [opened[place] for place in places]
        merge, title = _merge_of(winner, [steps[place] for place in places]), str(winner)
    final = plan_average(chosen, out, merge, check_finite=not no_check_finite, also_left=models_beside(inputs))
    with screen.byte_bar("writing the winner", final.bytes_read + final.bytes_written) as report:
        final.run(report, restart=True)
    _record(final.target, found, asked, members)
    asked.forget()
    if as_json:
        screen.print_json(
            {"output": str(final.target), "chosen": title, "runs": asked.runs, **_plain(found, asked, members)}
        )
        return
    screen.out.print(_table(found, asked))
    for line in _sentences(found, asked, members, steps):
        screen.say(line)
    screen.say(f"Wrote {title} to {final.target}; its scores are in {_record_path(final.target)}.")


class _Asked:
    """Asks a user's command for the scores of candidates; what was asked once is on the disk.

    Scores are kept under the command, the content of the checkpoints and the coefficients, so that the same command
    goes on after a kill and no stale score is taken.
    """

    def __init__(
        self,
        command: str,
        target: Path,
        opened: Sequence[Checkpoint],
        steps: Sequence[float],
        examples: bool,
        lower_is_better: bool,
        check_finite: bool,
        restart: bool,
    ) -> None:
        from .scoring import words_of

        self.words, self.examples = words_of(command), examples
        self.opened, self.steps, self.sign = opened, list(steps), -1.0 if lower_is_better else 1.0
        self._check_finite, self._target = check_finite, target
        self.folder = target.parent / f".{target.name}.choose"
        self.file = self.folder / "scores.json"
        if restart:
            self.forget()
        self.scores: dict[str, list[float]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.runs = 0
        self._content: dict[int, str] = {}

    def places(self, candidate: Candidate) -> list[int]:
        """The checkpoints that a candidate is made of."""
        first = len(self.steps) - candidate.window
        return (
            [first] if candidate.shape == "checkpoint" or candidate.window == 1 else list(range(first, len(self.steps)))
        )

    def __call__(self, candidate: Candidate) -> list[float]:
        """Return the score of a candidate, higher is better: one number, or one for each example."""
        places = self.places(candidate)
        what = {"candidate": [candidate.shape, candidate.blend, candidate.groups] if len(places) > 1 else None}
        return self._score(places, what, _merge_of(candidate, [self.steps[place] for place in places]), str(candidate))

    def soup(self, found: Choice) -> tuple[list[int], float] | None:
        """Search the greedy soup; return its members and its score where it is above the winner's."""
        from .. import soup as soups

        def score(members: Sequence[int]) -> float:
            values = self._score(list(members), {"candidate": "uniform"}, soups.uniform, f"soup of {len(members)}")
            return math.fsum(values) / len(values)

        best = soups.search(len(self.steps), score)
        value = score(best.members)
        return (list(best.members), value) if value > found.winner.score else None

    def _score(self, places: list[int], what: dict[str, Any], merge: Any, title: str) -> list[float]:
        content = [self._hash(place) for place in places]
        key = hashlib.sha256(json.dumps([self.words, self.examples, content, what]).encode()).hexdigest()
        if key not in self.scores:
            if len(places) == 1:
                values = self._ask(self.opened[places[0]].path)
            else:
                values = self._made(places, merge, title)
            self.runs += 1
            self.folder.mkdir(exist_ok=True)
            self.scores[key] = values
            _write(self.file, json.dumps(self.scores))
            mean = math.fsum(values) / len(values)
            screen.err.print(f"{mean:.6g}  {title}", highlight=False, markup=False)
        return [self.sign * value for value in self.scores[key]]

    def _made(self, places: Sequence[int], merge: Any, title: str) -> list[float]:
        from ..checkpoints import plan_average

        home = self.folder / "candidate"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        chosen = [self.opened[place] for place in places]
        plan = plan_average(chosen, home / self._target.name, merge, check_finite=self._check_finite)
        try:
            with screen.byte_bar(title, plan.bytes_read + plan.bytes_written) as report:
                path = plan.run(report, restart=True)
            return self._ask(path)
        finally:
            shutil.rmtree(home)

    def _ask(self, path: Path) -> list[float]:
        from .scoring import ask

        return lines_of(self.words, path) if self.examples else [ask(self.words, path)]

    def _hash(self, place: int) -> str:
        """The content of a checkpoint's files: read once a call, as fast as the disk gives it."""
        if place not in self._content:
            digest = hashlib.blake2b(digest_size=16)
            for path in self.opened[place].files:
                with path.open("rb") as file:
                    digest.update(path.name.encode() + hashlib.file_digest(file, "blake2b").digest())
            self._content[place] = digest.hexdigest()
        return self._content[place]

    def forget(self) -> None:
        """Remove scores and candidates."""
        shutil.rmtree(self.folder, ignore_errors=True)


def lines_of(command: Sequence[str], path: Path) -> list[float]:
    """Return the numbers that stand alone on a line of what the command prints about `path`: one for each example.

    Raises:
        RuntimeError: the command failed, or printed fewer than two such lines, or a NaN.
    """
    words = [word.replace("{}", str(path)) for word in command]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise RuntimeError(f"the score command cannot be run ({error}): {shlex.join(words)}") from None
    if done.returncode:
        raise RuntimeError(f"the score command failed with exit code {done.returncode}: {shlex.join(words)}")
    found = []
    for line in done.stdout.splitlines():
        try:
            found.append(float(line))
        except ValueError:
            continue
    if len(found) < 2 or any(math.isnan(value) for value in found):
        raise RuntimeError(
            f"--examples wants a number for each example, one a line; the command printed {len(found)} of them"
            f"{' and a NaN among them' if len(found) > 1 else ''}: {shlex.join(words)}"
        )
    return found


def _merge_of(candidate: Candidate | None, steps: Sequence[float]) -> Any:
    """What reduces the checkpoints of a candidate."""
    from ..retroactive import Candidate, made

    if candidate is None or len(steps) == 1:
        candidate = Candidate("linear", len(steps))
    return partial(made, candidate=candidate, steps=list(steps))


def _table(found: Choice, asked: _Asked) -> Table:
    several = found.expected is not None
    table = Table(title=f"{len(found.tried)} candidates, the best first")
    for heading in ("average", "score", "behind the best", ""):
        table.add_column(heading, justify="left" if heading in ("average", "") else "right")
    shown = sorted(found.tried, key=lambda tried: -tried.score)
    last = [tried for tried in shown if str(tried.candidate) == "the last checkpoint"]
    for tried in [*shown[:20], *(tried for tried in last if tried not in shown[:20])]:
        noise = f" ± {tried.error:.4f}" if several else ""
        gap = (
            "" if tried is found.winner else f"{tried.behind:.4f}" + (f" ± {tried.behind_error:.4f}" if several else "")
        )
        mark = "chosen" if tried is found.winner else "tied" if tried.tied else ""
        table.add_row(escape(str(tried.candidate)), f"{asked.sign * tried.score:.4f}{noise}", gap, mark)
    return table


def _sentences(
    found: Choice, asked: _Asked, members: tuple[list[int], float] | None, steps: Sequence[float]
) -> list[str]:
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
    if winner.candidate.shape != "checkpoint" and winner.candidate.window > 1:
        begin = steps[-winner.candidate.window]
        lines.append(
            f"It stands for a {winner.candidate.shape} decay of the rate that begins at step {begin:g}"
            + (f", gone {winner.candidate.blend:g} of the way." if winner.candidate.blend != 1 else ".")
        )
    if members is not None:
        lines.append(
            f"The greedy soup of {len(members[0])} checkpoints scores {asked.sign * members[1]:.4f}: it is taken."
        )
    lines.append(f"The score command ran {screen.counted(asked.runs, 'time')}.")
    return lines


def _plain(found: Choice, asked: _Asked, members: tuple[list[int], float] | None) -> dict[str, Any]:
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
    return {
        "winner": rows[found.best],
        "expected": None if found.expected is None else asked.sign * found.expected,
        "soup": None if members is None else {"members": members[0], "score": asked.sign * members[1]},
        "checkpoints": [str(checkpoint.path) for checkpoint in asked.opened],
        "tried": rows,
    }


def _record_path(target: Path) -> Path:
    return target / "lowland_choice.json" if target.is_dir() else target.with_name(f"{target.name}.choice.json")


def _record(target: Path, found: Choice, asked: _Asked, members: tuple[list[int], float] | None) -> None:
    content = {"score": shlex.join(asked.words), **_plain(found, asked, members)}
    _write(_record_path(target), json.dumps(screen.finite(content), indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    from ..files.replacing import write_bytes

    write_bytes(path, text.encode())


def _words(text: str | None) -> list[str]:
    # A comma inside of brackets belongs to a pattern.
    return [word.strip() for word in re.split(r",(?![^\[(]*[\])])", text or "") if word.strip()]


def _numbers(option: str, text: str | None) -> list[float]:
    from .recipes import numbers

    return [] if text is None else numbers(option, text)
