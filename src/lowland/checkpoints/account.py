"""What becomes of every tensor of every input: averaged, carried along, or left out and named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .layout import Checkpoint, Left


@dataclass(frozen=True)
class Account:
    """Names of tensors that are averaged, of those that are carried along, and what is left out of which inputs.

    Args:
        carried: tensors that are those of the last input, and what a torch file holds beside its weights.
        left: each with the numbers of the inputs, from 0 on. said: what was done to make the inputs fit, in words.
    """

    averaged: tuple[str, ...]
    carried: tuple[str, ...]
    left: tuple[tuple[Left, tuple[int, ...]], ...]
    said: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "averaged": list(self.averaged),
            "carried": list(self.carried),
            "left": [
                {"name": left.name, "tensors": left.tensors, "why": left.why, "inputs": list(places)}
                for left, places in self.left
            ],
            "notes": list(self.said),
        }

    def lines(self, count: int, verb: str = "averaged") -> list[str]:
        """Return the closing lines for `count` inputs.

        >>> left = (Left("optimizer", 2, "training state"), (0, 1))
        >>> print("\\n".join(Account(("w",), ("steps",), (left,)).lines(2)))
        1 tensor averaged. Carried along as in the last input: steps.
        Left out: optimizer (2 tensors, training state).
        """
        first = f"{_plural(len(self.averaged), 'tensor')} {verb}."
        if self.carried:
            first += f" Carried along as in the last input: {_few(self.carried)}."
        found = [first]
        if self.left:
            found.append(f"Left out: {'; '.join(_told(left, places, count) for left, places in self.left[:_SHOWN])}.")
            if len(self.left) > _SHOWN:
                found[-1] += f" And {len(self.left) - _SHOWN} more: --json and the merge file name all."
        found += [f"Note: {sentence}." for sentence in self.said]
        return found


_SHOWN = 8


def account_of(
    checkpoints: Sequence[Checkpoint],
    averaged: Iterable[str],
    said: Sequence[str],
    *,
    carried: Iterable[str] = (),
    also: Iterable[tuple[Left, tuple[int, ...]]] = (),
) -> Account:
    """Gather what the inputs leave out."""
    left: dict[tuple[str, str, int], tuple[Left, list[int]]] = {}
    for place, checkpoint in enumerate(checkpoints):
        for own in checkpoint.left:
            left.setdefault((own.name, own.why, own.tensors), (own, []))[1].append(place)
    told = [(own, tuple(places)) for own, places in left.values()]
    return Account(tuple(averaged), tuple(carried), (*told, *also), tuple(said))


def _told(left: Left, places: Sequence[int], count: int) -> str:
    parts = [_plural(left.tensors, "tensor")] if left.tensors else []
    if places and len(places) < count:
        parts.append(f"of input {', '.join(str(place + 1) for place in places[:4])}" + (", ..." * (len(places) > 4)))
    return f"{left.name} ({', '.join([*parts, left.why])})"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
