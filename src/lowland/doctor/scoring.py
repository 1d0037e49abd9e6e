"""Scores of mixtures of the ingredients: each is asked for once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arithmetic.moments import wide
from ..batchnorm.refresh import refresh_bn
from ..batchnorm.statistics import layers_of
from ..weights.named import Weights, applied, clone_of, floating, weights_of
from ..weights.running import call
from .survey import STATISTICS

Values = np.ndarray[Any, np.dtype[np.float64]]  # one an example, or one number
Answer = float | Tensor | Sequence[float]
Scored = Callable[[Weights], Answer]
Mixed = Callable[[Sequence[int], Sequence[float]], Answer]


@torch.no_grad()
def mixed(ingredients: Sequence[Weights], places: Sequence[int], shares: Sequence[float]) -> dict[str, Tensor]:
    """Return the sum of ingredients times their shares, in float32 or wider; other tensors are the first one's.

    >>> mixed([{"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}], [0, 1], [0.5, 0.5])
    {'w': tensor(2.)}
    """
    first = ingredients[places[0]]
    result = {}
    for name in first:
        like = first[name]
        if not like.is_floating_point():
            result[name] = like.detach().clone()
            continue
        result[name] = torch.zeros_like(like, dtype=wide(like.dtype))
        for place, share in zip(places, shares, strict=True):
            other = ingredients[place][name]
            result[name].add_(other.detach().to(like.device, wide(like.dtype)), alpha=share)
    return result


def with_statistics(
    model: nn.Module, weights: Weights, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object] | None
) -> dict[str, Tensor]:
    """Return the weights with the running statistics that `batches` give under them; the model is put back.

    >>> model = nn.BatchNorm1d(1)
    >>> round(with_statistics(model, weights_of(model), [torch.tensor([[4.0], [8.0]])], None)["running_mean"].item(), 4)
    6.0
    """
    with applied(model, weights):
        refresh_bn(model, batches, forward=forward)
        fresh = clone_of({name: t for name, t in weights_of(model, floating).items() if _statistic(name)})
    return {**weights, **fresh}


class Scores:
    """The scores of mixtures of `ingredients`, higher is better, kept once they are known.

    Args:
        score: takes weights and returns a number or one an example. mixture: does the same for places and shares,
            where weights need not be in memory; one of the two.
        model, batches, forward: where the model has BatchNorm, its statistics are refreshed before every score.

    >>> found = Scores([{"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}], score=lambda weights: -weights["w"])
    >>> found((0, 1), (0.5, 0.5))
    array([-2.])
    """

    def __init__(
        self,
        ingredients: Sequence[Weights],
        *,
        score: Scored | None = None,
        mixture: Mixed | None = None,
        model: nn.Module | None = None,
        batches: Iterable[Any] | None = None,
        forward: Callable[[nn.Module, Any], object] | None = None,
    ) -> None:
        self.ingredients = ingredients
        self._score, self._mixture = score, mixture
        self.model, self.batches, self.forward = model, batches, forward
        self.refreshes = model is not None and batches is not None and bool(layers_of(model))
        self._known: dict[tuple[tuple[int, ...], tuple[float, ...], bool], Values] = {}

    @property
    def asks(self) -> bool:
        """Return whether there is a score."""
        return self._score is not None or self._mixture is not None

    def __call__(self, places: Sequence[int], shares: Sequence[float], *, refreshed: bool = True) -> Values:
        """Return the score: one value, or one an example.

        Raises:
            RuntimeError: the score raised. ValueError: it is no number and no row of them, or of another length.
        """
        pairs = [pair for pair in zip(places, shares, strict=True) if pair[1] or len(places) == 1]
        refreshed = refreshed and self.refreshes
        key = (tuple(p for p, _ in pairs), tuple(s for _, s in pairs), refreshed)
        if key not in self._known:
            self._known[key] = self._ask(key[0], key[1], refreshed)
        return self._known[key]

    def weights(self, places: Sequence[int], shares: Sequence[float], refreshed: bool = True) -> Weights:
        """Return a mixture, with fresh statistics where the model has any."""
        made = mixed(self.ingredients, places, shares)
        if refreshed and self.refreshes and self.model is not None and self.batches is not None:
            return with_statistics(self.model, made, self.batches, self.forward)
        return made

    def outputs(self, places: Sequence[int], shares: Sequence[float], most: int = 4) -> Tensor | None:
        """Return the model's outputs on the first batches under a mixture, or None where they are no tensors."""
        if self.model is None or self.batches is None:
            return None
        run = call if self.forward is None else self.forward
        found = []
        with torch.no_grad(), applied(self.model, self.weights(places, shares)):
            modes = [(module, module.training) for module in self.model.modules()]
            self.model.eval()
            try:
                for _, batch in zip(range(most), self.batches, strict=False):
                    output = run(self.model, batch)
                    output = getattr(output, "logits", output)
                    if not isinstance(output, Tensor):
                        return None
                    found.append(output.detach().double().reshape(len(output), -1).cpu())
            finally:
                for module, mode in modes:
                    module.training = mode
        return torch.cat(found) if found else None

    def _ask(self, places: tuple[int, ...], shares: tuple[float, ...], refreshed: bool) -> Values:
        try:
            if self._mixture is not None:
                answer = self._mixture(places, shares)
            else:
                assert self._score is not None
                answer = self._score(self.weights(places, shares, refreshed))
        except Exception as error:
            what = " + ".join(f"{s:g} x ingredient {p}" for p, s in zip(places, shares, strict=True))
            raise RuntimeError(f"the score of {what} failed with {type(error).__name__}: {error}") from error
        plain = answer.detach().cpu().tolist() if isinstance(answer, Tensor) else answer
        values = np.atleast_1d(np.asarray(plain, dtype=np.float64))
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"a score must be a number, or one an example, got an array of shape {values.shape}")
        for other in self._known.values():
            if other.size != values.size:
                raise ValueError(f"scores must be of one length, got {values.size} after {other.size}")
        # With infinities differences are no numbers; the worst that a float holds compares as it should.
        return np.nan_to_num(values, nan=-1e300, neginf=-1e300, posinf=1e300)


def _statistic(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in STATISTICS
