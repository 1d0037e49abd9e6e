"""Adaptive stochastic weight averaging (Demir, Sharma, Ngonga Ngomo 2024, arXiv 2406.19092).

With the running weights R, the average A of n models, its validation score s(A), and L = (n A + R) / (n + 1):

    hard:    A = R, n = 1        if s(R) > s(L) and s(R) > s(A)
    soft:    A = L, n = n + 1    else if s(L) > s(A)
    reject:  A and n stay        else
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .averager import Averager, Settings, Slot
from .moments import lerp_, wide_zeros
from .scores import judge
from .weights import Score, Select, Weights, clone_of, parameters


class Decision(NamedTuple):
    """What ASWA did at one update, and the scores that decided it.

    >>> Decision("soft", running=-2.0, ahead=-0.5, averaged=2).action
    'soft'
    """

    action: str  # first, hard, soft or reject
    running: float  # score of the weights shown
    ahead: float | None  # score of the average with them in it; None at the first update
    averaged: int  # models in the average afterwards


class ASWA(Averager):
    """An average that a validation score extends, replaces or leaves alone at each update.

    Usually updated once an epoch. An update scores twice, the weights shown and the look-ahead average, and
    keeps the score of the current average. The score gets copies in float32 or wider, which it may write
    into, and refreshes BatchNorm itself where there is any (inside `applied`). It must not change between
    updates: fix its data and its randomness. All tests are strict. After a hard update the average counts one
    model.

    `count` is the number of updates; `averaged` that of the models in the average; `best` the average's
    score.

    Args:
        score: what is maximised, of weights; a state holds its name only.

    Raises:
        ValueError: the score is no function; in `update`, the score is NaN. Nothing is changed then.
        RuntimeError: in `update`, the score raised. Nothing is changed then.

    >>> average = ASWA(score=lambda weights: -abs(weights["w"].item() - 5))
    >>> for w in (0.0, 4.0, 7.0, 3.0, 6.0, 20.0):
    ...     average.update({"w": torch.tensor(w)})
    >>> average.mean(), average.averaged, average.best
    ({'w': tensor(5.)}, 4, -0.0)
    >>> [decision.action for decision in average.trace]
    ['first', 'hard', 'soft', 'soft', 'soft', 'reject']
    """

    _may_run_beside = False  # the score may use the very model that is being trained

    def __init__(
        self,
        score: Score,
        *,
        select: Select = parameters,
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__(select=select, device=device, check_finite=check_finite)
        if not callable(score):
            raise ValueError(
                f"score must be a function from weights to a number, got {score!r}; a file holds only its name: "
                "pass it again with score="
            )
        self.score = score
        self.trace: list[Decision] = []

    @property
    def averaged(self) -> int:
        """How many models the average holds."""
        return self.trace[-1].averaged if self.trace else 0

    @property
    def best(self) -> float | None:
        """The score of the average; None before the first update."""
        for action, running, ahead, _ in reversed(self.trace):
            if action != "reject":
                return ahead if action == "soft" else running
        return None

    @property
    def settings(self) -> Settings:
        return {"score": getattr(self.score, "__qualname__", type(self.score).__qualname__)}

    def _scalars(self) -> Settings:
        # Flat lists of plain values: a list of records would be taken apart by sharded checkpoints.
        return {field: [getattr(decision, field) for decision in self.trace] for field in Decision._fields}

    def _set_scalars(self, scalars: Settings) -> None:
        columns = [scalars.get(field, ()) for field in Decision._fields]
        if len({len(column) for column in columns}) > 1 or not scalars:
            raise ValueError(f"the state of ASWA must hold lists of one length under {Decision._fields}, got {scalars}")
        self.trace = [Decision(*row) for row in zip(*columns, strict=True)]

    def _allocate(self, like: Slot) -> dict[str, Slot]:
        return {"average": wide_zeros(like)}

    def _absorb(self, weights: Weights) -> None:
        average = self._slots["average"]
        # A copy before the first score: a score that evaluates in the live model would change `weights` under us.
        running = {name: torch.empty_like(tensor).copy_(weights[name]) for name, tensor in average.items()}
        s_running = judge(self.score, running, "the running weights")
        best = self.best
        if best is None:
            return self._take_(running, Decision("first", s_running, None, 1))
        n = self.averaged
        ahead = clone_of(average)
        lerp_(ahead.values(), running.values(), 1 / (n + 1))
        s_ahead = judge(self.score, ahead, "the look-ahead average")
        if s_running > s_ahead and s_running > best:
            self._take_(running, Decision("hard", s_running, s_ahead, 1))
        elif s_ahead > best:
            self._take_(ahead, Decision("soft", s_running, s_ahead, n + 1))
        else:
            self.trace.append(Decision("reject", s_running, s_ahead, n))

    def _take_(self, weights: dict[str, Tensor], decision: Decision) -> None:
        for name, tensor in self._slots["average"].items():
            tensor.copy_(weights[name])
        self.trace.append(decision)

    def mean(self) -> dict[str, Tensor]:
        self._need()
        return clone_of(self._slots["average"])
