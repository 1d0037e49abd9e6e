"""Lanczos, Hutchinson and the spectrum of a model's Hessian, against known numbers and dense matrices."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lowland.landscape import classification, curvature, lanczos, spectrum, spectrum_of
from lowland.landscape.hessian import signs

from ..problems import Small
from ..reference import landscape as naive
from .quadratic import product


def test_lanczos_on_a_known_matrix() -> None:
    diagonal = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0], dtype=torch.float64)
    start = torch.full((5,), 1 / math.sqrt(5), dtype=torch.float64)
    found = lanczos(lambda v: diagonal * v, start, 5)
    assert found.alpha.tolist() == pytest.approx([4.0, 7.6, 3.1707317, 2.6066044, 2.6226639], abs=1e-7)
    assert found.beta[:4].tolist() == pytest.approx([3.16227766, 2.2181073, 0.9386664, 0.6750996], abs=1e-7)
    assert found.values.tolist() == pytest.approx(diagonal.tolist(), abs=1e-9)
    assert found.weights.tolist() == pytest.approx([0.2] * 5, abs=1e-9)
    assert torch.allclose(found.basis @ found.basis.T, torch.eye(5, dtype=torch.float64), atol=1e-12)
    two, three = (lanczos(lambda v: diagonal * v, start, steps) for steps in (2, 3))
    assert two.values.tolist() == pytest.approx([2.1613189, 9.4386811], abs=1e-7)
    assert three.values.tolist() == pytest.approx([1.2910549, 3.4890021, 9.9906747], abs=1e-7)
    assert three.weights.tolist() == pytest.approx([0.3628820, 0.4358477, 0.2012703], abs=1e-7)
    for ritz in (two, three):  # an eigenvalue lies within the bound of each value
        for value, error in zip(ritz.values, ritz.errors, strict=True):
            assert float((diagonal - value).abs().min()) <= float(error) + 1e-9


def test_lanczos_keeps_no_ghosts_and_stops_where_the_space_ends() -> None:
    g = torch.Generator().manual_seed(0)
    diagonal = torch.cat([torch.linspace(0, 1, 199, dtype=torch.float64), torch.tensor([100.0], dtype=torch.float64)])
    found = lanczos(lambda v: diagonal * v, torch.randn(200, generator=g, dtype=torch.float64), 60)
    assert int((found.values > 50).sum()) == 1  # without reorthogonalisation 100 comes several times
    short = lanczos(lambda v: 3 * v, torch.ones(4, dtype=torch.float64), 4)
    assert short.values.tolist() == pytest.approx([3.0]) and len(short.basis) == 1
    with pytest.raises(ValueError, match="not finite"):
        lanczos(lambda v: v * math.nan, torch.ones(2), 2)
    with pytest.raises(ValueError, match="start other than 0"):
        lanczos(lambda v: v, torch.zeros(2), 2)


def test_hutchinson_is_exact_on_a_diagonal_and_3_or_7_on_a_full_matrix() -> None:
    like = {"a": torch.zeros(1, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    assert spectrum_of(product, like, steps=1, probes=1).trace.mean == pytest.approx(14.0)
    full = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    w = {"w": torch.zeros(2, dtype=torch.float64)}
    trace = spectrum_of(lambda v: {"w": full @ v["w"]}, w, steps=1, probes=40, generator=g).trace
    assert {round(value, 9) for value in trace.values} == {3.0, 7.0}
    assert trace.low < 5 < trace.high


def test_signs_are_fair_and_repeat() -> None:
    like = {"w": torch.zeros(20_000)}
    one = signs(like, 1, 0)
    assert torch.equal(one.abs(), torch.ones(20_000)) and abs(float(one.mean())) < 4 / math.sqrt(20_000)
    assert torch.equal(one, signs(like, 1, 0)) and not torch.equal(one, signs(like, 1, 1))


def small() -> tuple[nn.Module, dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double().train()
    batches = [(torch.randn(n, 3, dtype=torch.float64), torch.randint(3, (n,))) for n in (6, 4)]
    torch.random.set_rng_state(state)
    return model, {name: p.detach() + 0.2 for name, p in model.named_parameters()}, batches


def dense(model: nn.Module, w: dict[str, Tensor], batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    names = list(w)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def loss(flat: Tensor) -> Tensor:
        parts = dict(zip(names, flat.split([w[n].numel() for n in names]), strict=True))
        weights = {n: part.view(w[n].shape) for n, part in parts.items()}
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    return torch.autograd.functional.hessian(loss, torch.cat([w[n].flatten() for n in names]))  # type: ignore[no-any-return, no-untyped-call]


def test_the_spectrum_of_a_network_against_its_dense_hessian() -> None:
    model, w, batches = small()
    before = copy.deepcopy(model.state_dict())
    g = torch.Generator().manual_seed(0)
    found = spectrum(model, w, batches, classification, steps=38, probes=10, vectors=1, generator=g)
    matrix = dense(model, w, batches)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert found.dimension == 38
    assert float(found.eigenvalues[0]) == pytest.approx(float(eigenvalues[-1]), rel=1e-8)
    assert float(found.eigenvalues[0]) == pytest.approx(naive.power_iteration(matrix.numpy(), 4000), rel=1e-7)
    assert float(found.eigenvalues[-1]) == pytest.approx(float(eigenvalues[0]), abs=1e-8)
    assert found.trace.low < float(matrix.trace()) < found.trace.high
    top = torch.cat([part.flatten() for part in found.vectors[0].values()])
    assert torch.allclose(matrix @ top, eigenvalues[-1] * top, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()) and model.training


def test_the_density_integrates_to_one_and_has_the_moments() -> None:
    model, w, batches = small()
    matrix = dense(model, w, batches)
    found = spectrum(model, w, batches, classification, steps=8, probes=30, generator=torch.Generator().manual_seed(1))
    grid = torch.linspace(float(found.nodes.min()) - 1, float(found.nodes.max()) + 1, 4001, dtype=torch.float64)
    density = found.density(grid, width=0.05)
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-6)
    second = float(torch.trapezoid(density * grid.square(), grid)) - 0.05**2
    assert second == pytest.approx(float(matrix.square().sum()) / 38, rel=0.15)
    with pytest.raises(ValueError, match="width"):
        found.density(grid, width=0.0)


def test_curvature_along_a_direction() -> None:
    along = {"a": torch.ones(1, dtype=torch.float64), "b": torch.full((2,), 2.0, dtype=torch.float64)}
    assert curvature(product, along) == pytest.approx(5.8888888889, abs=1e-8)


def test_tied_weights_and_batchnorm_are_followed() -> None:
    model = Small(dtype=torch.float64)
    model.train()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = spectrum(model, w, [x], lambda m, b: m(b).square().mean(), steps=28, probes=1)
    model.eval()

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in w.values()])
        own = {n: part.view(w[n].shape) for n, part in zip(w, parts, strict=True)}
        return torch.func.functional_call(model, own, (x,)).square().mean()  # type: ignore[no-any-return]

    matrix: Tensor = torch.autograd.functional.hessian(loss, torch.cat([p.flatten() for p in w.values()]))  # type: ignore[no-untyped-call]
    assert float(found.eigenvalues[0]) == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-8)


def test_attention_has_second_derivatives() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.view(*part.shape[:2], 2, 4).transpose(1, 2) for part in self.project(x).chunk(3, -1))
            return nn.functional.scaled_dot_product_attention(q, k, v).mean((1, 2))

    model = Attention()
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    w = {name: p.detach() for name, p in model.named_parameters()}
    found = spectrum(model, w, [x], lambda m, b: m(b).square().mean(), steps=3, probes=1)
    assert bool(torch.isfinite(found.eigenvalues).all())


def test_wrong_arguments_are_refused() -> None:
    model, w, batches = small()
    with pytest.raises(ValueError, match="at least 1 step"):
        spectrum(model, w, batches, classification, steps=0)
    with pytest.raises(ValueError, match="iterator"):
        spectrum(model, w, iter(batches), classification)
    with pytest.raises(ValueError, match="no parameter|no tensor"):
        spectrum(model, {"other": torch.zeros(1)}, batches, classification)
    with pytest.raises(ValueError, match="depends on the weights"):
        spectrum(model, w, batches, lambda m, b: torch.tensor(1.0), steps=1, probes=1)
    with pytest.raises(ValueError, match="empty"):
        spectrum(model, w, [], classification, steps=1, probes=1)
