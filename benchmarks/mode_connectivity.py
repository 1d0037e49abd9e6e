"""Two networks trained apart on handwritten digits, the straight line between them, and curves trained to stay low.

Measured, for two networks and five seeds: the barrier of the straight line and of a Bezier curve and a polygonal chain
with one free point (61 places each, BatchNorm statistics refreshed over the whole training set at every place for line
and curve alike), the highest test error on the curve, and means by arc length. A seed chooses the training and the test
images, both starts, the batches and every t. The claim: the curve's barrier in the training loss is at least 5 times
lower than the line's, in every seed. Rates and lengths were set on seed 9, which is not among these; no test image
had a part in them.
Run: python benchmarks/mode_connectivity.py [SEED ...]; default 0 1 2 3 4. Two minutes on one core.
Results: benchmarks/results/mode_connectivity.json and .md; docs/figures/mode_connectivity.svg.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from harness import ROOT, write
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lowland import applied, refresh_bn, weights_of
from lowland.cycles import swa_linear
from lowland.figures.svg import series, text_of
from lowland.landscape import CurveTraining, Walk, along, bezier, chain, classification, line, measured

SEEDS = [int(seed) for seed in sys.argv[1:]] or [0, 1, 2, 3, 4]
TEST = 597  # images of 1,797
BATCH = 60  # images; 20 batches an epoch
EPOCHS, CURVE_EPOCHS = 30, 40
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
PLACES = 61
WANTED = 5.0  # times
Data = list[tuple[Tensor, Tensor]]


def convolutional() -> nn.Module:
    """Three convolutions with BatchNorm, 4,300 weights."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


