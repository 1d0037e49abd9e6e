"""Several places in one pass of the model: how a measure runs where a batch has few rows.

The stacked forms of `lowland.predict` are meant for outputs; a loss wants each place's own. So the loss is called once
a place with a stand-in for the model, whose first call runs the pass for all places and whose others are answered
from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..predict.plans.nested import Opaque, mapped, tensors
from ..predict.plans.passes import tolerance
from ..predict.plans.places import Places
from ..predict.plans.prefix import Memo
from ..predict.plans.stacked import Stack, Unstackable

BYTES = 2**26  # of weights that are stacked at once
LONGER = 8  # times the places that fill a matrix product: a loss is cheap, and the rest of a pass is shared

Loss = Callable[[Any, Any], Any]


class Stacks:
    """Weights of several places by name, (S, *shape) each, as the stacked forms read them."""

    def __init__(self, stacks: Mapping[str, Tensor]) -> None:
        self.stacks = dict(stacks)


class Together:
    """The model's layers in their stacked forms, and the loss asked place by place.

    Raises:
        Unstackable: the model has no such forms, or its batch too many rows for a gain; or the forms do not give the
            loop's answer for the first two places.
    """

    def __init__(self, model: nn.Module, loss: Loss, places: Places, batch: Any, stacks: Mapping[str, Tensor]) -> None:
        memo = Memo(places)
        memo.independent = set()
        self._model, self._loss, self._stack = model, loss, Stack(places, memo)
        if not self._stack.formed:
            raise Unstackable("most weights belong to layers without a stacked form")
        pair = Stacks({name: stack[:2] for name, stack in stacks.items()})
        calls: list[Any] = []
        plain = []
        for number in (0, 1):
            own = {name: stack[number] for name, stack in pair.stacks.items()}
            with self._stack.measuring(), places.holding(own):
                stand = _Stand(model, lambda a, k: self._noted(calls, a, k))
                plain.append(as_numbers(loss(stand, batch)))
        if not calls:
            raise Unstackable("the loss does not call the model")
        arguments, rows = calls[0]
        self._stack.rows(arguments, rows)
        few = self._stack.together(arguments, 1 << 16)
        if few < 2:
            raise Unstackable("a batch has too many rows for several places in one pass to gain")
        self.count = max(2, min(LONGER * few, BYTES // max(places.bytes, 1)))  # places in a pass
        dtype = next(iter(pair.stacks.values())).dtype
        for got, wanted in zip(self.values(pair, batch), plain, strict=True):
            for name, value in wanted.items():
                if not abs(got[name] - value) <= tolerance(dtype, abs(value)):  # also where either is not finite
                    raise Unstackable("it gives another value than the loop")

    def _noted(self, calls: list[Any], args: Any, kwargs: Any) -> Any:
        output = self._model(*args, **kwargs)
        try:
            first = next(tensors(output), None)
        except Opaque as error:
            raise Unstackable(f"the model returns a {error}") from None
        rows = len(first) if first is not None and first.ndim else -1
        calls.append(((args, kwargs), rows))
        return output

    def values(self, held: Stacks, batch: Any) -> list[dict[str, float]]:
        """Return the loss of one batch at each place held.

        Raises:
            Unstackable, or whatever a model raises on rows that it was not made for.
        """
        count = len(next(iter(held.stacks.values())))
        outputs: list[tuple[Any, int]] = []
        found = []
        place = turn = 0

        def answer(args: Any, kwargs: Any) -> Any:
            nonlocal turn
            if turn == len(outputs):
                if place:
                    raise Unstackable("the loss calls the model more often at one place than at another")
                rows = self._stack.rows((args, kwargs))
                more_args, more_kwargs = self._stack.repeat((args, kwargs), count)
                with self._stack.several(held, 0, count, rows):  # type: ignore[arg-type]
                    outputs.append((self._model(*more_args, **more_kwargs), rows))
                self._stack.places.point_as_is(self._stack.nan)
            output, rows = outputs[turn]
            turn += 1
            return mapped(output, lambda tensor: _share(tensor, count, rows, place))

        stand = _Stand(self._model, answer)
        try:
            # A loss that reads weights by another way than the model's layers finds NaN, and not another place's.
            self._stack.places.point_as_is(self._stack.nan)
            for place in range(count):  # noqa: B007
                turn = 0
                found.append(as_numbers(self._loss(stand, batch)))
        finally:
            self._stack.places.back()
        return found


class _Stand:
    """Stands before a loss in the model's place; whatever is not a call is the model's own."""

    def __init__(self, model: nn.Module, answer: Callable[[Any, Any], Any]) -> None:
        self._own_model, self._own_answer = model, answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._own_answer(args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own_model, name)


def _share(tensor: Tensor, count: int, rows: int, place: int) -> Tensor:
    if tensor.ndim == 0 or len(tensor) != count * rows:
        raise Unstackable(f"the model returns {tuple(tensor.shape)}, not {count} times {rows} rows")
    return tensor[place * rows : (place + 1) * rows]


def as_numbers(found: object) -> dict[str, float]:
    """Return what a loss or a measure found as numbers by name; one number is called "loss".

    >>> as_numbers({"error": 1})
    {'error': 1.0}
    """
    named: Mapping[str, Any] = found if isinstance(found, Mapping) else {"loss": found}
    return {name: float(value) for name, value in named.items()}


def first_of(batches: Sequence[Any] | Any) -> Any:
    """Return the first batch, or None where there is none."""
    return next(iter(batches), None)
