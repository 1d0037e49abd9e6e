"""SWAG against the paper's closed form, METHODS 17.9, and its naive twin."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from lowland import SWA, SWAG, Mixture
from lowland.arithmetic import kernels

from .problems import four_iterates, four_iterates_apart, walk
from .reference.swag import ReferenceSWAG


def collected(rank: int, path: list[dict[str, Tensor]]) -> SWAG:
    swag = SWAG(rank=rank)
    for weights in path:
        swag.update(weights)
    return swag


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def test_17_1_and_17_9_statistics() -> None:
    average = SWA()
    for weights in four_iterates():
        average.update(weights)
    assert average.mean()["w"].tolist() == [3.0, 2.0]
    swag = collected(3, four_iterates())
    slots = swag.state_dict()["slots"]
    assert swag.mean()["w"].tolist() == [3.0, 2.0]
    assert (collected(0, four_iterates()).state_dict()["slots"]["squares"]["w"] / 4).tolist() == [3.5, 3.5]
    # The first deviation is zero, so nothing has left the ring of three that counts.
    assert slots["evicted"]["w"].tolist() == [0.0, 0.0] and "squares" not in slots
    rows = sorted(tuple(row) for row in slots["deviations"]["w"].tolist())
    expected = sorted([(1.0, -0.5), (0.0, 7 / 3), (3.0, -2.0)])
    assert torch.allclose(torch.tensor(rows), torch.tensor(expected), atol=1e-6)
    # The first deviation is exactly zero while it is still held.
    held = collected(4, four_iterates()).state_dict()["slots"]["deviations"]["w"]
    assert held[0].tolist() == [0.0, 0.0]


def test_17_9_covariance() -> None:
    swag = collected(3, four_iterates())
    paper = torch.tensor([[4.25, -1.625], [-1.625, 4.173611]])
    assert torch.allclose(swag.distribution().covariance_matrix, paper, atol=1e-6)
    twice = torch.tensor([[8.5, -3.25], [-3.25, 8.347222]])
    assert torch.allclose(swag.tempered(2).distribution().covariance_matrix, twice, atol=1e-6)
    assert torch.allclose(swag.variance()["w"], paper.diagonal(), atol=1e-6)
    # With room for 20 the divisor stays the number held minus one; the official code divides by 19 (METHODS 7.2).
    room = collected(20, four_iterates()).distribution().covariance_matrix
    twin = ReferenceSWAG(20)
    for weights in four_iterates():
        twin.update(weights["w"])
    assert torch.allclose(room.double(), twin.covariance(), atol=1e-6)
    official = torch.tensor([[4.026316, -0.342105], [-0.342105, 4.010234]]) / 2
    assert not torch.allclose(room, official, atol=0.1)


def test_17_9_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    def normals(key: int, number: int, *other: object) -> Tensor:
        # METHODS has z2 = (1, 0, -1) for the iterates 2, 3 and 4; in the ring the fourth took the place of the first.
        return torch.tensor([[1.0, -1.0]]) if number else torch.tensor([[-1.0, 1.0, 0.0]])

    monkeypatch.setattr("lowland.arithmetic.gaussian._normals", normals)
    swag = collected(3, four_iterates())
    with kernels.disabled():
        for scale, expected in ((1.0, (3.322876, 1.427124)), (2.0, (3.456615, 1.189831))):
            assert torch.allclose(swag.tempered(scale).sample()["w"], torch.tensor(expected), atol=1e-6)


def test_17_9_log_density() -> None:
    swag = collected(3, four_iterates())
    origin = {"w": torch.zeros(2)}
    assert swag.log_prob(origin) == pytest.approx(-5.647984, abs=1e-6)
    dense = MultivariateNormal(torch.tensor([3.0, 2.0]), torch.tensor([[4.25, -1.625], [-1.625, 4.173611]]))
    assert swag.log_prob(origin) == pytest.approx(float(dense.log_prob(torch.zeros(2))), abs=1e-5)


def test_17_9_mahalanobis() -> None:
    swag = collected(3, walk(6))
    d, n = 10, 2000
    chi2_95 = 18.307  # the 95 % quantile of chi-square with 10 degrees of freedom
    for scale in (0.01, 0.5, 1.0, 5.0):
        gaussian = swag.tempered(scale).distribution()
        draws = swag.tempered(scale).sample(n, generator=torch.Generator().manual_seed(3))
        points = torch.cat([draws[name].reshape(n, -1) for name in sorted(draws)], dim=1)
        inside = (gaussian.loc.shape[0] == d) and float((mahalanobis(points, gaussian) < chi2_95).float().mean())
        # Five binomial standard errors at n = 2000 are 0.024.
        assert inside == pytest.approx(0.95, abs=0.024)


def mahalanobis(points: Tensor, gaussian: torch.distributions.LowRankMultivariateNormal) -> Tensor:
    off = points - gaussian.loc
    return (off * torch.linalg.solve(gaussian.covariance_matrix, off.T).T).sum(1)


@pytest.mark.parametrize("rank", [0, 2, 5, 20])
@pytest.mark.parametrize("steps", [2, 5, 9])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_against_the_twin(rank: int, steps: int, scale: float) -> None:
    path = walk(steps)
    twin, swag = ReferenceSWAG(rank), collected(rank, path)
    for weights in path:
        twin.update(flat(weights))
    assert torch.allclose(flat(swag.mean()), twin.mean(), atol=1e-6)
    assert torch.allclose(flat(swag.tempered(scale).variance()), twin.covariance(scale).diagonal(), rtol=1e-4)
    gaussian = swag.tempered(scale).distribution()
    assert torch.allclose(gaussian.covariance_matrix.double(), twin.covariance(scale), atol=1e-7)
    dense = MultivariateNormal(twin.mean(), twin.covariance(scale))
    point = walk(1, seed=9)[0]
    assert swag.tempered(scale).log_prob(point) == pytest.approx(float(dense.log_prob(flat(point))), rel=1e-4)


def test_block_changes_cross_tensor_terms_only() -> None:
    path = four_iterates_apart()
    swag = collected(3, path)
    n = 40_000
    whole = swag.sample(n, generator=torch.Generator().manual_seed(0))
    block = swag.tempered(1.0, block=True).sample(n, generator=torch.Generator().manual_seed(0))

    def covariance(draws: dict[str, Tensor]) -> Tensor:
        return torch.cov(torch.cat([draws["a"], draws["b"]], dim=1).T)

    # Five standard errors of a variance near 4.2 and of a covariance at n = 40,000: 5 * 4.2 * sqrt(2 / n) = 0.15.
    assert covariance(whole)[0, 1] == pytest.approx(-1.625, abs=0.15)
    assert covariance(block)[0, 1] == pytest.approx(0.0, abs=0.15)
    for draws in (whole, block):
        assert covariance(draws)[0, 0] == pytest.approx(4.25, abs=0.15)
        assert covariance(draws)[1, 1] == pytest.approx(4.173611, abs=0.15)


def test_scale_zero_is_the_mean() -> None:
    swag = collected(3, walk(5))
    draw = swag.tempered(0.0).sample()
    for name, mean in swag.mean().items():
        assert torch.equal(draw[name], mean)


def test_one_iterate_is_a_point() -> None:
    swag = collected(20, walk(1))
    for name, mean in swag.mean().items():
        assert torch.equal(swag.sample()[name], mean)


def test_tempered_is_the_same_draw_at_another_scale() -> None:
    swag = collected(3, walk(6))
    off = {}
    for scale in (1.0, 0.25):
        drawn = swag.tempered(scale).sample(2, generator=torch.Generator().manual_seed(1))
        off[scale] = {name: drawn[name] - mean for name, mean in swag.mean().items()}
    assert all(torch.allclose(off[1.0][name] * 0.5, off[0.25][name], atol=1e-6) for name in off[1.0])
    same = swag.tempered(1.0).sample(generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(same[n], t) for n, t in swag.sample(generator=torch.Generator().manual_seed(1)).items())


def test_blocks_have_the_density_of_independent_tensors() -> None:
    swag = collected(3, four_iterates_apart())
    view, origin = swag.tempered(1.0, block=True), {"a": torch.zeros(1), "b": torch.zeros(1)}
    dense = MultivariateNormal(torch.tensor([3.0, 2.0]), torch.diag(torch.tensor([4.25, 4.173611])))
    assert view.log_prob(origin) == pytest.approx(float(dense.log_prob(torch.zeros(2))), abs=1e-5)
    assert torch.allclose(view.distribution().covariance_matrix, dense.covariance_matrix, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "values", "scale"),
    [
        (2, (1.0, 1.1, 0.9, 1e20, 1.0, 1.1), 1.0),
        (0, (1.0, 1e20, 1.0), 1.0),
        (0, (1.0, 2e3, 3.0), 1e38),
    ],
)
def test_draws_that_overflow_are_refused(rank: int, values: tuple[float, ...], scale: float) -> None:
    swag = SWAG(rank=rank, check_finite=False)
    for value in values:
        swag.update({"w": torch.full((4,), value), "b": torch.ones(1)})
    for posterior in (swag.tempered(scale), Mixture([swag.tempered(scale)])):
        for draw in (posterior.sample, lambda p=posterior: p.sample(3), lambda p=posterior: next(iter(p.draws(2)))):
            with pytest.raises(ValueError, match="draws of w are not finite: its variance overflows torch.float32"):
                draw()


def test_bfloat16_deviations_keep_three_digits() -> None:
    path = walk(6)
    full, half = collected(3, path), SWAG(rank=3, deviations_dtype=torch.bfloat16)
    for weights in path:
        half.update(weights)
    for name, expected in full.variance().items():
        assert torch.allclose(half.variance()[name], expected, rtol=2e-2)
        assert torch.equal(half.mean()[name], full.mean()[name])


def test_small_spreads_keep_their_variance() -> None:
    # swa_gaussian's E[w^2] - E[w]^2 (swag/posteriors/swag.py:121) returns 0 or less for most of these weights.
    generator = torch.Generator().manual_seed(0)
    path = [{"w": 1 + 1e-4 * torch.randn(1000, generator=generator)} for _ in range(40)]
    swag = collected(0, path)
    exact = torch.stack([weights["w"].double() for weights in path]).var(0, correction=0)
    naive = sum(w["w"] ** 2 for w in path) / 40 - (sum(w["w"] for w in path) / 40) ** 2
    ours = swag.variance()["w"].double()
    assert ((ours - exact).abs() / exact).median() < 1e-3
    assert ((naive - exact).abs() / exact).median() > 0.3


def test_the_draw_survives_a_change_of_order() -> None:
    path = walk(5)
    swag = collected(3, path)
    other = collected(3, [dict(reversed(weights.items())) for weights in path])
    one = swag.sample(generator=torch.Generator().manual_seed(2))
    two = other.sample(generator=torch.Generator().manual_seed(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("rank", [-1, 1, 2.5, True])
def test_bad_rank(rank: object) -> None:
    with pytest.raises(ValueError, match="rank must be 0 .* or a whole number of at least 2, got"):
        SWAG(rank=rank)  # type: ignore[arg-type]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="deviations_dtype must be float32 or bfloat16, got float16"):
        SWAG(deviations_dtype=torch.float16)
    swag = SWAG()
    with pytest.raises(RuntimeError, match=r"SWAG has no weights yet: call update\(model\) first"):
        swag.sample()
    with pytest.raises(ValueError, match="a Gaussian needs floating-point tensors, got \\['steps'\\]"):
        swag.update({"steps": torch.tensor(3)})
    assert swag.count == 0
    swag = collected(3, walk(4))
    for scale in (-1.0, math.nan, math.inf, 1e300, True, "1"):
        with pytest.raises(ValueError, match="scale multiplies the covariance"):
            swag.tempered(scale)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="log_prob: tensors are named differently: missing"):
        swag.log_prob({"w": torch.ones(1)})
    with pytest.raises(ValueError, match="has no density"):
        swag.tempered(0.0).log_prob(walk(1)[0])
    frozen = collected(0, [{"w": torch.ones(2)}] * 3)
    with pytest.raises(ValueError, match="w holds a weight whose variance is zero"):
        frozen.log_prob({"w": torch.ones(2)})
