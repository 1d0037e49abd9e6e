"""Does a short SWA phase at a low rate move at all, and what does the plane through its solutions show?

After an experiment that found no gain by SWA: a network is pretrained by AdamW for 20 epochs (a cosine to a tenth of
its rate, decay 1e-4), then SGD without momentum runs a saw-tooth from .001 to .0001 of 3 epochs, 4 times, and its 4
ends are averaged. Here beside it a phase long enough to move: momentum .9 at the constant rate .02, one model an epoch.
Both start at the same pretrained weights. "ensemble" is the mean of the predictions of the averaged models themselves.
BatchNorm is refreshed for every solution, and at every place of the planes (pretrained, last, SWA).

Run: python benchmarks/landscape_mobilenet.py --path cifar10_jpeg.npz [--seeds 0,1,2] [--side 7] [--only-report]
What is finished is kept under runs/landscape_mobilenet and not run again. About 5 CPU-minutes a seed.
Results: benchmarks/results/landscape_mobilenet.json and .md, docs/figures/landscape_mobilenet_*.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, write
from landscape_problems import Problem, friedman, pictures
from torch import Tensor, nn

from lowland import SWA, load, refresh_bn, save, weights_of
from lowland.batchnorm.statistics import layers_of
from lowland.landscape import (
    Estimate,
    Plane,
    Work,
    exact,
    fast,
    frozen,
    load_result,
    measured,
    plane,
    save_result,
)
from lowland.landscape.vectors import norm, sum_of
from lowland.studies.runs.randomness import one_thread
from lowland.weights.named import applied

Weights = dict[str, Tensor]
Row = dict[str, Any]
KEPT = ROOT / "runs" / "landscape_mobilenet"
EPOCHS = 12
PHASES: dict[str, tuple[int, float, Callable[[float], float]]] = {
    # epochs between averaged models, momentum, rate by the time in epochs
    "short": (3, 0.0, lambda t: 0.001 - (0.001 - 0.0001) * (t % 3) / 3),
    "long": (1, 0.9, lambda t: 0.02),
}
SHOWN = ("pretrained", "last", "ensemble", "SWA")


def problems(options: argparse.Namespace, seed: int) -> list[Callable[[], Problem]]:
    few, path = {"train": options.train, "test": options.test}, options.path
    return [
        lambda: pictures("cifar10", "mobilenetv2", path, seed, depth=options.depth, width=options.width, **few),
        lambda: pictures("cifar10", "cnn", path, seed, **few),
        lambda: pictures("mnist", "cnn", "", seed, train=1000, test=1500),
        lambda: friedman(1, seed),
        lambda: friedman(3, seed),
    ]


def trained(problem: Problem, optimizer: Any, rate: Callable[[float], float], epochs: range, seed: int) -> Any:
    """Train on, and yield after each epoch."""
    model = problem.model
    for number in epochs:
        model.train()
        batches = list(problem.epoch(number, seed))
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = rate(number - epochs[0] + step / len(batches))
            optimizer.zero_grad()
            torch.autograd.backward(problem.loss(model, batch)["loss"])
            optimizer.step()
        yield number - epochs[0] + 1


def copied(model: nn.Module) -> Weights:
    return {name: tensor.detach().clone().contiguous() for name, tensor in weights_of(model).items()}


def pretrained(problem: Problem, seed: int, folder: Path) -> Weights:
    file = folder / "pretrained.safetensors"
    if not file.exists():
        optimizer = torch.optim.AdamW(problem.model.parameters(), lr=problem.rate, weight_decay=1e-4)
        first, last = problem.rate, problem.epochs

        def cosine(t: float) -> float:
            return first * (0.1 + 0.9 * (1 + math.cos(math.pi * t / last)) / 2)

        for _ in trained(problem, optimizer, cosine, range(last), seed):
            pass
        save(copied(problem.model), file)
    found: Weights = load(file)
    return found


def phase(problem: Problem, start: Weights, name: str, seed: int) -> tuple[Weights, list[Weights]]:
    """The last weights of one phase of SGD, and those to be averaged."""
    every, momentum, rate = PHASES[name]
    with torch.no_grad():
        for key, p in problem.model.named_parameters():
            p.copy_(start[key])
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-4)
    kept = []
    for done in trained(problem, optimizer, rate, range(1000, 1000 + EPOCHS), seed):
        if done % every == 0:
            kept.append(copied(problem.model))
    return copied(problem.model), kept


def together(problem: Problem, members: list[Weights]) -> dict[str, float]:
    """Test loss, and error, of the mean of the members' predictions."""
    batches, total = problem.sets(1 << 30)["test"], [torch.zeros(())]
    for weights in members:
        with applied(problem.model, weights), torch.no_grad():
            if layers_of(problem.model):
                refresh_bn(problem.model, problem.statistics())
            problem.model.eval()
            outputs = torch.cat([problem.model(x) for x, _ in batches]).double()
            total.append(outputs.softmax(-1) if outputs.shape[1] > 1 else outputs)
    mean, y = sum(total) / len(members), torch.cat([y for _, y in batches])
    assert isinstance(mean, Tensor)
    if mean.shape[1] == 1:
        return {"test loss": float((mean[:, 0] - y).square().mean())}
    nll = float(-mean.gather(1, y[:, None]).log().mean())
    return {"test loss": nll, "test error": float((mean.argmax(1) != y).double().mean())}


