"""Members that never meet: the baseline of every other rule, and a deep ensemble when they are done
(Lakshminarayanan, Pritzel, Blundell 2017, arXiv 1612.01474).
"""

from __future__ import annotations

from dataclasses import dataclass

from .members import Members, Named


@dataclass(frozen=True)
class Independent:
    """Mix nothing.

    >>> Independent().on_buffers, Independent().on_optimizer
    ('kept', 'kept')
    """

    on_buffers = "kept"
    on_optimizer = "kept"

    def needs(self) -> str:
        return ""

    def slots(self, members: Members) -> dict[str, list[Named]]:
        return {}

    def mix(self, members: Members) -> None:
        pass
