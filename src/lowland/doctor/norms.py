"""BatchNorm statistics: how far those that are stored lie from those that the weights want.

    shift = max over channels of  max(|mean - mean'| / sigma', |log(sigma / sigma')|),     sigma^2 = var + 1e-5

for stored (mean, var) and fresh (mean', var'). Weights that were averaged have statistics of no forward pass: those of
their ingredients suit them only by luck.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..weights.named import Weights
from .along import Scale
from .findings import Finding
from .scoring import Scores
from .survey import Surveyed
from .weights_alone import SHIFT

_EPS = 1e-5  # of torch's layers


def layers(names: Sequence[str]) -> list[str]:
    """Return the layers of which both running statistics are among `names`.

    >>> layers(["bn.running_mean", "bn.running_var", "fc.weight", "running_mean", "running_var"])
    ['bn.', '']
    """
    held = set(names)
    prefixes = [name.removesuffix("running_mean") for name in names if name.endswith("running_mean")]
    return [prefix for prefix in prefixes if f"{prefix}running_var" in held]


def shift(stored: Weights, fresh: Weights, prefix: str) -> float:
    """Return how far the statistics of one layer moved, in standard deviations.

    >>> old = {"running_mean": torch.tensor([0.0]), "running_var": torch.tensor([1.0])}
    >>> round(shift(old, {"running_mean": torch.tensor([4.0]), "running_var": torch.tensor([4.0])}, ""), 3)
    2.0
    """
    means: list[Tensor] = [part[f"{prefix}running_mean"].detach().cpu().double() for part in (stored, fresh)]
    sigmas = [(part[f"{prefix}running_var"].detach().cpu().double() + _EPS).sqrt() for part in (stored, fresh)]
    moved = (means[0] - means[1]).abs() / sigmas[1]
    scaled = (sigmas[0] / sigmas[1]).log().abs()
    return float(torch.maximum(moved, scaled).max()) if moved.numel() else 0.0


def between(
    ingredients: Sequence[Weights], surveyed: Sequence[Surveyed], pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int, str, float]]:
    """Return for each pair and layer how far the stored statistics of two ingredients lie apart."""
    found = []
    for prefix in layers([one.name for one in surveyed]):
        for i, j in pairs:
            found.append((i, j, prefix.rstrip("."), shift(ingredients[i], ingredients[j], prefix)))
    return found


def drift(names: Sequence[str], scores: Scores, scale: Scale | None) -> list[Finding]:
    """Tell how far statistics are from fresh ones, for each ingredient that holds them and for the mean of all.

    With a score, also what refreshing changes.
    """
    if not scores.refreshes:
        return []
    n, found = len(names), []
    held = layers(list(scores.ingredients[0]))
    mixtures = [((place,), (1.0,), names[place]) for place in range(n) if held]
    mixtures.append((tuple(range(n)), tuple([1 / n] * n), "the mean"))  # type: ignore[arg-type]
    for places, shares, what in mixtures:
        stored = scores.weights(places, shares, refreshed=False)
        fresh = scores.weights(places, shares)
        shifts = [(shift(stored, fresh, prefix), prefix.rstrip(".")) for prefix in held]
        largest, layer = max(shifts, default=(None, ""))
        before = after = None
        if scale is not None:
            before = float(scores(places, shares, refreshed=False).mean())
            after = float(scores(places, shares).mean())
        costs = before is not None and after is not None and scale is not None and after - before > scale.tolerance
        # Without a score the shift decides; with one, what it costs.
        bad = costs if scale is not None else largest is not None and largest > SHIFT
        told = f"{largest:.2g} standard deviations from fresh ones in {layer}" if largest is not None else "not held"
        if before is not None:
            told += f"; score {before:.4g} before a refresh, {after:.4g} after"
        do = f"refresh the statistics of {what} on training batches (refresh_bn) before it is judged or used"
        values = {"shift": largest, "layer": layer, "score_before": before, "score_after": after}
        about = tuple(names[place] for place in places)
        says = f"statistics of {what}: {told}"
        found.append(Finding("norms", "warning" if bad else "ok", says, do if bad else "", about, values))
    return found