def cell(make: Callable[[], Problem], seed: int, options: argparse.Namespace) -> None:
    """Everything of one problem and seed, kept."""
    problem, begun = make(), time.process_time()
    folder = KEPT / f"{problem.name.replace(' ', '-')}-{len(problem.train[1])}" / str(seed)
    if (folder / "numbers.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    start, statistics = pretrained(problem, seed, folder), problem.statistics()
    refresh = exact(statistics) if layers_of(problem.model) else frozen()
    whole = measured(problem.model, problem.sets(5000), problem.loss, refresh=refresh)
    numbers: dict[str, Any] = {"problem": problem.name, "weights": sum(t.numel() for t in start.values())}
    first = whole(start)
    for name in PHASES:
        last, members = phase(problem, start, name, seed)
        average = SWA()
        for weights in members:
            average.update(weights)
        swa: Weights = dict(average.mean())
        numbers[name] = {"pretrained": first, "last": whole(last), "SWA": whole(swa)}
        numbers[name]["ensemble"] = together(problem, members)
        numbers[name]["moved"] = {n: norm(sum_of((1.0, w), (-1.0, start))) for n, w in (("last", last), ("SWA", swa))}
        print(f"{problem.name} {seed} {name}, {time.process_time() - begun:.0f} CPU seconds", flush=True)
        if seed == options.seeds[0] and "mobilenet" in problem.name:
            some = fast(problem.model, swa, statistics, few=2)
            p = Plane.through(start, last, swa, names=("pretrained", "last", "SWA"))
            measure = measured(problem.model, problem.sets(500), problem.loss, refresh=some)
            work = Work(keep=folder / f"{name}.jsonl", about={"refresh": str(some)})
            grid = plane(p, measure, points=options.side, margin=0.3, work=work)
            save_result(grid, folder / f"plane-{name}.safetensors")
            print(f"plane of {name}, {time.process_time() - begun:.0f} CPU seconds", flush=True)
    numbers["norm"], numbers["seconds"] = norm(start), time.process_time() - begun
    (folder / "numbers.json").write_text(json.dumps(numbers))


def scored(rows: list[Row], phase: str, name: str) -> Estimate:
    """Test accuracy, or the squared error where there is none."""
    values = [row[phase][name] for row in rows]
    return Estimate.of([100 * (1 - v["test error"]) if "test error" in v else v["test loss"] for v in values])


def report(options: argparse.Namespace) -> None:
    tables: dict[str, list[Row]] = {"Test accuracy in %, and squared error": [], "How far a phase moved": []}
    planes: list[Row] = []
    notes = [
        "AdamW 20 epochs from .005 (MobileNetV2), .001 (CNN) or .003 (MLP) to a tenth by a cosine; then a phase of 12.",
        "Short: SGD without momentum, a saw-tooth .001 to .0001 of 3 epochs, 4 ends averaged.",
        "Long: momentum .9, constant rate .02, each epoch's end averaged. Nothing was tuned.",
        "Intervals are 95 % by Student's t over seeds; differences are paired.",
        "CIFAR-100, the graph and the 2D problem of the experiment that this follows are not here: their data are not.",
    ]
    for folder in sorted(KEPT.iterdir()):
        files = [folder / str(seed) / "numbers.json" for seed in options.seeds]
        rows = [json.loads(file.read_text()) for file in files if file.exists()]
        title, count = folder.name.rsplit("-", 1)
        for name in PHASES:  # those of a cell that is not finished too
            if (file := files[0].parent / f"plane-{name}.safetensors").exists():
                planes.append(drawn(file, name, title, count))
        if not rows:
            notes.append(f"{title}: {count} training examples, not finished.")
            continue
        seconds = sum(row["seconds"] for row in rows)
        notes.append(
            f"{title}: {count} training examples, {rows[0]['weights']:,} weights, {len(rows)} seeds, "
            f"{seconds:.0f} CPU-seconds."
        )
        for name in PHASES:
            scores = {key: scored(rows, name, key) for key in SHOWN}
            line: Row = {"problem": title, "phase": name, "epochs": "20, then 12 more", "seeds": len(rows)}
            line |= {key: round(one.mean, 4) for key, one in scores.items()}
            line |= {f"{key} - pretrained": str(scores[key].minus(scores["pretrained"])) for key in SHOWN[1:]}
            tables["Test accuracy in %, and squared error"].append(line)
            moved = {f"{n} moved": str(Estimate.of([r[name]["moved"][n] for r in rows])) for n in ("last", "SWA")}
            length = Estimate.of([row["norm"] for row in rows]).mean
            tables["How far a phase moved"].append({"problem": title, "phase": name, **moved, "|pretrained|": length})
    write("landscape_mobilenet", "A short SWA phase and one that moves", {**tables, "Planes": planes}, notes)


def drawn(file: Path, name: str, title: str, count: str) -> Row:
    """The row of a plane, and its figure into the documentation."""
    from lowland.figures import write_landscape

    grid, its = load_result(file)
    about = {"data": f"{title}, {count} training images, values on 500 of each part", "n": "one seed", **its}
    target = ROOT / "docs" / "figures" / f"landscape_mobilenet_{name}.svg"
    write_landscape(grid, target, values=["train loss", "test error"], about=about)
    last, swa = grid.points["last"], grid.points["SWA"]
    row: Row = {
        "problem": title,
        "phase": name,
        "last at": f"({last[0]:.4g}, 0)",
        "SWA at": "({:.4g}, {:.4g})".format(*swa),
    }
    for value in ("train loss", "test loss", "test error"):
        low, all_ = grid.lowest(value), grid.of(value)
        row[f"lowest {value}"] = f"{low.value:.4g} at ({low.x:.3g}, {low.y:.3g})"
        row[f"range of {value}"] = float(all_.max() - all_.min())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--depth", type=int, default=7)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--side", type=int, default=7, help="places along each axis of the planes")
    parser.add_argument("--only-report", action="store_true")
    options = parser.parse_args()
    if not options.only_report:
        for seed in options.seeds:
            for make in problems(options, seed):
                cell(make, seed, options)
    report(options)


if __name__ == "__main__":
    with one_thread():
        main()
