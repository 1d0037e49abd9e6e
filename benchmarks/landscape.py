"""How many places of a plane are measured a second, and what a Hessian's density costs.

A naive loop copies the weights of each place into the model, refreshes BatchNorm over all training batches, runs the
batches and takes the mean: what one writes by hand, without a copy too many. `loss-landscapes` 3.0.6 does the same work
where it can (no BatchNorm refresh, one batch, the plane of three models with deepcopy_model=True). Ours is `plane` with
`measured`, and for BatchNorm `fast`. Each contender measures the same grid of the same three sets of weights.
Run: python benchmarks/landscape.py [--quick]; `pip install --no-deps loss-landscapes==3.0.6` first for the peer.
About 5 minutes on one idle core. Results: benchmarks/results/landscape.json and .md.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import arguments, compare, peak_extra, write
from torch import Tensor, nn

from lowland import refresh_bn
from lowland.landscape import Plane, classification, exact, fast, measured, plane, spectrum
from lowland.studies.images.networks import build

Batches = list[tuple[Tensor, Tensor]]
Weights = dict[str, Tensor]


def images(count: int, rows: int, size: int = 32, seed: int = 0) -> Batches:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(rows, 3, size, size, generator=g), torch.randint(10, (rows,), generator=g)) for _ in range(count)
    ]


def vectors(count: int, rows: int) -> Batches:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(rows, 64, generator=g), torch.randint(10, (rows,), generator=g)) for _ in range(count)]


def around(model: nn.Module) -> list[Weights]:
    g = torch.Generator().manual_seed(1)
    return [
        {n: p.detach() + 0.02 * torch.randn(p.shape, generator=g) for n, p in model.named_parameters()}
        for _ in range(3)
    ]


def naive(model: nn.Module, p: Plane, batches: Batches, training: Batches, side: int) -> Callable[[], list[float]]:
    """The loop that one writes by hand."""
    a, u, v = p.origin, p.u, p.v
    wide, high = p.points[1][0], p.points[2][1]
    own = dict(model.named_parameters())

    @torch.no_grad()
    def run() -> list[float]:
        found = []
        for row in range(side):
            for column in range(side):
                x, y = wide * column / (side - 1), high * row / (side - 1)
                for name, tensor in own.items():
                    tensor.copy_(a[name] + x * u[name] + y * v[name])
                if training:
                    refresh_bn(model, training)
                model.eval()
                total = rows = 0.0
                for batch in batches:
                    total += len(batch[1]) * nn.functional.cross_entropy(model(batch[0]), batch[1]).item()
                    rows += len(batch[1])
                found.append(total / rows)
        return found

    return run


def ours(model: nn.Module, p: Plane, batches: Batches, side: int, refresh: Any = None) -> Callable[[], object]:
    measure = measured(model, batches, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), refresh=refresh)
    return lambda: plane(p, measure, points=side, margin=0.0)


def theirs(model: nn.Module, weights: list[Weights], batch: tuple[Tensor, Tensor], side: int) -> Callable[[], object]:
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    models = []
    for one in weights:
        twin = copy.deepcopy(model).eval()
        twin.load_state_dict(one, strict=False)
        models.append(twin)
    metric = Loss(nn.functional.cross_entropy, *batch)
    return lambda: loss_landscapes.planar_interpolation(*models, metric, steps=side, deepcopy_model=True)


def main() -> None:
    options = arguments(__doc__)
    rounds = 2 if options.quick else 6
    peer = importlib.util.find_spec("loss_landscapes") is not None
    torch.manual_seed(0)
    tables: dict[str, Any] = {}
    notes = [
        "Times are of a whole grid; places a second are in the table of speeds.",
        "Memory is what a call adds to the process at its highest: activations for the most part.",
    ]
    if not peer:
        notes.append("loss-landscapes was not installed: its rows are missing.")
    checks, speeds = [], []

    def case(title: str, side: int, contenders: dict[str, Callable[[], object]], wanted: float) -> None:
        rows = compare(contenders, baseline="naive loop", rounds=rounds, window=0.02)
        tables[title] = rows
        for row in rows:
            extra = peak_extra(contenders[row.name])
            speeds.append(
                {
                    "work": title,
                    "contender": row.name,
                    "places a second": side * side / row.seconds,
                    "over the naive loop": 1 / row.ratio if row.ratio else "",
                    "memory MB": round(extra / 1e6, 1),
                }
            )
        gain = 1 / (next(row for row in rows if row.name == "ours").ratio or 1.0)
        checks.append((f"{title}: ours over the naive loop", f"at least {wanted}x", f"{gain:.2f}x", gain >= wanted))

    size = 100 if options.quick else 250
    model = build("vgg", channels=3, size=32, classes=10, depth=7, width=16)
    weights, batches = around(model), images(1, size)
    p, count = Plane.through(*weights), sum(t.numel() for t in model.parameters())
    contenders = {"naive loop": naive(model, p, batches, [], 3), "ours": ours(model, p, batches, 3)}
    if peer:
        contenders["loss-landscapes"] = theirs(model, weights, batches[0], 3)
    case(f"large batch, no BatchNorm: vgg7x16, {count:,} weights, {size} images", 3, contenders, 1.0)

    model = build("preresnet", channels=3, size=32, classes=10, depth=8, width=8)
    weights, training, batches = around(model), images(10 if options.quick else 20, 100), images(1, 200, seed=3)
    p, count = Plane.through(*weights), sum(t.numel() for t in model.parameters())
    contenders = {
        "naive loop": naive(model, p, batches, training, 2),
        "ours": ours(model, p, batches, 2, fast(model, p.at(0.0, 0.0), training)),
        "ours, exact refresh": ours(model, p, batches, 2, exact(training)),
    }
    case(f"BatchNorm: preresnet8x8, {count:,} weights, refreshed on {len(training)} x 100 images, measured on 200", 2,
         contenders, 3.0)  # fmt: skip
    few, whole = (contenders[name]().values["loss"] for name in ("ours", "ours, exact refresh"))  # type: ignore[attr-defined]
    notes.append(f"BatchNorm: the loss from 2 batches and a control variate differs from the exact one by "
                 f"{float((few / whole - 1).abs().max()):.2%} at most.")  # fmt: skip

    for title, rows in (("small batches", 16), ("small batches", 64)):
        model = nn.Sequential(
            nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)
        )
        weights, batches = around(model), vectors(1, rows)
        p, count = Plane.through(*weights), sum(t.numel() for t in model.parameters())
        contenders = {"naive loop": naive(model, p, batches, [], 21), "ours": ours(model, p, batches, 21)}
        if peer:
            contenders["loss-landscapes"] = theirs(model, weights, batches[0], 21)
        case(f"{title}: MLP with LayerNorm, {count:,} weights, {rows} rows", 21, contenders, 3.0)

    width = 8 if options.quick else 44
    model = build("vgg", channels=3, size=32, classes=10, depth=7, width=width)
    count, batches = sum(t.numel() for t in model.parameters()), images(1, 100)
    w = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    begun, cpu = time.perf_counter(), time.process_time()
    steps, probes = 15, 2
    g = torch.Generator().manual_seed(0)
    found = spectrum(model, w, batches, classification, steps=steps, probes=probes, generator=g)
    spent = {"CPU seconds": time.process_time() - cpu, "seconds": time.perf_counter() - begun}
    tables["Spectral density"] = [
        {"network": f"vgg7x{width}", "weights": f"{count:,}", "images": 100, "steps": steps, "probes": probes, **spent,
         "top eigenvalue": float(found.eigenvalues[0]), "within": float(found.errors[0]), "trace": str(found.trace)}
    ]  # fmt: skip
    write("landscape", "Places a second, and the density of a Hessian", {"Speeds": speeds, **tables}, notes, checks,
          packages=("loss-landscapes",))  # fmt: skip


if __name__ == "__main__":
    main()
