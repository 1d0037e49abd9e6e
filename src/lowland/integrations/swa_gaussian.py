"""Read and write the state of the reference SWAG (Maddox et al. 2019, arXiv 1902.02476; package `swa-gaussian`).

Its state dict holds, for each parameter, `<name>_mean`, `<name>_sq_mean` (the raw second moment) and
`<name>_cov_mat_sqrt` (rows of deviations, oldest first, flattened), and `n_models`, the number of iterates collected.
Here the second moment is centred; `sq_mean - mean^2` is formed in float64, but what the float32 file has lost of it
stays lost, and where it came out negative the variance is zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..arithmetic import density
from ..arithmetic.moments import term
from ..swag import SWAG


@torch.no_grad()
def from_swa_gaussian(state: Mapping[str, Tensor], *, rank: int = 20, prefix: str = "base.") -> SWAG:
    """Return the SWAG that a state dict of the reference code describes.

    Args:
        state: what `torch.load(path, weights_only=True)` gives for a saved reference SWAG.
        rank: the reference's `max_num_models`; 0 if it was made with `no_cov_mat=True`.
        prefix: what stands before each parameter's name; the reference wraps its model as `base`.

    The reference's variance and its deviations say the same twice while all deviations are held: then the deviations
    count, which have not lost the digits that `sq_mean - mean^2` loses.

    The reference's `sample(scale=0.5)` with `max_num_models` collected is our `sample(scale=1)`.

    Raises:
        ValueError: the state holds no parameter's moments, lacks `n_models`, or holds more deviations than `rank`.

    >>> state = {"base.w_mean": torch.tensor([3.0]), "base.w_sq_mean": torch.tensor([12.5])}
    >>> state["n_models"] = torch.tensor([4])
    >>> from_swa_gaussian(state, rank=0).variance()["w"]
    tensor([3.5000])
    """
    names = [
        key.removeprefix(prefix).removesuffix("_sq_mean")
        for key in state
        if key.startswith(prefix) and key.endswith("_sq_mean")
    ]
    if not names:
        raise ValueError(f"the state holds no '{prefix}<name>_sq_mean', it has {sorted(state)[:5]}: check prefix=")
    if "n_models" not in state:
        raise ValueError("the state lacks n_models, the number of iterates collected")
    count = int(state["n_models"].item())
    if count < 1:
        raise ValueError(f"n_models must be at least 1, got {count}: the reference collected nothing")
    base = "evicted" if rank else "squares"
    slots: dict[str, dict[str, Tensor]] = {"mean": {}, base: {}}
    if rank:
        slots["deviations"] = {}
    for name in names:
        mean = state[f"{prefix}{name}_mean"]
        variance = (state[f"{prefix}{name}_sq_mean"].double() - mean.double().square()).clamp_min(0)
        slots["mean"][name] = mean.float()
        squares = variance * count
        if rank:
            rows = state.get(f"{prefix}{name}_cov_mat_sqrt")
            if rows is None:
                raise ValueError(f"the state holds no deviations of {name}: pass rank=0")
            if len(rows) != min(count, rank):
                raise ValueError(
                    f"the state holds {len(rows)} deviations of {name} after {count} iterates, rank={rank} wants "
                    f"{min(count, rank)}: pass the reference's max_num_models as rank"
                )
            ring = torch.zeros(rank, *mean.shape)
            for index, row in enumerate(rows, start=count - len(rows)):
                ring[index % rank] = row.reshape(mean.shape)
                # What is left is that of the deviations dropped, and none is while they fit.
                squares -= term(index + 1) * ring[index % rank].double().square()
            slots["deviations"][name] = ring
            squares = squares.clamp_min(0) if count > rank else torch.zeros_like(squares)
        slots[base][name] = squares.float()
    swag = SWAG(rank=rank)
    swag.load_state_dict({"class": "SWAG", "count": count, "settings": swag.settings, "slots": slots})
    return swag


@torch.no_grad()
def to_swa_gaussian(swag: SWAG, *, prefix: str = "base.") -> dict[str, Tensor]:
    """Return the state dict of the reference code for `swag`, in float32.

    `sq_mean` is formed in float64 and rounded once; the reference then subtracts, and loses what float32 cannot hold of
    a small variance beside a large mean.

    Raises:
        RuntimeError: there has been no update.

    >>> swag = SWAG(rank=0)
    >>> for w in (1.0, 3.0, 2.0, 6.0):
    ...     swag.update({"w": torch.tensor([w])})
    >>> to_swa_gaussian(swag)["base.w_sq_mean"]
    tensor([12.5000])
    """
    # In the reference the covariance is a (diag(v) + D D^T / (k - 1)): v alone is the diagonal at a = 1.
    mean, diagonal = swag.mean(), density.diagonal(swag._gaussian(2.0 if swag.rank else 1.0, block=False))
    slots = swag.state_dict()["slots"]
    held = min(swag.count, swag.rank)
    state = {"n_models": torch.tensor([swag.count])}
    for name, average in mean.items():
        state[f"{prefix}{name}_mean"] = average.float()
        state[f"{prefix}{name}_sq_mean"] = (average.double().square() + diagonal[name].double()).float()
        if swag.rank:
            ring = slots["deviations"][name].float()
            order = [index % swag.rank for index in range(swag.count - held, swag.count)]
            state[f"{prefix}{name}_cov_mat_sqrt"] = ring[order].reshape(held, -1)
    return state
