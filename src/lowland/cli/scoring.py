"""A user's score command, run on candidate checkpoints; what was scored once is not scored again."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import screen

if TYPE_CHECKING:
    from ..checkpoints import Plan

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|inf(?:inity)?|nan)\b", re.IGNORECASE)


class Scorer:
    """Scores the soup of some of a plan's checkpoints by the last number that a command prints.

    Candidates lie in a hidden folder beside the output while they are scored; scores stay there until `forget`.

    Raises:
        ValueError: the command has no `{}`, or is not to be parsed.
    """

    def __init__(self, command: str, plan: Plan, lower_is_better: bool, *, restart: bool = False) -> None:
        self.words = words_of(command)
        self.plan, self.sign = plan, -1.0 if lower_is_better else 1.0
        self.folder = plan.target.parent / f".{plan.target.name}.soup"
        self.file = self.folder / "scores.json"
        if restart:
            self.forget()
        self.scores: dict[str, float] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def __call__(self, members: Sequence[int]) -> float:
        """Return the score of the soup of the checkpoints at these places; higher is better.

        Raises:
            RuntimeError: the command failed, or printed no number.
        """
        from ..files.replacing import write_bytes

        key = json.dumps([self.words, [self.plan.settings["inputs"][place] for place in members]])
        if key not in self.scores:
            chosen = [self.plan.checkpoints[place] for place in members]
            value = ask(self.words, chosen[0].path) if len(members) == 1 else self._candidate(members)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.scores[key] = value
            write_bytes(self.file, json.dumps(self.scores).encode())
            names = " + ".join(checkpoint.path.name for checkpoint in chosen)
            screen.err.print(f"{value:.6g}  {names}", highlight=False, markup=False)
        return self.sign * self.scores[key]

    def forget(self) -> None:
        """Remove scores and candidates."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _candidate(self, members: Sequence[int]) -> float:
        from .. import soup
        from ..checkpoints import plan_average

        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.folder / "candidate"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        plan = plan_average(
            [self.plan.checkpoints[place] for place in members], home / self.plan.target.name, soup.uniform
        )
        with screen.byte_bar(f"soup of {len(members)}", plan.bytes_read + plan.bytes_written) as report:
            path = plan.run(report, restart=True)
        try:
            return ask(self.words, path)
        finally:
            shutil.rmtree(home)


def forget_finished(target: Path, kind: str) -> None:
    """Remove the scores of an output that is there: a process that was killed as it ended has left them."""
    if target.exists():
        shutil.rmtree(target.parent / f".{target.name}.{kind}", ignore_errors=True)


def words_of(command: str) -> list[str]:
    """Return the words of a score command.

    Raises:
        ValueError: the command has no `{}`, or is not to be parsed.
    """
    if "{}" not in command:
        raise ValueError(f"--score wants {{}} where the candidate's path goes, got {command!r}")
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ValueError(f"--score cannot be split into words ({error}): {command!r}") from None


def ask(command: Sequence[str], path: Path) -> float:
    """Return the last number that the command prints about the checkpoint at `path`.

    Raises:
        RuntimeError: the command failed, or printed no number.
    """
    words = [word.replace("{}", str(path)) for word in command]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise RuntimeError(f"the score command cannot be run ({error}): {shlex.join(words)}") from None
    if done.returncode:
        raise RuntimeError(f"the score command failed with exit code {done.returncode}: {shlex.join(words)}")
    numbers = _NUMBER.findall(done.stdout)
    value = float(numbers[-1]) if numbers else math.nan
    if math.isnan(value):
        last = (done.stdout.split("\n") or [""])[-2:]
        raise RuntimeError(f"the score command printed no number at its end but {last}: {shlex.join(words)}")
    return value
