"""What `lowland landscape` measures: planes, lines, rays and spectra of what was asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .landscape_shown import bar

if TYPE_CHECKING:
    from torch import Generator

    from ..landscape import Plane
    from .landscape_asked import Asked

Found = tuple[dict[str, Any], dict[str, Any]]
DRAWS = 50  # of a posterior, on its plane


def plane_of(
    asked: Asked,
    points: int,
    margin: float,
    levels: dict[str, list[float]],
    across: str,
    generator: Generator,
    jobs: int,
    out: Path,
) -> Found:
    """Measure a plane: of a posterior's subspace, along a direction, through three, or principal."""
    import dataclasses

    from ..landscape import Plane, plane, save_result, window

    draws: tuple[tuple[float, float], ...] = ()
    x = y = (0.0, 0.0)
    if asked.posterior is not None:
        p, draws = _subspace(asked, generator)
        x, y = (_around([place[axis] for place in draws], margin) for axis in (0, 1))
    elif len(asked.weights) == 2:
        a, b = asked.weights
        p = Plane.with_direction(a, b, _direction(asked, across, generator), names=asked.names)
        wide = p.points[1][0]
        x, y = (-margin * wide, (1 + margin) * wide), (-(0.5 + margin) * wide, (0.5 + margin) * wide)
    elif len(asked.weights) == 3:
        p = Plane.through(*asked.weights, names=asked.names)
    else:
        p = Plane.principal(asked.weights, names=asked.names)
    refined = levels or None
    with bar("places") as progress:
        work = asked.work(jobs, out, "plane", progress)
        if x[0] < x[1]:
            grid = window(p, asked.measure, x, y, points=points, levels=refined, work=work)
        else:
            grid = plane(p, asked.measure, points=points, margin=margin, levels=refined, work=work)
    if p.explained is not None:
        asked.about["explained"] = " + ".join(f"{share:.1%}" for share in p.explained)
    grid = dataclasses.replace(grid, about=asked.about, draws=draws)
    if asked.speaks:
        save_result(grid, out / "plane.safetensors")
        (out / "plane.jsonl").unlink(missing_ok=True)
    rows: dict[str, Any] = {}
    for name in grid.values:
        low = grid.lowest(name)
        rows[name] = {"lowest": low.value, "x": low.x, "y": low.y}
        rows[name] |= {
            f"from {title}": math.hypot(low.x - x, low.y - y) for title, (x, y) in list(grid.points.items())[:3]
        }
    told = {"values": rows, "places": int(grid.measured.sum()), "points": grid.points}
    return {"Plane": grid}, told | _shift(grid, list(grid.values))


def _subspace(asked: Asked, generator: Generator) -> tuple[Plane, tuple[tuple[float, float], ...]]:
    """The main plane of a SWAG's deviations around its mean, and where its draws lie on it."""
    from ..landscape import Plane
    from .measures import deviations_of

    posterior = asked.posterior
    mean = asked.measure.fitted(posterior.mean())
    deviations = {name: rows for name, rows in deviations_of(posterior).items() if name in mean}
    count = len(next(iter(deviations.values())))
    rows = [k for k in range(count) if any(bool(stack[k].any()) for stack in deviations.values())]
    held = [{name: mean[name] + stack[k] for name, stack in deviations.items()} for k in rows]
    p = Plane.principal(held, centre=mean)
    asked.about["plane"] = f"main plane of SWAG's {len(rows)} deviations, with {DRAWS} draws"
    draws = [p.project(asked.measure.fitted(w))[:2] for w in posterior.draws(DRAWS, generator=generator)]
    return type(p)(p.frame, [(0.0, 0.0)], asked.names, explained=p.explained), tuple(draws)


