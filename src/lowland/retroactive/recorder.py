"""Keep, during training, what retroactive averaging needs: averages written every so often, in a bounded number.

Two power EMAs of different widths (`EMA(Power.of_width(0.05))` and `EMA(Power.of_width(0.1))`), written at several
steps, span EMAs of many other widths and ends; SWA written at several steps spans the windows between them, since the
means up to two steps give the mean between the two. Files are states of their averagers, each written atomically.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from ..averager.averager import Averager
from ..files.header import header_of
from ..files.state import load, save
from ..weights.named import Weights
from .profiles import profile_of
from .records import Recorded

_NAME = re.compile(r"(\d+)-(\d+)\.safetensors")  # step-averager


class Recorder:
    """Updates averagers at every step and writes them every `every` steps, keeping `most` steps and the latest.

    When there are more, every second one is deleted and `every` doubles: what stays is evenly spaced, and a run of any
    length fits.

    Args:
        folder: made if it does not exist; it must hold no other record (go on with one by `resume`).
        averagers: fresh ones whose means have a profile over the steps (`profiles.profile_of`).
        every: steps between two writings.
        most: evenly spaced steps to keep, 2 or more. Disk space is `most` + 1 times the averagers' states.

    Raises:
        ValueError: there is no averager, one has no known profile, a number is out of range, or the folder holds a
            record.

    >>> import tempfile, torch, lowland
    >>> folder = tempfile.mkdtemp()
    >>> record = Recorder(folder, [lowland.SWA()], every=2, most=2)
    >>> for step in range(1, 9):
    ...     record.update({"w": torch.tensor([float(step)])})
    >>> [str(one.profile) for one in recorded(folder)], record.every
    (['window of 4', 'window of 8'], 4)
    """

    def __init__(
        self, folder: str | os.PathLike[str], averagers: Sequence[Averager], *, every: int, most: int = 64
    ) -> None:
        if not averagers:
            raise ValueError("a recorder needs at least one averager, got none")
        if every < 1 or most < 2:
            raise ValueError(f"every must be at least 1 and most at least 2, got {every} and {most}")
        for averager in averagers:
            profile_of(type(averager).__name__, averager.settings, 1)
            if averager.count:
                raise ValueError(f"a recorder takes fresh averagers, got {averager}: its profile would not be known")
        self.folder, self.averagers, self.every, self.most = Path(folder), list(averagers), every, most
        self.step = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._fresh = not _steps(self.folder)

    def update(self, model_or_weights: nn.Module | Weights) -> None:
        """Show every averager the weights after one more step; write when it is time.

        Raises:
            ValueError: the folder holds a record that was not resumed; an averager refused the weights.
            OSError: the files cannot be written.
        """
        if not self._fresh:
            raise ValueError(f"{self.folder} holds a record already: call resume() first, or choose another folder")
        for averager in self.averagers:
            averager.update(model_or_weights)
        self.step += 1
        if self.step % self.every == 0:
            self.write()

    def write(self) -> None:
        """Write the averages of now, as after the last step of a run. Does nothing before the first step."""
        if self.step == 0:
            return
        for place, averager in enumerate(self.averagers):
            save(averager, self.folder / f"{self.step:09d}-{place}.safetensors")
        held = _steps(self.folder)
        while sum(step % self.every == 0 for step in held) > self.most:
            self.every *= 2  # only a doubled interval keeps what is left evenly spaced
        self._drop([step for step in held if step % self.every and step != self.step])

    def resume(self, step: int | None = None) -> int:
        """Take up the record in the folder where it stopped, or at an earlier recorded `step`; return that step.

        Later files are deleted: the training that goes on from `step` writes them anew. An empty folder is step 0.

        Raises:
            ValueError: `step` is not one at which every averager was written; the message says which are.
        """
        whole = [at for at, held in _steps(self.folder).items() if held == set(range(len(self.averagers)))]
        if step is None:
            step = max(whole, default=0)
        if step and step not in whole:
            raise ValueError(f"step {step} is not recorded; recorded are {whole[-10:]}")
        for place, averager in enumerate(self.averagers):
            if step:
                stored = load(self.folder / f"{step:09d}-{place}.safetensors")
                averager.load_state_dict(stored.state_dict())
        self._drop([at for at in _steps(self.folder) if at > step])
        kept = [at for at in _steps(self.folder) if at % self.every == 0]
        while len(kept) > 1 and min(b - a for a, b in zip(kept, kept[1:], strict=False)) > self.every:
            self.every *= 2  # thinned before
        self.step, self._fresh = step, True
        return step

    def _drop(self, steps: Sequence[int]) -> None:
        for path in self.folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and int(match[1]) in steps:
                path.unlink()


def recorded(folder: str | os.PathLike[str]) -> list[Recorded]:
    """Return what a `Recorder` left in a folder, the earliest first; the tensors are read later, when needed.

    Raises:
        FileNotFoundError: there is no such folder, or no record in it.
        ValueError: a file is damaged or not of an averager with a known profile.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*.safetensors") if _NAME.fullmatch(path.name))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no record: pass the folder that a Recorder wrote to")
    found = []
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                header = header_of(file.metadata())
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} is no whole safetensors file ({error}): delete it") from None
        if header is None:
            raise ValueError(f"{path} was not written by a Recorder: move it out of the folder")
        found.append(Recorded(profile_of(header["class"], header["settings"], header["count"]), path))
    return found


def _steps(folder: Path) -> dict[int, set[int]]:
    """The places of the averagers written at each recorded step."""
    held: dict[int, set[int]] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match:
            held.setdefault(int(match[1]), set()).add(int(match[2]))
    return held
