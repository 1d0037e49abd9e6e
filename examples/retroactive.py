"""Choose the averaging after training: handwritten digits, one run, two power EMAs recorded, many averages tried.

    python examples/retroactive.py [FOLDER]

trains a small convolutional network at a constant rate on noisy images for 1,200 steps and records two power EMAs
every 40 steps (60 files of 25 KB). Then averages of three kinds and many widths are made from these files and scored on
validation images; three are compared with the same averages kept during training. Prints the tables; writes sweep.md
and sweep.svg (score against half-life) into FOLDER (runs/retroactive). About 15 seconds on one core.
"""

import sys
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from lowland import EMA, SWA, applied, weights_of
from lowland.ema import Power, half_life
from lowland.figures import write_sweep
from lowland.retroactive import Exponential, PowerLaw, Recorder, Window, recorded, sweep, synthesise

STEPS, EVERY, BATCH, RATE, NOISE = 1200, 40, 16, 0.02, 0.5
WIDTHS = (0.05, 0.1)  # of the two power EMAs that are recorded
SHARES = (1 / 30, 1 / 15, 1 / 10, 1 / 6, 4 / 15, 2 / 5, 1 / 2, 2 / 3, 5 / 6, 1)  # of the run: windows to try


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def split(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """500 images to train on, 600 to choose by, 697 to report."""
    images, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    x = torch.tensor(images, dtype=torch.float32)[order].view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)[order]
    return [(x[:500], y[:500]), (x[500:1100], y[500:1100]), (x[1100:], y[1100:])]


def main() -> None:
    torch.manual_seed(0)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/retroactive")
    (x, y), (x_val, y_val), (x_test, y_test) = split(seed=0)
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    record = Recorder(folder / "record", [EMA(Power.of_width(width)) for width in WIDTHS], every=EVERY)
    if record.resume():
        sys.exit(f"{folder}/record holds a record already: delete it, or choose another folder")
    # Kept during training only to see afterwards how close the averages made from the record come.
    truth = {
        Exponential(STEPS / 20, STEPS): EMA(half_life(STEPS / 20)),
        PowerLaw.of_width(0.07, STEPS): EMA(Power.of_width(0.07)),
        Window.last(STEPS // 3, STEPS): SWA(),
    }
    began = time.perf_counter()
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(y), (BATCH,))
        optimiser.zero_grad()
        noisy = x[chosen] + NOISE * torch.randn(BATCH, 1, 8, 8)
        nn.functional.cross_entropy(model(noisy), y[chosen]).backward()
        optimiser.step()
        record.update(model)
        for target, averager in truth.items():
            if step > target.start:
                averager.update(model)
    print(f"trained {STEPS} steps in {time.perf_counter() - began:.0f} s")

    @torch.no_grad()
    def log_likelihood(weights, x=x_val, y=y_val):
        """Of every image: the mean is minus the NLL."""
        with applied(model, weights):
            return -nn.functional.cross_entropy(model(x), y, reduction="none")

    basis = recorded(folder / "record")
    lengths = [round(share * STEPS) for share in SHARES]
    targets = [Exponential(length / 2, STEPS, corrected=True) for length in lengths]
    targets += [PowerLaw.of_width(width, STEPS) for width in (0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.14, 0.2)]
    targets += [Window.last(length, STEPS) for length in lengths]
    found = sweep(basis, targets, log_likelihood)
    best = found.trials[found.best]

    lines = [str(found), ""]
    lines.append(f"Expected on other images when the best is chosen so: {found.expected:.4f}.")
    last = log_likelihood(weights_of(model), x_test, y_test).mean()
    chosen = log_likelihood(synthesise(basis, best.target), x_test, y_test).mean()
    lines.append(f"Test images, mean log-likelihood: last weights {last:.4f}, {best.target} {chosen:.4f}.")
    lines += ["", "| made from the record | residual | distance to the one kept in training | over the last weights' |"]
    lines.append("|---|---|---|---|")
    for target, averager in truth.items():
        kept, made = averager.mean(), synthesise(basis, target)
        away = gap(made, kept)
        residual = next(t.residual for t in sweep(basis, [target], lambda weights: 0.0).trials)
        lines.append(f"| {target} | {residual:.3f} | {away:.4f} | {away / gap(weights_of(model), kept):.2g} |")
    (folder / "sweep.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_sweep(found, folder / "sweep.svg", metric="mean log-likelihood, validation images")
    print("\n".join(lines))


def gap(ours, theirs):
    """Distance between two sets of weights."""
    return float(sum(((ours[name] - theirs[name]) ** 2).sum() for name in theirs) ** 0.5)


if __name__ == "__main__":
    main()