def _around(values: list[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    return low - margin * (high - low), high + margin * (high - low)


def _direction(asked: Asked, across: str, generator: Generator) -> dict[str, Any]:
    from ..arithmetic.philox import new_key
    from ..landscape import random_direction, spectrum

    first = asked.weights[0]
    if across == "random":
        asked.about["across"] = "a random direction"
        return random_direction(first, new_key(generator), 0)
    model, sets, loss, refresh = asked.measure.parts
    batches = sets.get("train", next(iter(sets.values())))
    with bar("products with the Hessian") as progress:
        found = spectrum(
            model, first, batches, loss, steps=10, probes=1, vectors=1, refresh=refresh, progress=progress,
            generator=generator,
        )  # fmt: skip
    top, error = float(found.eigenvalues[0]), float(found.errors[0])
    asked.about["across"] = f"top direction of the Hessian at {asked.names[0]}, eigenvalue {top:.4g} ± {error:.1g}"
    return dict(found.vectors[0])


def line_of(asked: Asked, points: int, margin: float, jobs: int, out: Path) -> Found:
    """Measure the line between two solutions and beyond both."""
    from ..landscape import line, save_result

    a, b = asked.weights
    with bar("places") as progress:
        work = asked.work(jobs, out, "line", progress)
        walk = line(a, b, asked.measure, points=points, beyond=margin, work=work)
    if asked.speaks:
        save_result(walk, out / "line.safetensors", {**asked.about, "from": asked.names[0], "to": asked.names[1]})
        (out / "line.jsonl").unlink(missing_ok=True)
    rows = {}
    for name in walk.values:
        t, value = walk.lowest(name)
        rows[name] = {"lowest": value, "at": t, "barrier": walk.barrier(name)}
    return {"Line": walk}, {"values": rows, "length": walk.length, **_shift(walk, list(walk.values))}


def _shift(result: Any, names: list[str]) -> dict[str, Any]:
    if "train loss" in names and "test error" in names:
        return {"test error from train loss": result.shift("train loss", "test error")}
    return {}


def rays_of(
    asked: Asked,
    points: int,
    directions: int,
    reach: float | None,
    rise: float,
    how: Any,
    seed: int,
    jobs: int,
    out: Path,
) -> Found:
    """Measure rays from every solution in the same directions."""
    import torch

    from ..landscape import Estimate, rays, save_result
    from ..landscape.vectors import norm

    if reach is None:
        reach = 1.0 if how else norm(asked.weights[0]) / 10
    places = [reach * (k / (points - 1)) for k in range(1, points)]
    found, rows, first = {}, {}, None
    for name, weights in zip(asked.names, asked.weights, strict=True):
        with bar(f"rays from {name}") as progress:
            work = asked.work(jobs, out, f"rays-{filed(name)}", progress)
            generator = torch.Generator().manual_seed(seed)  # the same directions for each
            one = rays(
                weights,
                asked.measure,
                directions=directions,
                places=places,
                normalise=how,
                generator=generator,
                work=work,
            )
        one.about.update(asked.about)
        if asked.speaks:
            save_result(one, out / f"rays-{filed(name)}.safetensors")
        found[name] = one
    for name, one in found.items():
        (out / f"rays-{filed(name)}.jsonl").unlink(missing_ok=True)
        distances = one.distances(rise)
        reached = [d for d in distances if math.isfinite(d)]
        row: dict[str, Any] = {"reached": len(reached), "directions": len(distances)}
        if len(reached) == len(distances):
            estimate = Estimate.of(distances)
            row |= {"distance": estimate.mean, "low": estimate.low, "high": estimate.high}
            if first is not None:
                paired = estimate.minus(first)
                row |= {"more than the first": paired.mean, "from": paired.low, "to": paired.high}
            first = estimate if first is None else first
        rows[name] = row
    asked.about["normalisation"] = next(iter(found.values())).about["normalisation"]
    return {"Rays": found}, {"values": rows, "rise": rise, "of": next(iter(one.values))}


def spectrum_of(asked: Asked, steps: int, probes: int, seed: int, out: Path) -> Found:
    """Find the Hessian's spectrum at every solution."""
    import torch

    from ..landscape import save_result, spectrum

    model, sets, loss, refresh = asked.measure.parts
    batches = sets.get("train", next(iter(sets.values())))
    found, rows = {}, {}
    for name, weights in zip(asked.names, asked.weights, strict=True):
        with bar(f"products at {name}") as progress:
            one = spectrum(
                model, weights, batches, loss, steps=steps, probes=probes, refresh=refresh, progress=progress,
                generator=torch.Generator().manual_seed(seed), about=dict(asked.about),
            )  # fmt: skip
        save_result(one, out / f"spectrum-{filed(name)}.safetensors")
        found[name] = one
        rows[name] = {
            "largest": float(one.eigenvalues[0]),
            "within": float(one.errors[0]),
            "smallest": float(one.eigenvalues[-1]),
            "trace": one.trace.mean,
            "low": one.trace.low,
            "high": one.trace.high,
        }
    return {"Spectra": found}, {"values": rows, "steps": steps, "probes": probes}


def filed(name: str) -> str:
    """Return a solution's name as part of a file's.

    >>> filed("SWA 1.5")
    'SWA-1.5'
    """
    return name.replace(" ", "-").replace("/", "-")
