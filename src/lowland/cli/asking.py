"""The scores of candidates, asked of a user's command; what was asked once is on the disk."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from . import screen
from .scoring import ask, words_of

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint, Merge
    from ..retroactive import Candidate, Choice


class Soup(NamedTuple):
    """The greedy soup beside the averages of the last checkpoints."""

    members: tuple[int, ...]  # places of its checkpoints
    score: float  # higher is better
    taken: bool  # its score is above that of every other candidate


class Asking:
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
        form: Literal["files", "dcp"] = "files",
    ) -> None:
        self.words, self.examples, self.form = words_of(command), examples, form
        self.opened, self.steps, self.sign = opened, list(steps), -1.0 if lower_is_better else 1.0
        self._check_finite, self._target = check_finite, target
        # The command sees every candidate in one form: a checkpoint of another one than the winner's is copied.
        from ..checkpoints.layout import is_file_name

        self._as_it_is = [
            (checkpoint.distributed is not None) == (form == "dcp")
            and checkpoint.path.is_file() == is_file_name(target)
            and not {"keep", "drop"} & set(checkpoint.asked)
            for checkpoint in opened
        ]
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
        return self._score(places, what, merge_of(candidate, [self.steps[place] for place in places]), str(candidate))

    def soup(self, found: Choice) -> Soup:
        """Search the greedy soup."""
        from .. import soup as soups

        def score(members: Sequence[int]) -> float:
            values = self._score(list(members), {"candidate": "uniform"}, soups.uniform, f"soup of {len(members)}")
            return math.fsum(values) / len(values)

        best = soups.search(len(self.steps), score)
        value = score(best.members)
        return Soup(tuple(best.members), value, value > found.winner.score)

    def _score(self, places: list[int], what: dict[str, Any], merge: Any, title: str) -> list[float]:
        from ..files.replacing import write_bytes

        content = [self._hash(place) for place in places]
        asked = [dict(self.opened[place].asked) for place in places]
        key = hashlib.sha256(
            json.dumps([self.words, self.examples, self.form, content, asked, what]).encode()
        ).hexdigest()
        if key not in self.scores:
            if len(places) == 1 and self._as_it_is[places[0]]:
                values = self._ask(self.opened[places[0]].path)
            else:
                values = self._made(places, merge, title)
            self.runs += 1
            self.folder.mkdir(parents=True, exist_ok=True)
            self.scores[key] = values
            write_bytes(self.file, json.dumps(self.scores).encode())
            mean = math.fsum(values) / len(values)
            screen.err.print(f"{mean:.6g}  {title}", highlight=False, markup=False)
        return [self.sign * value for value in self.scores[key]]

    def _made(self, places: Sequence[int], merge: Any, title: str) -> list[float]:
        from ..checkpoints import plan_average

        home = self.folder / "candidate"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        chosen = [self.opened[place] for place in places]
        plan = plan_average(chosen, home / self._target.name, merge, check_finite=self._check_finite, form=self.form)
        try:
            with screen.byte_bar(title, plan.bytes_read + plan.bytes_written) as report:
                path = plan.run(report, restart=True)
            return self._ask(path)
        finally:
            shutil.rmtree(home)

    def _ask(self, path: Path) -> list[float]:
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


def merge_of(candidate: Candidate | None, steps: Sequence[float]) -> Merge:
    """Return what reduces the checkpoints of a candidate at these steps, in plain data that a record holds."""
    from ..retroactive import Candidate, grouped, groups_of

    if candidate is None or len(steps) == 1:
        candidate = Candidate("linear", len(steps))
    shares = partial(grouped, coefficients=candidate.coefficients(steps))
    groups = groups_of(candidate, steps)
    return partial(shares, groups=groups) if groups else shares
