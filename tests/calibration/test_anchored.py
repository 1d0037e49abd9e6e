"""The largest covariance that an anchor set bears, against closed forms."""

import math

import pytest
import torch

from lowland import SWAG
from lowland.calibration import largest_scale


def linear() -> tuple[SWAG, torch.Tensor, torch.Tensor]:
    """A diagonal Gaussian over the three weights of y = w x, and 40 examples."""
    swag, generator = SWAG(rank=0), torch.Generator().manual_seed(0)
    for _ in range(5):
        swag.update({"w": torch.randn(3, generator=generator)})
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    return swag, x, x.sum(1) + 0.1 * torch.randn(40, generator=generator, dtype=torch.float64)


def test_of_a_linear_model_the_scale_is_epsilon_over_the_variance_of_its_predictions() -> None:
    """The expected squared error of draws is the mean's plus scale times the mean of x^T diag(v) x."""
    swag, x, y = linear()

    def cost(scale: float) -> float:
        posterior = swag.tempered(scale)
        residual = y - x @ posterior.mean()["w"].double()
        return float((residual.square() + x.square() @ posterior.variance()["w"].double()).mean())

    wanted = 0.3 / float((x.square() @ swag.variance()["w"].double()).mean())
    for start in (1.0, 1e-3, 1e3):
        found = largest_scale(cost, 0.3, start=start, precision=1e-4)
        assert found.scale == pytest.approx(wanted, rel=2e-4) and found.scale <= wanted * (1 + 1e-6)
        assert found.point == cost(0.0) and found.cost == cost(found.scale) <= found.point + 0.3
        assert len(found.tried) < 40 and found.tried[0] == (0.0, found.point)
    assert len(largest_scale(cost, 0.3).tried) <= 12


def test_with_the_same_draws_in_every_call_the_answer_is_the_root_of_a_quadratic() -> None:
    """A draw is mean + sqrt(scale) z: the squared error of the drawn z is a + b sqrt(scale) + c scale."""
    swag, x, y = linear()

    def cost(scale: float) -> float:
        draws = swag.tempered(scale).sample(8, generator=torch.Generator().manual_seed(3))["w"].double()
        return float((y - draws @ x.T).square().mean())

    mean = swag.mean()["w"].double()
    z = swag.sample(8, generator=torch.Generator().manual_seed(3))["w"].double() - mean
    r, moved = y - x @ mean, z @ x.T
    b, c = float((-2 * r * moved).mean()), float(moved.square().mean())
    root = (-b + math.sqrt(b * b + 4 * c * 0.3)) / (2 * c)
    assert largest_scale(cost, 0.3, precision=1e-4).scale == pytest.approx(root**2, rel=3e-4)


def test_where_nothing_or_everything_is_borne() -> None:
    nothing = largest_scale(lambda s: 0.0 if s == 0 else math.inf, 0.1)
    assert nothing.scale == 0.0 and nothing.cost == 0.0 and len(nothing.tried) == 22
    everything = largest_scale(lambda s: -s, 0.1, start=2.0)
    assert everything.scale == 2.0 * 2**20 and len(everything.tried) == 22
    # A cost that falls and then rises ends where it has risen by epsilon; one that is not a number is not borne.
    assert largest_scale(lambda s: (s - 1) ** 2, 0.21, precision=1e-4).scale == pytest.approx(2.1, rel=2e-4)
    assert largest_scale(lambda s: math.nan if s > 3 else 0.0, 0.1, precision=1e-3).scale == pytest.approx(3, rel=2e-3)


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"epsilon": 0.0}, "epsilon must be a positive number, got 0.0: raise it"), ({"start": math.inf}, "start must"),
     ({"precision": -1.0}, "precision must")],
)  # fmt: skip
def test_numbers_out_of_range_are_named(changed: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        largest_scale(lambda s: s, **{"epsilon": 0.1, **changed})
    with pytest.raises(ValueError, match="the point itself costs nan"):
        largest_scale(lambda s: math.nan, 0.1)