def perceptron() -> nn.Module:
    """Two hidden layers of 64, 9,000 weights."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"CNN, BatchNorm": convolutional, "MLP": perceptron}
CURVES = {"Bezier": bezier, "chain": chain}


def digits(seed: int) -> tuple[Tensor, Tensor, Data]:
    """Training images and labels, and the test set in one batch."""
    found = load_digits()
    x = torch.tensor(found.data, dtype=torch.float32) / 8 - 1
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, train = order[:TEST], order[TEST:]
    return x[train], y[train], [(x[test], y[test])]


def batches(x: Tensor, y: Tensor, epochs: int, generator: torch.Generator) -> Data:
    orders = [torch.randperm(len(x), generator=generator) for _ in range(epochs)]
    return [(x[part], y[part]) for order in orders for part in order.split(BATCH)]


def solution(make: Callable[[], nn.Module], x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = make().train()
    todo = batches(x, y, EPOCHS, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    rate = LambdaLR(optimizer, swa_linear(len(todo), 0.01))
    for batch in todo:
        optimizer.zero_grad()
        classification(model, batch)["loss"].backward()
        optimizer.step()
        rate.step()
    return {name: tensor.clone() for name, tensor in weights_of(model).items()}


def connected(make: Callable[[], nn.Module], seed: int) -> dict[str, Walk]:
    """The line and the curves between two networks of one kind."""
    x, y, test = digits(seed)
    ends = [solution(make, x, y, 100 * seed + number) for number in (1, 2)]
    model = make().train()
    train: Data = list(zip(x.split(300), y.split(300), strict=True))
    whole = {"train": measured(model, train, classification, refresh=lambda model: None)}
    whole["test"] = measured(model, test, classification, refresh=lambda model: None)

    def measure(weights: dict[str, Tensor]) -> dict[str, float]:
        with applied(model, weights):
            refresh_bn(model, train)  # once for both sets
            return {f"{part} {name}": v for part, of in whole.items() for name, v in of({}).items()}

    walks = {"line": line(*ends, measure, points=PLACES)}
    for name, make_curve in CURVES.items():
        curve = make_curve(*ends)
        generator = torch.Generator().manual_seed(seed)
        todo = batches(x, y, CURVE_EPOCHS, generator)
        training = CurveTraining(
            curve,
            model,
            classification,
            partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM),
            weight_decay=DECAY,
            schedule=swa_linear(len(todo), 0.01),
            generator=generator,
        )
        for batch in todo:
            training.step(batch)
        walks[name] = along(curve, measure, points=PLACES)
    print(seed, *(f"{name} {walk.barrier('train loss'):.4f}" for name, walk in walks.items()), flush=True)
    return walks


def spread(values: list[float], unit: float = 1.0, digits: int = 3) -> str:
    values = [value / unit for value in values]
    sd = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{sd}"


def figure(found: dict[str, list[dict[str, Walk]]]) -> str:
    paths = ["line", *CURVES]

    def draw(canvas: Figure) -> None:
        panels = canvas.subplots(2, len(found), sharex=True, squeeze=False)
        for column, (network, runs) in enumerate(found.items()):
            for row, (what, scale) in enumerate((("train loss", 1.0), ("test error", 100.0))):
                axes = panels[row][column]
                for i, path in enumerate(paths):
                    colour, _, dash = series(i)
                    dash = ("-", "--", ":")[i]
                    rows = [[scale * v for v in run[path].values[what]] for run in runs]
                    for values in rows:
                        axes.plot(runs[0][path].t, values, color=colour, linewidth=0.6, alpha=0.35)
                    mean = [statistics.fmean(at) for at in zip(*rows, strict=True)]
                    axes.plot(runs[0][path].t, mean, color=colour, linestyle=dash, linewidth=1.9, label=path)
                axes.set_ylim(bottom=0)
                if row == 0:
                    axes.set_title(network, fontsize=10)
                if row == 1:
                    axes.set_xlabel("t")
                if column == 0:
                    axes.set_ylabel(("training loss (nats)", "test error (%)")[row])
        handles = panels[0][0].get_legend_handles_labels()
        canvas.legend(*handles, loc="outside lower center", ncols=3)

    said = []
    for network, runs in found.items():
        highest = {p: spread([max(run[p].values["train loss"]) for run in runs]) for p in paths}
        said.append(f"{network}: " + ", ".join(f"{path} up to {value}" for path, value in highest.items()))
    alt = f"Training loss and test error from one network to the other, {len(SEEDS)} seeds. {'; '.join(said)} nats."
    text = text_of(draw, (6.4, 5.0), "mode", "Line and curves between two networks", alt)
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    began = time.process_time()
    found = {network: [connected(make, seed) for seed in SEEDS] for network, make in NETWORKS.items()}
    barriers, heights, per_seed, checks = [], [], [], []
    for network, runs in found.items():
        for path in ("line", *CURVES):
            walks = [run[path] for run in runs]
            row: dict[str, object] = {"network": network, "path": path}
            for what, unit in (("train loss", 1.0), ("test loss", 1.0), ("train error", 0.01), ("test error", 0.01)):
                row[f"{what}{' %' if unit < 1 else ''}"] = spread([walk.barrier(what) for walk in walks], unit)
            barriers.append(row | {"length": spread([walk.length for walk in walks], digits=1)})
            row = {"network": network, "path": path}
            ends = [walk.values["test error"][end] for walk in walks for end in (0, -1)]
            row["test error of the ends %"] = spread(ends, 0.01, 2)
            test, train = ([walk.summary(f"{part}") for walk in walks] for part in ("test error", "train loss"))
            row["highest test error %"] = spread([s.max for s in test], 0.01, 2)
            row["mean test error by length %"] = spread([s.by_length for s in test], 0.01, 2)
            row["highest train loss"] = spread([s.max for s in train], digits=4)
            heights.append(row | {"mean train loss by length": spread([s.by_length for s in train], digits=4)})
        for path in CURVES:
            for what in ("train loss", "test loss"):
                pairs = [(run["line"].barrier(what), run[path].barrier(what)) for run in runs]
                least = min(above / max(under, 1e-12) for above, under in pairs)
                claim = f"{network}: barrier of the line over that of the {path}, {what}, least of {len(SEEDS)} seeds"
                checks.append((claim, f"at least {WANTED:g}", f"{least:.3g}", least >= WANTED))
        for seed, run in zip(SEEDS, runs, strict=True):
            row = {"network": network, "seed": seed}
            per_seed.append(
                row
                | {
                    f"{path} {what}": f"{run[path].barrier(what):.4f}"
                    for what in ("train loss", "test loss")
                    for path in run
                }
            )
    seconds = time.process_time() - began
    notes = [
        f"Means and standard deviations over seeds {' '.join(map(str, SEEDS))}. Losses in nats.",
        f"Digits of scikit-learn (1,797 images of 8 x 8), {TEST} for testing. Both networks: {EPOCHS} epochs; each "
        f"curve: {CURVE_EPOCHS} epochs, one free point, one t a batch; SGD {RATE}, momentum {MOMENTUM}, decay {DECAY} "
        "on the mixed weights, the rate constant to 50 %, linear to 1 % at 90 %.",
        "A barrier is the highest value above the straight line between the values of the two ends.",
        f"{seconds:.0f} s of processor time in all, one thread.",
    ]
    tables = {"Barriers": barriers, "Heights and means": heights, "Barrier of each seed": per_seed}
    write("mode_connectivity", "Curves between networks", tables, notes, checks, packages=["scikit-learn"])
    (ROOT / "docs" / "figures" / "mode_connectivity.svg").write_text(figure(found), encoding="utf-8")


if __name__ == "__main__":
    main()
