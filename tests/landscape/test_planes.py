"""Planes and grids: known coordinates, the naive twin, refusals, areas, minima, refinement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lowland import SWAG
from lowland.landscape import Grid, Plane, line, plane, window

from ..problems import four_iterates
from ..reference import landscape as naive

THREE = ([1.0, 2.0, 0.0, -1.0], [3.0, 1.0, 1.0, 0.0], [2.0, 4.0, 2.0, 1.0])
Weights = dict[str, Tensor]


def whole(values: list[float]) -> Weights:
    return {"w": torch.tensor(values, dtype=torch.float64)}


def parted(values: list[float]) -> Weights:
    return {"a": torch.tensor(values[:1], dtype=torch.float64), "b": torch.tensor(values[1:], dtype=torch.float64)}


def flat(weights: Weights) -> list[float]:
    return torch.cat([tensor.flatten() for tensor in weights.values()]).tolist()


@pytest.mark.parametrize("make", [whole, parted])
def test_a_plane_through_three_points_has_the_known_coordinates(make: object) -> None:
    p = Plane.through(*(make(values) for values in THREE))  # type: ignore[operator]
    assert p.points[0] == (0.0, 0.0)
    assert p.points[1] == pytest.approx((2.6457513111, 0.0), abs=1e-8)
    assert p.points[2] == pytest.approx((1.5118578920, 3.2732683535), abs=1e-8)
    assert flat(p.at(1.0, -0.5)) == pytest.approx((1.7777507350, 1.2292433246, 0.1597465828, -0.8402534172), abs=1e-8)
    for point, values in zip(p.points, THREE, strict=True):
        assert flat(p.at(*point)) == pytest.approx(values, abs=1e-12)
        assert p.project(make(list(values))) == pytest.approx((*point, 0.0), abs=1e-6)  # type: ignore[operator]


def test_a_third_point_across_the_first_lies_at_x_0() -> None:
    p = Plane.through(whole(THREE[0]), whole(THREE[1]), whole([0.0, 4.0, 2.0, 1.0]))
    assert p.points[2] == pytest.approx((0.0, 3.6055512755), abs=1e-8)


def test_what_spans_no_plane_is_refused_by_name() -> None:
    a, b, c = map(whole, THREE)
    beyond = {"w": 2 * b["w"] - a["w"]}
    with pytest.raises(ValueError, match="SGD, last and SWA lie on one line"):
        Plane.through(a, b, beyond, names=("SGD", "last", "SWA"))
    for three, message in (((a, a, c), "a and b are"), ((a, b, a), "a and c are"), ((a, b, b), "b and c are")):
        with pytest.raises(ValueError, match=message):
            Plane.through(*three)
    with pytest.raises(ValueError, match="NaN or an infinity"):
        Plane.through(a, b, {"w": c["w"] * math.nan})
    with pytest.raises(ValueError, match="named differently"):
        Plane.through(a, b, {"v": c["w"]})


def test_float32_rounding_is_not_taken_for_a_plane() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = ({"w": torch.randn(1000, generator=g)} for _ in range(2))
    with pytest.raises(ValueError, match="one line"):
        Plane.through(a, b, {"w": a["w"] + 0.3 * (b["w"] - a["w"])})


def test_whole_numbers_and_running_statistics_are_no_coordinates() -> None:
    def point(values: list[float], n: int) -> Weights:
        return {
            **whole(values),
            "ids": torch.tensor([n]),
            "norm.running_mean": torch.full((2,), float(n)),
            "norm.num_batches_tracked": torch.tensor(n),
        }

    p = Plane.through(*(point(values, n) for n, values in enumerate(THREE)))
    bare = Plane.through(*map(whole, THREE))
    assert p.points == bare.points
    made = p.at(1.0, 1.0)
    assert list(made) == ["w", "ids"] and made["ids"].item() == 0 and torch.equal(made["w"], bare.at(1.0, 1.0)["w"])


def test_dtypes_and_the_callers_memory_are_kept() -> None:
    three = [{"w": torch.tensor(values, dtype=torch.bfloat16)} for values in THREE]
    p = Plane.through(*three)
    three[0]["w"].zero_()
    assert p.at(0.0, 0.0)["w"].dtype == torch.bfloat16 and p.at(0.0, 0.0)["w"].tolist() == THREE[0]
    assert p.u["w"].dtype == torch.float32


def test_the_grid_is_the_naive_twins() -> None:
    g = torch.Generator().manual_seed(1)
    points = [torch.randn(7, generator=g, dtype=torch.float64) for _ in range(3)]
    target = torch.randn(7, generator=g, dtype=torch.float64)
    p = Plane.through(*({"a": w[:3], "b": w[3:].view(2, 2)} for w in points))

    def value(w: Weights) -> float:
        return float((torch.cat([w["a"], w["b"].flatten()]) - target).abs().sum())

    found = plane(p, value, points=9, margin=0.3)
    a, b, c = (w.numpy() for w in points)
    wanted = naive.plane_grid(a, b, c, lambda w: float(np.abs(w - target.numpy()).sum()), 9, 0.3)
    assert np.allclose(found.values["loss"].numpy(), wanted, rtol=0, atol=1e-12)


def bowl(weights: Weights) -> float:
    x, y = weights["w"].tolist()
    return float((x * x + 4 * y * y) / 2)


SQUARE = Plane.spanned(whole([0.0, 0.0]), whole([1.0, 0.0]), whole([0.0, 1.0]))


def test_the_area_under_a_level() -> None:
    x = torch.linspace(-1.5, 1.5, 201, dtype=torch.float64)
    values = (x[None] ** 2 + 4 * x[:, None] ** 2) / 2
    fine = Grid(tuple(x.tolist()), tuple(x.tolist()), {"loss": values}, values > -1)
    grid = window(SQUARE, bowl, (-1.5, 1.5), (-1.5, 1.5), points=41)
    assert torch.allclose(grid.values["loss"], values[::5, ::5])
    assert fine.area(0.5) == pytest.approx(math.pi / 2, rel=1e-3)
    assert grid.area(0.5) == pytest.approx(math.pi / 2, rel=0.01)
    assert not grid.reaches_edge(0.5) and grid.reaches_edge(2.0)
    assert grid.area(1e9) == pytest.approx(9.0) and grid.area(-1.0) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_place_without_a_value_is_above_every_level(value: float) -> None:
    values = torch.zeros(3, 3, dtype=torch.float64)
    values[0, 0] = value
    grid = Grid((0.0, 1.0, 2.0), (0.0, 1.0, 2.0), {"loss": values}, values > -1)
    assert grid.area(0.0) == pytest.approx(3.0) and grid.lowest().value == 0.0


def test_flat_triangles_are_cut_exactly() -> None:
    x = torch.linspace(0, 1, 4, dtype=torch.float64)
    grid = Grid(tuple(x.tolist()), tuple(x.tolist()), {"loss": x[None] + x[:, None]}, torch.ones(4, 4) > 0)
    for level in (0.2, 0.5, 1.0):
        assert grid.area(level) == pytest.approx(level * level / 2)
    assert grid.area(1.5) == pytest.approx(1 - 0.125)


def test_refinement_measures_fewer_places_and_finds_the_same_area() -> None:
    asked: list[tuple[float, ...]] = []

    def counted(weights: Weights) -> float:
        asked.append(tuple(weights["w"].tolist()))
        return bowl(weights)

    every = window(SQUARE, bowl, (-1.5, 1.5), (-1.5, 1.5), points=61)
    some = window(SQUARE, counted, (-1.5, 1.5), (-1.5, 1.5), points=61, levels={"loss": [0.5]})
    assert len(asked) == len(set(asked)) == int(some.measured.sum()) < 61 * 61 / 2
    assert some.area(0.5) == pytest.approx(every.area(0.5), rel=1e-6)
    near = (every.values["loss"] - 0.5).abs() < 0.05
    assert torch.equal(some.values["loss"][near], every.values["loss"][near])
    assert bool(torch.isfinite(some.values["loss"]).all())
    with pytest.raises(ValueError, match="multiple of 4"):
        window(SQUARE, bowl, (-1.0, 1.0), (-1.0, 1.0), points=20, levels={"loss": [0.5]})
    with pytest.raises(ValueError, match="levels for"):
        window(SQUARE, bowl, (-1.0, 1.0), (-1.0, 1.0), points=5, levels={"error": [0.5]})


def test_the_minima_of_two_values_lie_so_far_apart() -> None:
    def two(weights: Weights) -> dict[str, float]:
        x, y = weights["w"].tolist()
        return {"train": x * x + y * y, "test": (x - 0.3) ** 2 + (y - 0.4) ** 2 + 1}

    grid = window(SQUARE, two, (-1.0, 1.0), (-1.0, 1.0), points=11)
    assert grid.shift("train", "test") == pytest.approx(0.5)
    assert grid.lowest("test") == pytest.approx((0.3, 0.4, 1.0))
    walk = line(whole([0.0, 0.0]), whole([1.0, 0.0]), two, points=11, beyond=0.5)
    assert walk.t[0] == -0.5 and walk.t[-1] == 1.5 and 0.0 in walk.t and 1.0 in walk.t and len(walk.t) == 21
    assert walk.shift("train", "test") == pytest.approx(0.3)
    assert walk.lowest("test") == pytest.approx((0.3, 1.16))


def test_the_principal_plane_of_a_row() -> None:
    g = torch.Generator().manual_seed(2)
    path = torch.randn(6, 5, generator=g, dtype=torch.float64) * torch.tensor([5.0, 2.0, 0.1, 0.1, 0.1])
    p = Plane.principal([{"w": w} for w in path])
    centred = path - path.mean(0)
    _, s, vt = torch.linalg.svd(centred, full_matrices=False)
    assert p.explained == pytest.approx((s.square() / s.square().sum())[:2].tolist())
    assert abs(float(p.u["w"] @ vt[0])) == pytest.approx(1) and abs(float(p.v["w"] @ vt[1])) == pytest.approx(1)
    assert p.path and len(p.points) == 6
    with pytest.raises(ValueError, match="one line"):
        Plane.principal([{"w": torch.tensor([float(k), 0.0])} for k in range(4)])
    with pytest.raises(ValueError, match="at least three"):
        Plane.principal([{"w": torch.zeros(2)}] * 2)


def test_swags_subspace_and_its_draws() -> None:
    swag = SWAG(rank=4)
    rows = [{"w": torch.cat([w["w"], torch.zeros(3)])} for w in four_iterates()]
    for w in rows:
        swag.update(w)
    deviations = swag.state_dict()["slots"]["deviations"]["w"]
    mean = swag.mean()
    p = Plane.principal([{"w": mean["w"] + d} for d in deviations], centre=mean)
    assert p.explained is not None and sum(p.explained) == pytest.approx(1)
    drawn = swag.sample(300, generator=torch.Generator().manual_seed(0))["w"]
    places = torch.tensor([p.project({"w": w})[:2] for w in drawn])
    basis = torch.stack([p.u["w"], p.v["w"]])
    centred = drawn - mean["w"]
    assert torch.allclose(places.T.cov(), (basis @ centred.T).cov(), atol=1e-4)
    # in the plane of the first two weights the paper's covariance is known: K = 4 deviations, the first of them zero
    v, d = torch.tensor([3.5, 3.5]), deviations[:, :2]
    covariance = basis[:, :2] @ (0.5 * (torch.diag(v) + d.T @ d / (len(d) - 1))) @ basis[:, :2].T
    wide = torch.linalg.eigvalsh(covariance)
    grid = Grid((0.0, 1.0), (0.0, 1.0), {}, torch.ones(2, 2) > 0, draws=tuple(map(tuple, places.tolist())))
    _, axes = grid.ellipse()
    assert (axes.norm(dim=1).square() / -2 / math.log(0.05)).tolist() == pytest.approx(wide.tolist(), rel=0.3)
    inside = torch.linalg.solve(axes.T, (places.double() - places.double().mean(0)).T).square().sum(0) <= 1
    assert 0.9 < float(inside.double().mean()) < 0.99
    with pytest.raises(ValueError, match="three draws"):
        Grid((0.0, 1.0), (0.0, 1.0), {}, torch.ones(2, 2) > 0).ellipse()


def test_a_plane_of_two_solutions_and_a_direction() -> None:
    a, b = whole([0.0, 0.0, 0.0]), whole([2.0, 0.0, 0.0])
    p = Plane.with_direction(a, b, whole([5.0, 5.0, 0.0]))
    assert p.points == ((0.0, 0.0), (2.0, 0.0)) and flat(p.at(1.0, 2.0)) == pytest.approx([1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="one line"):
        Plane.with_direction(a, b, whole([1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="no box"):
        plane(p, lambda w: 0.0)
