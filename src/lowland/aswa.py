"""Adaptive stochastic weight averaging (Demir, Sharma, Ngonga Ngomo 2024, arXiv 2406.19092).

With the running weights R, the average A of n models, its validation score s(A), and L = (n A + R) / (n + 1):

    hard:    A = R, n = 1        if s(R) > s(L) and s(R) > s(A)
    soft:    A = L, n = n + 1    else if s(L) > s(A)
    reject:  A and n stay        else
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .arguments import whole
from .arithmetic.moments import lerp_, wide_zeros
from .arithmetic.philox import new_key
from .averager.acceptance import favour
from .averager.averager import Averager, Settings, Slot
from .averager.scores import EachScore, judge, judge_each
from .weights.named import Score, Select, Weights, clone_of, parameters


class Decision(NamedTuple):
    """What ASWA did at one update, and the scores that decided it.

    >>> Decision("soft", running=-2.0, ahead=-0.5, averaged=2).accepted
    True
    """

    action: str  # first, hard, soft or reject
    running: float  # score of the weights shown
    ahead: float | None  # score of the average with them in it; None where it was not needed
    averaged: int  # models in the average afterwards
    favour: float | None = None  # share of resamples in which the new average is better; None where none were made

    @property
    def accepted(self) -> bool:
        """Whether the weights shown entered the average: every action but reject."""
        return self.action != "reject"


class ASWA(Averager):
    """An average that a validation score extends, replaces or leaves alone at each update.

    Usually updated once an epoch, or every so many steps. An update scores twice, the weights shown and the look-ahead
    average; the score of the average is kept. The score gets copies in float32 or wider, which it may write into, and
    refreshes BatchNorm itself where there is any (inside `applied`). It must not change between updates: fix its data
    and its randomness. All tests are strict. After a hard update the average counts one model.

    With `level`, an update must also be better in that share of bootstrap resamples of the validation examples, paired:
    for it the score returns a value for each example, of the same examples in the same order, and s is their mean.

    `count` is the number of updates; `averaged` that of the models in the average; `best` the average's
    score; `trace` holds the decision of every update.

    Args:
        score: what is maximised, of weights; a state holds its name only.
        level: between 0.5 and 1, such as 0.95; None takes every update that raises the score.
        resamples: of the bootstrap.
        generator: one key is drawn from it here, and kept in the state: a resumed run goes on with the same resamples.
        select: which tensors of a model are taken; a mapping given to `update` is taken as it is.
        device: where averages are kept; None: beside the weights.
        check_finite: refuse an iterate with a NaN or an infinity, by the name of its tensor.

    Raises:
        ValueError: the score is no function, an argument is out of range; in `update`, the score is NaN, or
            has the wrong shape. Nothing is changed then.
        RuntimeError: in `update`, the score raised. Nothing is changed then.

    >>> average = ASWA(score=lambda weights: -abs(weights["w"].item() - 5))
    >>> for w in (0.0, 4.0, 7.0, 3.0, 6.0, 20.0):
    ...     average.update({"w": torch.tensor(w)})
    >>> average.mean(), average.averaged, average.best
    ({'w': tensor(5.)}, 4, -0.0)
    >>> [decision.action for decision in average.trace]
    ['first', 'hard', 'soft', 'soft', 'soft', 'reject']
    """

    _asks_the_user = True  # the score may use the very model that is being trained

    def __init__(
        self,
        score: Score | EachScore,
        *,
        level: float | None = None,
        resamples: int = 1000,
        generator: torch.Generator | None = None,
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
        if level is not None and not 0.5 <= level < 1:
            raise ValueError(f"level must lie in [0.5, 1), got {level}: 0.95 wants 95 of 100 resamples to agree")
        self.score, self.level, self.resamples = score, level, whole("resamples", resamples, 1)
        self.trace: list[Decision] = []
        self._key = 0 if level is None else new_key(generator)
        self._values: list[float] = []  # of the average: one score, or one for each example

    @property
    def averaged(self) -> int:
        """How many models the average holds."""
        return self.trace[-1].averaged if self.trace else 0

    @property
    def best(self) -> float | None:
        """The score of the average; None before the first update."""
        return _mean(self._values) if self._values else None

    @property
    def settings(self) -> Settings:
        named: Settings = {"score": getattr(self.score, "__qualname__", type(self.score).__qualname__)}
        if self.level is not None:
            named |= {"level": self.level, "resamples": self.resamples}
        return named

    def _scalars(self) -> Settings:
        # Flat lists of plain values: a list of records would be taken apart by sharded checkpoints.
        columns = {field: [getattr(decision, field) for decision in self.trace] for field in Decision._fields}
        return {**columns, "values": list(self._values), "key": self._key}

    def _set_scalars(self, scalars: Settings) -> None:
        columns = {field: scalars.get(field, []) for field in Decision._fields}
        if "favour" not in scalars and isinstance(columns["action"], list):  # written before there was a gate
            columns["favour"] = [None] * len(columns["action"])
        if (
            not scalars
            or not all(isinstance(c, list) for c in columns.values())
            or len(set(map(len, columns.values()))) > 1
        ):
            raise ValueError(f"the state of ASWA must hold lists of one length under {Decision._fields}, got {scalars}")
        trace = [_decision(*row) for row in zip(*columns.values(), strict=True)]
        taken = next((decision for decision in reversed(trace) if decision.accepted), None)
        known = [] if taken is None else [taken.ahead if taken.action == "soft" else taken.running]
        values = scalars.get("values", known)
        if not isinstance(values, list) or not all(map(_number, values)) or bool(values) != bool(trace):
            raise ValueError(f"the state of ASWA must hold the scores of its average, got {values!r}")
        self._key = whole("the key in the state of ASWA", scalars.get("key", self._key), 0, 2**64 - 1)
        self._values = list(values)
        self.trace = trace

    def _allocate(self, like: Slot) -> dict[str, Slot]:
        return {"average": wide_zeros(like)}

    def _absorb(self, weights: Weights) -> None:
        average, n = self._slots["average"], self.averaged
        # A copy before the first score: a score that evaluates in the live model would change `weights` under us.
        running = {name: torch.empty_like(tensor).copy_(weights[name]) for name, tensor in average.items()}
        shown = self._judge(running, "the running weights")
        s_running = _mean(shown)
        if not self.trace:
            return self._take_(running, shown, Decision("first", s_running, None, 1))
        ahead = clone_of(average)
        lerp_(ahead.values(), running.values(), 1 / (n + 1))
        looked = self._judge(ahead, "the look-ahead average")
        s_ahead, best, better = _mean(looked), _mean(self._values), None
        if s_running > s_ahead and s_running > best:
            better = self._favour(shown)
            if self._enough(better):
                return self._take_(running, shown, Decision("hard", s_running, s_ahead, 1, better))
        if s_ahead > best:
            better = self._favour(looked)
            if self._enough(better):
                return self._take_(ahead, looked, Decision("soft", s_running, s_ahead, n + 1, better))
        self.trace.append(Decision("reject", s_running, s_ahead, n, better))

    def _judge(self, weights: Weights, what: str) -> list[float]:
        if self.level is None:
            return [judge(cast(Score, self.score), weights, what)]
        values: list[float] = judge_each(cast(EachScore, self.score), weights, what).tolist()
        if self._values and len(values) != len(self._values):
            raise ValueError(
                f"the score of {what} has {len(values)} values, that of the average {len(self._values)}; nothing is "
                "changed: score the same examples at every update"
            )
        return values

    def _favour(self, new: list[float]) -> float | None:
        if self.level is None:
            return None
        generator = torch.Generator().manual_seed((self._key + self.count) % 2**63)
        pairs = zip(new, self._values, strict=True)
        difference = torch.tensor([one - other for one, other in pairs], dtype=torch.float64, device="cpu")
        return favour(difference, resamples=self.resamples, generator=generator)

    def _enough(self, share: float | None) -> bool:
        return share is None or self.level is None or share >= self.level

    def _take_(self, weights: dict[str, Tensor], values: list[float], decision: Decision) -> None:
        for name, tensor in self._slots["average"].items():
            tensor.copy_(weights[name])
        self._values = values
        self.trace.append(decision)

    def mean(self) -> dict[str, Tensor]:
        with self._lock:
            self._need()
            return clone_of(self._slots["average"])


def _mean(values: list[float]) -> float:
    return values[0] if len(values) == 1 else math.fsum(values) / len(values)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _decision(action: object, running: object, ahead: object, averaged: object, favour: object) -> Decision:
    decision = Decision(action, running, ahead, averaged, favour)  # type: ignore[arg-type]
    numbers = all(value is None or _number(value) for value in (ahead, favour))
    if action not in ("first", "hard", "soft", "reject") or not _number(running) or not numbers:
        raise ValueError(f"the state of ASWA holds no decision in {decision}: it is damaged")
    whole("averaged in the state of ASWA", averaged, 0)
    return decision
