"""Which tensors a run collects: chosen once, since a property such as `requires_grad` may change while it runs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ..averager.averager import Averager
from ..weights.named import Select, Weights, bare_name, floating, parameters, weights_of


class Choice:
    """The tensors that an averager is shown, by the names that its predicate chose at first.

    A layer that is frozen later stays in the average: its last weights are what the model goes on with. One that is
    unfrozen later is refused, since the average would be measured beside weights that it does not hold.

    >>> from lowland import SWA
    >>> from lowland.weights import trainable
    >>> model, choice = nn.Linear(1, 1), Choice(SWA(select=trainable))
    >>> _ = choice.of(model), model.bias.requires_grad_(False)
    >>> sorted(choice.of(model))
    ['bias', 'weight']
    """

    def __init__(self, averager: Averager, select: Select | None = None) -> None:
        self._select = averager.select if select is None else select
        self._names: frozenset[str] | None = None
        self._steady = self._select in (parameters, floating)  # they ask nothing that changes

    def fix(self, names: Iterable[str]) -> None:
        """Go on with these names, as a resumed averager holds them."""
        self._names = frozenset(names)

    def of(self, model: nn.Module) -> Weights:
        """Return the tensors to collect.

        Raises:
            ValueError: a tensor is chosen now that was not chosen at first; the message names it.
        """
        if self._steady:
            return weights_of(model, self._select)
        if self._names is None:
            weights = weights_of(model, self._select)
            self.fix(weights)
            return weights
        names = self._names
        fresh: list[str] = []

        def chosen(name: str, tensor: Tensor) -> bool:
            known = bare_name(name) in names
            if not known and self._select(name, tensor):
                fresh.append(name)
            return known

        weights = weights_of(model, chosen)
        if fresh:
            raise ValueError(
                f"{fresh[:5]} ({len(fresh)} in all) are chosen now and were not at the first update: were they "
                "unfrozen since? The average does not hold them; begin a new averager here, or choose what is "
                "averaged by its name, with select=matching(...)"
            )
        return weights
