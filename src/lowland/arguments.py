"""Arguments that many functions share, checked in one way and refused in one sentence."""

from __future__ import annotations

import operator
from typing import Any


def whole(name: str, value: Any, least: int, most: int | None = None, hint: str = "") -> int:
    """Return `value` as an int: a whole number of at least `least`, and at most `most`. A truth value is none.

    Args:
        hint: what else the argument may be, such as "None, or ".

    Raises:
        ValueError: it is not one.

    >>> whole("rank", 3, 2)
    3
    >>> whole("rank", 2.5, 2)
    Traceback (most recent call last):
    ...
    ValueError: rank must be a whole number of at least 2, got 2.5
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be {hint}a whole number of at least {least}, got {value!r}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}")
    return number


def check_generator(generator: object) -> None:
    """Refuse a generator that is not torch's, such as numpy's.

    Raises:
        ValueError: it is neither None nor a `torch.Generator`.

    >>> check_generator(None)
    >>> check_generator(7)
    Traceback (most recent call last):
    ...
    ValueError: generator must be a torch.Generator, got int: pass torch.Generator().manual_seed(seed)
    """
    import torch  # here, as the command line asks for whole numbers long before it needs torch

    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator must be a torch.Generator, got {type(generator).__name__}: "
            "pass torch.Generator().manual_seed(seed)"
        )
