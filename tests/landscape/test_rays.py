"""Rays, noise, the worst in a ball and critical sharpness, on a bowl whose every number is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lowland.landscape import (
    Estimate,
    critical_sharpness,
    differentiated,
    filter_normalised,
    perturbed,
    random_direction,
    rays,
    worst,
)
from lowland.landscape.rays import crossing

from .quadratic import OFF, H, M, f, f_and_gradient, split

ALONG = split(torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3)
PLACES = [0.05 * k for k in range(1, 9)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("start", "distance"), [(M, 0.1842885351), (OFF, 0.1402567444)])
def test_the_distance_that_raises_the_bowl(start: Tensor, distance: float) -> None:
    found = rays(split(start), f, directions=[ALONG], places=PLACES)
    assert found.distances(0.1) == pytest.approx((distance,), abs=1e-8)
    t, values = found.t, found.values["loss"][0]
    second = (values[2] - 2 * values[1] + values[0]) / (t[1] - t[0]) ** 2
    assert float(second) == pytest.approx(5.8888888889, abs=1e-8)


def test_the_interval_is_over_directions() -> None:
    found = rays(split(M), f, directions=100, places=[0.1, 0.2, 0.4, 0.8], generator=seeded())
    one = found.distance(0.1)
    assert one.n == 100 and one.low < one.mean < one.high
    # d'Hd of a uniform direction has the mean tr H / 3
    curvature = torch.tensor([0.2 / d**2 for d in one.values], dtype=torch.float64)
    assert abs(float(curvature.mean()) - 14 / 3) < 4 * float(curvature.std()) / math.sqrt(100)
    with pytest.raises(ValueError, match="of 100 directions do not rise"):
        found.distance(100.0)
    assert all(map(math.isinf, found.distances(100.0)))


def test_solutions_are_compared_on_the_same_directions() -> None:
    near, far = (rays(split(w), f, directions=10, places=PLACES, generator=seeded(3)).distance(0.05) for w in (M, OFF))
    paired = near.minus(far)
    assert paired.n == 10 and paired.mean == pytest.approx(near.mean - far.mean)
    with pytest.raises(ValueError, match="paired"):
        near.minus(Estimate.of([1.0]))


def test_a_crossing_lies_within_its_bracket() -> None:
    assert crossing((0.0, 1.0), (0.0, 2.0), 1.0) == 0.5
    assert crossing((0.0, 1.0, 2.0), (0.0, math.inf, math.inf), 1.0) == 1.0
    assert crossing((0.0, 1.0, 2.0), (0.0, math.nan, 0.0), 1.0) == 1.0
    assert math.isinf(crossing((0.0, 1.0), (0.0, 0.5), 1.0))
    generator = seeded(5)
    for _ in range(200):
        values = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        level = max(values[0], 0.5)
        found = crossing(tuple(map(float, range(6))), values, level)
        above = next((k for k, v in enumerate(values) if v >= level), None)
        assert math.isinf(found) if above is None else max(0, above - 1) <= found <= above


def test_filter_normalisation() -> None:
    w = {"w": torch.tensor([[3.0, 4.0], [0.0, 5.0]], dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    d = {"w": torch.tensor([[1.0, 0.0], [2.0, 2.0]], dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    found = filter_normalised(d, w)
    assert found["w"].flatten().tolist() == pytest.approx([5.0, 0.0, 3.5355339059, 3.5355339059], abs=1e-8)
    assert found["b"].tolist() == [0.0, 0.0]
    zero = filter_normalised({**d, "w": torch.zeros(2, 2, dtype=torch.float64)}, w)
    assert zero["w"].abs().sum() == 0  # and no division by zero


def test_units_are_stated_and_do_what_they_say() -> None:
    w = {"w": torch.tensor([[3.0, 4.0], [0.0, 5.0]], dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}

    def moved(x: dict[str, Tensor]) -> dict[str, float]:
        return {"all": sum(float((x[n] - w[n]).square().sum()) for n in w) ** 0.5, "b": float((x["b"] - w["b"]).norm())}

    size = math.sqrt(50 + 2)
    for how, length in ((None, 1.0), ("norm", size), ("filter", math.sqrt(50))):
        found = rays(w, moved, directions=2, places=[1.0], normalise=how, generator=seeded())  # type: ignore[arg-type]
        assert found.values["all"][:, 1].tolist() == pytest.approx([length] * 2, rel=1e-6)
        assert (found.values["b"][:, 1] == 0).all() == (how == "filter")
    assert "1 other tensor not moved" in found.about["normalisation"]
    with pytest.raises(ValueError, match="normalise must be"):
        rays(w, moved, places=[1.0], normalise="rows")  # type: ignore[arg-type]


def test_directions_are_uniform_and_of_length_one() -> None:
    like = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)}
    made = torch.stack([torch.cat(list(random_direction(like, 1, k).values())) for k in range(200)])
    assert torch.allclose(made.norm(dim=1), torch.ones(200, dtype=torch.float64))
    # on the sphere in three dimensions each coordinate is uniform on [-1, 1]
    for column in made.T:
        assert stats.kstest(column.numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.001


@pytest.mark.parametrize(("start", "mean"), [(M, 0.32), (OFF, 0.345)])
def test_the_expected_loss_under_noise(start: Tensor, mean: float) -> None:
    found = perturbed(split(start), f, std=0.1, draws=300, generator=seeded())["loss"]
    error = (found.high - found.low) / 2 / 1.96
    assert abs(found.mean - mean) < 4 * error < 0.04


def test_filter_scaled_noise_moves_each_row_by_its_share() -> None:
    w = {"w": torch.tensor([[3.0, 4.0], [0.0, 10.0]], dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}

    def rows(x: dict[str, Tensor]) -> dict[str, float]:
        away = (x["w"] - w["w"]).norm(dim=1)
        return {"0": float(away[0]), "1": float(away[1]), "b": float((x["b"] - 1).norm())}

    found = perturbed(w, rows, std=0.1, draws=3, normalise="filter", generator=seeded())
    assert [found[key].mean for key in ("0", "1", "b")] == pytest.approx([0.5, 1.0, 0.0])


def test_the_worst_in_a_ball() -> None:
    for start, value in ((M, 0.26125), (OFF, 0.3004518339)):
        found = worst(split(start), f_and_gradient, radius=0.05, steps=400, tolerance=1e-15, generator=seeded())
        assert found.value == pytest.approx(value, abs=1e-8)
        assert found.value == f(found.weights) and found.bound == pytest.approx(value - f(split(start)), abs=1e-8)
        assert float((torch.cat(list(found.weights.values())) - start).norm()) == pytest.approx(0.05)
    assert worst(split(OFF), f_and_gradient, radius=0.05, steps=1).value == pytest.approx(0.3003949399, abs=1e-8)


def test_ascent_never_falls_below_the_centre() -> None:
    def hill(weights: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        return -float(weights["a"].square()), {"a": -2 * weights["a"]}

    found = worst({"a": torch.tensor(0.0)}, hill, radius=1.0, generator=seeded())
    assert found.value == 0.0 and found.bound == 0.0


def test_critical_sharpness_is_the_curvature_along_the_gradient() -> None:
    _, gradient = f_and_gradient(split(OFF))
    g = torch.cat(list(gradient.values()))
    wanted = float((g * H * g).sum() / (g * g).sum())
    found = critical_sharpness(split(OFF), f, gradient, precision=1e-6)
    assert found.value == pytest.approx(wanted, rel=1e-6) and found.low <= wanted <= found.high
    near = critical_sharpness(split(OFF), f, gradient, start=2 / wanted * 1.2, precision=0.25)
    assert near.passes <= 6 and near.low <= wanted <= near.high
    with pytest.raises(ValueError, match="rises along the step"):
        critical_sharpness(split(OFF), f, {name: -one for name, one in gradient.items()}, most=20)
    with pytest.raises(ValueError, match="does not rise"):
        critical_sharpness({"w": torch.zeros(1)}, lambda w: -float(w["w"].abs()), {"w": torch.ones(1)}, most=10)


def test_the_gradient_of_a_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double().train()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(2, (7,))
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    w = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    value, gradient = differentiated(model, batches, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))(w)
    for name, p in model.named_parameters():
        p.data.copy_(w[name])
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    assert value == pytest.approx(loss.item())
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.allclose(gradient[name], p.grad, atol=1e-12)
        p.data.copy_(before[name])
    assert model.training
