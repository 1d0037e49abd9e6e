"""How a study tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener. Work is counted in texts that pass the encoder."""

    def say(self, line: str) -> None:
        """Something that a reader of the results must know."""

    def plan(self, total: float) -> None:
        """The whole study takes so much work."""

    def begin(self, stage: str, work: float) -> None:
        """A stage begins; it takes so much of the whole."""

    def advance(self, work: float) -> None:
        """So much work is done since the last call."""

    def end(self, line: str) -> None:
        """The stage is over; `line` says how it went."""


class Silent:
    """A listener that does nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def plan(self, total: float) -> None:
        """Do nothing."""

    def begin(self, stage: str, work: float) -> None:
        """Do nothing."""

    def advance(self, work: float) -> None:
        """Do nothing."""

    def end(self, line: str) -> None:
        """Do nothing."""
