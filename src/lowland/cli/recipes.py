"""Which average a command asks for: the checkpoints that it takes, and what each is multiplied with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..checkpoints import Merge

_OVER = re.compile(r"(\d+(?:\.\d+)?)\s*(%|steps?|ckpts?|checkpoints?)")


@dataclass(frozen=True)
class Recipe:
    """The paths of an average, what reduces them, its name, and the coefficients where they are known beforehand."""

    paths: list[Path]
    merge: Merge
    title: str
    coefficients: list[float] | None


@dataclass(frozen=True)
class Asked:
    """The options of `lowland average` that say which average."""

    weights: str | None = None
    raw_weights: str | None = None
    ema: float | None = None
    half_life: float | None = None
    decay: str | None = None
    over: str | None = None
    last: int | None = None
    blend: float | None = None

    @property
    def keeps_order(self) -> bool:
        """Whether numbers belong to the inputs in the order in which they were typed."""
        return self.weights is not None or self.raw_weights is not None

    def check(self) -> None:
        """Refuse options that exclude each other.

        Raises:
            ValueError: names them.
        """
        ways = {
            "--weights": self.weights,
            "--raw-weights": self.raw_weights,
            "--ema": self.ema,
            "--half-life": self.half_life,
            "--decay": self.decay,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one")
        if self.last is not None and (self.keeps_order or self.over is not None):
            other = "--over" if self.over is not None else given[0]
            raise ValueError(f"--last and {other} exclude each other: name the checkpoints that you want")
        if self.over is not None and self.keeps_order:
            raise ValueError(f"--over and {given[0]} exclude each other: name the checkpoints that you want")

    def recipe(self, paths: Sequence[Path]) -> Recipe:
        """Return what these options make of checkpoints.

        Raises:
            ValueError: an option does not fit.
        """
        from .. import SWA
        from .. import soup as soups
        from ..checkpoints import through

        chosen = tail(paths, self.last) if self.over is None else within(paths, self.over)
        made, title = self._coefficients(chosen)
        if self.blend is not None:
            from ..retroactive import blended

            made = blended(made or [1 / len(chosen)] * len(chosen), self.blend)
            return Recipe(chosen, partial(soups.combined, coefficients=made), f"{title} by {self.blend:g}", made)
        if self.ema is not None or self.half_life is not None:
            from .. import EMA

            return Recipe(chosen, through(partial(EMA, decay=self._decay())), title, made)
        if made is None:
            return Recipe(chosen, through(SWA), title, None)
        if self.weights is not None:
            shares = partial(soups.weighted, coefficients=numbers("--weights", self.weights), normalise=True)
            return Recipe(chosen, shares, title, made)
        return Recipe(chosen, partial(soups.combined, coefficients=made), title, made)

    def _coefficients(self, paths: Sequence[Path]) -> tuple[list[float] | None, str]:
        count = len(paths)
        for name, text in (("--weights", self.weights), ("--raw-weights", self.raw_weights)):
            if text is None:
                continue
            shares = numbers(name, text)
            if len(shares) != count:
                raise ValueError(f"{name} wants one number for each of {count} checkpoints, got {len(shares)}")
            if name == "--raw-weights":
                return shares, "sum"
            total = math.fsum(shares)
            if not total > 0:
                raise ValueError(f"--weights wants numbers with a positive sum, got {text}: see --raw-weights")
            return [share / total for share in shares], "weighted average"
        if self.ema is not None or self.half_life is not None:
            from .. import EMA

            decay = self._decay()
            EMA(decay)  # refuses what is no decay before anything is read
            shares = [(1 - decay) * decay ** (count - 1 - place) for place in range(count)]
            return [decay ** (count - 1), *shares[1:]], f"exponential average, decay {decay:.6g}"
        if self.decay is not None:
            return self._decayed(paths), f"average in place of a {self.decay} decay"
        return None, "average"

    def _decay(self) -> float:
        from ..ema import half_life

        if self.ema is not None:
            return self.ema
        if self.half_life is None or not self.half_life > 0:
            raise ValueError(f"--half-life wants a positive number of checkpoints, got {self.half_life:g}")
        return half_life(self.half_life)

    def _decayed(self, paths: Sequence[Path]) -> list[float]:
        from ..retroactive import decayed, of_rates, rates_from

        steps = steps_of(paths) or [float(place) for place in range(1, len(paths) + 1)]
        assert self.decay is not None
        if Path(self.decay).is_file():
            return of_rates(rates_from(self.decay, steps))
        return decayed(self.decay, steps)


def numbers(option: str, text: str) -> list[float]:
    """Return the numbers of an option.

    Raises:
        ValueError: there is something else, or one is not finite.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} wants numbers with commas between them, got {text!r}") from None
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{option} wants finite numbers, got {text}")
    return found


def tail(paths: Sequence[Path], last: int | None) -> list[Path]:
    """Return the last of some paths.

    Raises:
        ValueError: there are not so many.
    """
    if last is None:
        return list(paths)
    if not 1 <= last <= len(paths):
        raise ValueError(f"--last must lie between 1 and the number of checkpoints, {len(paths)}; got {last}")
    return list(paths[-last:])


def steps_of(paths: Sequence[Path]) -> list[float] | None:
    """Return the steps of checkpoints, the last number in each name, or None where they do not rise.

    >>> steps_of([Path("checkpoint-900"), Path("epoch=2-step=1000.ckpt")])
    [900.0, 1000.0]
    """
    found = [re.findall(r"\d+", path.name.removesuffix(path.suffix) or path.name) for path in paths]
    if not all(found):
        return None
    steps = [float(own[-1]) for own in found]
    rising = all(later > earlier for earlier, later in zip(steps, steps[1:], strict=False))
    return steps if rising else None


def within(paths: Sequence[Path], over: str) -> list[Path]:
    """Return the checkpoints of the last part of a run: `20%` of its steps, `100step`, or `5ckpt`.

    Raises:
        ValueError: the text is none of these, there are no steps in the names, or nothing lies there.
    """
    found = _OVER.fullmatch(over.strip())
    if found is None:
        raise ValueError(f"--over wants a share such as 20%, or 100step or 5ckpt, got {over!r}")
    amount, unit = float(found.group(1)), found.group(2)
    if unit.startswith(("ckpt", "checkpoint")):
        if amount != int(amount) or not 1 <= amount <= len(paths):
            raise ValueError(f"--over {over}: there are {len(paths)} checkpoints")
        return list(paths[-int(amount) :])
    steps = steps_of(paths)
    if steps is None:
        raise ValueError(f"--over {over} wants rising steps in the names, such as checkpoint-900; 5ckpt counts files")
    length = amount / 100 * steps[-1] if unit == "%" else amount
    if not 0 < length or (unit == "%" and amount > 100):
        raise ValueError(f"--over wants a part of the run, got {over}")
    begin = steps[-1] - length
    return [path for path, step in zip(paths, steps, strict=True) if step > begin + 1e-9 * steps[-1]]
