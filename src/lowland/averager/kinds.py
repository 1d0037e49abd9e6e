"""Classes by the names that state files call them."""

from __future__ import annotations

import sys
from typing import TypeVar

Kind = TypeVar("Kind")


class Kinds(dict[str, Kind]):
    """The classes defined so far, and those that the package's door loads when their names are asked for.

    A file may name a method before anything else has loaded it.

    >>> from lowland.averager import KINDS
    >>> "SWAG" in KINDS, "os" in KINDS
    (True, False)
    """

    def __contains__(self, name: object) -> bool:
        door = sys.modules[__name__.partition(".")[0]]
        if not super().__contains__(name) and name in getattr(door, "_NAMES", ()):
            getattr(door, str(name))
        return super().__contains__(name)
