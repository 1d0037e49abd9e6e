"""The reference SWAG's state, there and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowland import SWAG
from lowland.integrations.swa_gaussian import from_swa_gaussian, to_swa_gaussian

from ..problems import walk


def reference_state(path: list[dict[str, Tensor]], most: int) -> dict[str, Tensor]:
    """What the reference keeps, by the equations of METHODS 7.1, in float32."""
    state: dict[str, Tensor] = {"n_models": torch.tensor([len(path)])}
    for name in path[0]:
        mean, squares = torch.zeros_like(path[0][name]), torch.zeros_like(path[0][name])
        rows = torch.empty(0, mean.numel())
        for n, weights in enumerate(path):
            w = weights[name]
            mean = mean * n / (n + 1) + w / (n + 1)
            squares = squares * n / (n + 1) + w**2 / (n + 1)
            rows = torch.cat([rows, (w - mean).reshape(1, -1)])[-most:]
        state |= {f"base.{name}_mean": mean, f"base.{name}_sq_mean": squares, f"base.{name}_cov_mat_sqrt": rows}
    return state


@pytest.mark.parametrize("steps", [3, 4, 7])
def test_the_import_equals_our_own_collection(steps: int) -> None:
    path = walk(steps)
    ours = SWAG(rank=4)
    for weights in path:
        ours.update(weights)
    read = from_swa_gaussian(reference_state(path, 4), rank=4)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    one, two = ours.sample(3, generator=generators[0]), read.sample(3, generator=generators[1])
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-4)
    # It goes on as ours does: the ring is turned to the right place.
    for weights in walk(2, seed=4):
        ours.update(weights)
        read.update(weights)
    for name, variance in ours.variance().items():
        assert torch.allclose(read.variance()[name], variance, rtol=1e-3)


@pytest.mark.parametrize("steps", [3, 7])
def test_the_export_equals_the_reference(steps: int) -> None:
    path = walk(steps)
    ours = SWAG(rank=4)
    for weights in path:
        ours.update(weights)
    expected, written = reference_state(path, 4), to_swa_gaussian(ours)
    assert written.keys() == expected.keys()
    for key in expected:
        assert torch.allclose(written[key].float(), expected[key].float(), atol=1e-5), key


def test_buffers_named_like_moments_are_not_taken() -> None:
    state = {**reference_state(walk(3), 4), "base.norm.running_mean": torch.zeros(3)}
    assert set(from_swa_gaussian(state, rank=4).mean()) == set(walk(1)[0])


def test_bad_states() -> None:
    state = reference_state(walk(5), 4)
    with pytest.raises(ValueError, match="rank=6 wants 5: pass the reference's max_num_models as rank"):
        from_swa_gaussian(state, rank=6)
    with pytest.raises(ValueError, match="check prefix="):
        from_swa_gaussian(state, prefix="model.")
    with pytest.raises(ValueError, match="lacks n_models"):
        from_swa_gaussian({k: v for k, v in state.items() if k != "n_models"})
    with pytest.raises(ValueError, match="holds no deviations of .*: pass rank=0"):
        from_swa_gaussian({k: v for k, v in state.items() if "cov_mat" not in k}, rank=4)
    with pytest.raises(ValueError, match="n_models must be at least 1"):
        from_swa_gaussian({**state, "n_models": torch.tensor([0])})
    with pytest.raises(RuntimeError, match="no weights yet"):
        to_swa_gaussian(SWAG())
