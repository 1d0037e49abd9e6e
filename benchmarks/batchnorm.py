"""What refreshing BatchNorm for 30 draws costs, and what a control variate saves and loses, on a trained ResNet-20.

    python benchmarks/batchnorm.py --data cifar10_jpeg.npz

The network (trained with seed 0) and its SWAG posterior (seed 1, rank 20) come from cifar_network.py. BatchNorm is
refreshed on all 20,000 augmented training images in 157 batches of 128, for six draws of the posterior.

* Speed: `refresh_bn` over the same 8 batches against plain forward passes and against torch's update_bn, interleaved.
* In all: CPU seconds of S = 30 exact refreshes over all batches against one reference and 30 refreshes of a few
  batches, from the means over the draws.
* Loss: KL(predictions after the exact refresh || after this one), natural units a test image, averaged over the images
  and draws; "BMA": the same of the averages over the draws. Beside it the batches alone, and the
  mean's own statistics.
* Error: what the halves of the few batches say against the true error of the statistics and against the KL.

What the exact refreshes gave, with the seconds that they took, and the losses are kept under .cache/cifar_network/
(exact_*.pt, losses.pt), 10 minutes of one core; a run that finds them measures the speed and writes the results.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import cifar_network as cifar
import torch
from harness import Row, arguments, compare, realtime, write
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from lowland import SWAG, applied, refresh_bn
from lowland.batchnorm import BNReference, Refreshed, bn_reference
from lowland.batchnorm.statistics import layers_of, statistics_of

DRAWS = {1: 6}  # by seed of the posterior
S = 30  # draws to which costs are scaled
TESTED = 250  # test images
TIMED = 8  # batches in a timed window
FEW = (2, 4, 8)  # batches of 128 images
SIZES = (8, 16, 32, 64)  # images in each of two smaller batches
TOLERANCES = (0.01, 0.005, 0.003, 0.002)
SCALES = (16.0,)  # of the covariance, for draws farther from the mean; seed 1, one draw each

Result = TypeVar("Result")
Statistics = dict[str, tuple[Tensor, Tensor]]


def statistics_in(model: nn.Module) -> Statistics:
    return {name: tuple(t.clone() for t in statistics_of(layer)) for name, layer in layers_of(model).items()}  # type: ignore[misc]


def put(model: nn.Module, found: Statistics) -> int:
    for name, layer in layers_of(model).items():
        for buffer, value in zip(statistics_of(layer), found[name], strict=True):
            buffer.copy_(value)
    return 0


@torch.no_grad()
def log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    return torch.cat([functional.log_softmax(model(part), dim=1) for part in images.split(250)]).double()


def kl(exact: Tensor, other: Tensor) -> float:
    return float((exact.exp() * (exact - other)).sum(1).mean())


def bma(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).logsumexp(0) - math.log(len(parts))


def true_errors(found: Statistics, exact: Statistics, eps: float) -> list[float]:
    """The error of each layer that `Refreshed.errors` estimates."""
    errors = []
    for name, (mean, var) in exact.items():
        other_mean, other_var = found[name]
        shift = (other_mean - mean).square() / (var + eps)
        stretch = ((other_var + eps) / (var + eps)).log().div(2).square()
        errors.append(math.sqrt(float((shift + stretch).mean())))
    return errors


def timed(fn: Callable[[], Result]) -> tuple[Result, float]:
    """The result and CPU seconds: other programs on the machine do not count."""
    begin = time.process_time()
    result = fn()
    return result, time.process_time() - begin


def posterior(data: Path, seed: int) -> SWAG:
    swag = SWAG(rank=20)
    for weights in cifar.iterates(data, seed):
        swag.update(weights)
    return swag


Draw = tuple[dict[str, Tensor], Statistics, float]  # weights, exact statistics, CPU seconds of the exact refresh


def exact_draws(
    data: Path, model: nn.Module, batches: list[Tensor], seed: int, scale: float, number: int
) -> list[Draw]:
    """Draws with their exact statistics."""
    kept = cifar.CACHE / f"exact_{seed}_{scale:g}_{number}.pt"
    if not kept.exists():
        generator = torch.Generator().manual_seed(seed)
        swag, found = posterior(data, seed), []
        for index in range(number):
            weights = swag.tempered(scale).sample(generator=generator)
            with applied(model, weights):
                _, spent = timed(lambda: refresh_bn(model, batches))
                found.append((weights, statistics_in(model), spent))
            print(f"seed {seed}, scale {scale:g}: draw {index + 1} of {number} exact in {spent:.1f} CPU s", flush=True)
        cifar.save(found, kept)
    return list(torch.load(kept))


class Measured:
    """What one way of refreshing gave, over draws."""

    def __init__(self) -> None:
        self.kls: list[float] = []
        self.seconds: list[float] = []
        self.batches: list[int] = []
        self.estimated: list[float] = []
        self.true: list[float] = []
        self.predictions: dict[int, list[Tensor]] = {}
        self.bma: list[float] = []

    def shown(self, what: str) -> dict[str, object]:
        low, _, high = statistics.quantiles(self.kls * (1 + (len(self.kls) == 1)), n=4, method="inclusive")
        row: dict[str, object] = {
            "statistics": what,
            "batches": f"{statistics.mean(self.batches):.3g}",
            "KL": f"{statistics.mean(self.kls):.2g}",
            "quartiles of draws": f"{low:.2g} to {high:.2g}",
            "worst draw": f"{max(self.kls):.2g}",
            "KL of BMA": ", ".join(f"{value:.2g}" for value in self.bma),
        }
        if self.estimated:
            row["estimated error"] = f"{statistics.mean(self.estimated):.2g}"
        row["true error"] = f"{statistics.mean(self.true):.2g}"
        return row


def losses(
    model: nn.Module, images: Tensor, draws: dict[int, list[Draw]], ways: dict[str, Callable[[int], Refreshed | int]]
) -> dict[str, Measured]:
    """Refresh every draw in every way; a way is called with the seed and leaves its statistics in the model."""
    measured = {name: Measured() for name in ways}
    eps = next(iter(layers_of(model).values())).eps
    for seed, some in draws.items():
        exact_parts = []
        for weights, exact, _ in some:
            with applied(model, weights):
                put(model, exact)
                truth = log_probabilities(model, images)
                exact_parts.append(truth)
                for name, way in ways.items():
                    result, spent = timed(partial(way, seed))
                    predicted = log_probabilities(model, images)
                    into = measured[name]
                    into.seconds.append(spent)
                    into.kls.append(kl(truth, predicted))
                    into.true.append(max(true_errors(statistics_in(model), exact, eps)))
                    into.predictions.setdefault(seed, []).append(predicted)
                    into.batches.append(result.batches if isinstance(result, Refreshed) else result)
                    if isinstance(result, Refreshed):
                        into.estimated.append(result.error)
        for into in measured.values():
            into.bma.append(kl(bma(exact_parts), bma(into.predictions[seed])))
            into.predictions.clear()
        print(f"seed {seed}: {len(some)} draws measured", flush=True)
    return measured


def alone(model: nn.Module, batches: list[Tensor]) -> int:
    refresh_bn(model, batches)
    return len(batches)


@dataclass
class Losses:
    """All but the speed, which wants a quiet machine."""

    found: dict[str, Measured]
    small: dict[str, Measured]
    far: dict[str, Measured]
    exact_seconds: list[float]
    reference_seconds: list[float]
    accuracies: list[float]


def losses_of_all(data: Path, model: nn.Module, batches: list[Tensor]) -> Losses:
    images = cifar.images(data, "test")[0][:TESTED]
    draws = {seed: exact_draws(data, model, batches, seed, 1.0, DRAWS[seed]) for seed in cifar.SEEDS}
    references: dict[int, BNReference[Tensor]] = {}
    own: dict[int, Statistics] = {}
    reference_seconds, accuracies = [], []
    for seed in cifar.SEEDS:
        with applied(model, posterior(data, seed).mean()):
            references[seed], spent = timed(lambda: bn_reference(model, batches, keep=max(FEW)))
            reference_seconds.append(spent)
            own[seed] = statistics_in(model)
            accuracies.append(cifar.accuracy(model, *(part[:2000] for part in cifar.images(data, "test"))))
        print(f"seed {seed}: reference in {reference_seconds[-1]:.1f} CPU s", flush=True)

    ways: dict[str, Callable[[int], Refreshed | int]] = {"the mean's own": lambda seed: put(model, own[seed])}
    for n in FEW:
        ways[f"{n} batches alone"] = lambda seed, n=n: alone(model, batches[:n])  # type: ignore[misc]
    ways["16 batches alone"] = lambda seed: alone(model, batches[8:24])
    for n in FEW:
        ways[f"control variate, {n} batches"] = lambda seed, n=n: references[seed].refresh(model, few=n)  # type: ignore[misc]
    found = losses(model, images, draws, ways)

    small: dict[str, Measured] = {}
    for size in SIZES:
        first = cifar.SEEDS[0]
        parts = batches[0].split(size)[:2]
        with applied(model, posterior(data, first).mean()):
            reference = bn_reference(model, parts, keep=2)
        # As if these two had come before the 157: a pass over all for each size would say the same.
        reference._sums, reference._longest = references[first]._sums, len(batches)
        small |= losses(
            model,
            images,
            {first: draws[first]},
            {
                f"2 batches of {size} alone": lambda seed, parts=parts: alone(model, list(parts)),  # type: ignore[misc]
                f"control variate, 2 batches of {size}": lambda seed, r=reference: r.refresh(model),  # type: ignore[misc]
            },
        )

    far: dict[str, Measured] = {}
    for scale in SCALES:
        some = exact_draws(data, model, batches, cifar.SEEDS[0], scale, 1)
        names = ("the mean's own", f"{FEW[0]} batches alone", f"control variate, {FEW[0]} batches")
        for name, measured in losses(
            model, images, {cifar.SEEDS[0]: some}, {name: ways[name] for name in names}
        ).items():
            far[f"scale {scale:g}: {name}"] = measured

    seconds = [spent for some in draws.values() for _, _, spent in some]
    return Losses(found, small, far, seconds, reference_seconds, accuracies)


def main() -> None:
    options = arguments(__doc__, data="")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # real-time priority is for the timed windows only
    torch.set_num_threads(options.threads or 1)
    if not options.data:
        raise SystemExit("pass --data, the path of cifar10_jpeg.npz")
    data = Path(options.data)
    model = cifar.network()
    model.load_state_dict(cifar.trained(data))
    batches = cifar.training_batches(cifar.images(data, "train")[0], seed=0)
    kept = cifar.CACHE / "losses.pt"
    if not kept.exists():
        cifar.save(losses_of_all(data, model, batches), kept)
    measured = torch.load(kept, weights_only=False)
    report(measured, timings(model, batches[:TIMED]), len(batches))


def timings(model: nn.Module, some: list[Tensor]) -> list[Row]:
    """Passes over the same batches."""

    @torch.no_grad()
    def forward(training: bool) -> None:
        model.train(training)
        for batch in some:
            model(batch)

    realtime()
    try:
        return compare(
            {
                "forward passes, eval mode": lambda: forward(False),
                "forward passes, training mode": lambda: forward(True),
                "refresh_bn": lambda: refresh_bn(model, some),
                "torch update_bn": lambda: update_bn(some, model),
            },
            baseline="forward passes, eval mode",
            rounds=6,
            calls=1,
        )
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def report(known: Losses, rows: list[Row], number: int) -> None:
    found, small, far = known.found, known.small, known.far
    reference = statistics.mean(known.reference_seconds)
    exact = S * statistics.mean(known.exact_seconds)
    costs: list[dict[str, object]] = [{"way": "refresh_bn on all batches", "reference s": 0.0, "refreshes s": exact}]
    for name, measured in found.items():
        if "control" in name:
            costs.append(
                {
                    "way": name,
                    "reference s": reference,
                    "refreshes s": S * statistics.mean(measured.seconds),
                }
            )
    cheaper = {}
    for row in costs:
        in_all = float(str(row["reference s"])) + float(str(row["refreshes s"]))
        row["in all s"] = in_all
        row["times cheaper"] = cheaper[str(row["way"])] = exact / in_all
    by_name = {row.name: row for row in rows}
    refresh = by_name["refresh_bn"]
    over_eval = refresh.over(by_name["forward passes, eval mode"])
    over_training = refresh.over(by_name["forward passes, training mode"])
    two, tight = found[f"control variate, {FEW[0]} batches"], found[f"control variate, {FEW[1]} batches"]
    pairs = [
        {
            "way": name,
            "estimated error": f"{statistics.mean(m.estimated):.2g}",
            "true error": f"{statistics.mean(m.true):.2g}",
            "estimated over true, 5 % to 95 % of draws": between(
                [e / t for e, t in zip(m.estimated, m.true, strict=True)]
            ),
            "KL": f"{statistics.mean(m.kls):.2g}",
            "KL over squared estimate, 5 % to 95 %": between(
                [k / e**2 for k, e in zip(m.kls, m.estimated, strict=True)]
            ),
        }
        for name, m in {**found, **small, **far}.items()
        if m.estimated and min(m.true) > 0 and min(m.estimated) > 0
    ]
    checks = []
    for measured, n in ((two, FEW[0]), (tight, FEW[1])):
        times, loss = cheaper[f"control variate, {n} batches"], statistics.mean(measured.kls)
        checks.append(
            (
                f"S = {S}: {n} batches and the reference against exact, CPU time",
                ">= 15x cheaper",
                f"{times:.1f}x",
                times >= 15,
            )
        )
        checks.append((f"KL of {n} batches, a sample", "<= 0.0005", f"{loss:.2g}", loss <= 5e-4))
        checks.append(
            (
                f"KL of the BMA of {n} batches",
                "<= 0.0005",
                f"{max(measured.bma):.2g}",
                max(measured.bma) <= 5e-4,
            )
        )
    checks.append(
        (
            "refresh_bn against forward passes in eval mode over the same batches",
            "<= 1.1x",
            f"{over_eval:.3f}x",
            over_eval <= 1.1,
        )
    )
    checks.append(
        ("refresh_bn against forward passes in training mode", "<= 1.1x", f"{over_training:.3f}x", over_training <= 1.1)
    )
    # The path of the data is this machine's.
    sys.argv = [Path(part).name if part.endswith(".npz") else part for part in sys.argv]
    write(
        "batchnorm",
        "BatchNorm for many draws",
        {
            f"Speed over the same {TIMED} batches": rows,
            f"CPU seconds in all, S = {S}, {number} batches": costs,
            "Loss": [m.shown(name) for name, m in found.items()],
            "Fewer images": [m.shown(name) for name, m in small.items()],
            "Draws farther from the mean": [m.shown(name) for name, m in far.items()],
            "What the error says": pairs,
            "What a tolerance does": [chosen(tolerance, found) for tolerance in TOLERANCES],
        },
        [
            "KL is that of the predictions after the exact refresh from those after this one, in natural units a test "
            f"image; {TESTED} test images.",
            "Errors are the largest of the 21 layers, in standard deviations of the layer's output.",
            "Accuracy of the posterior's mean after its refresh, first 2,000 test images: "
            + ", ".join(f"{accuracy:.4f}" for accuracy in known.accuracies),
            "The network: cifar_network.py " + " ".join((cifar.__doc__ or "").split("\n\n")[2].split()),
            "16 batches alone are not among the few: 8 to 23.",
        ],
        checks,
    )


def chosen(tolerance: float, found: dict[str, Measured]) -> dict[str, object]:
    """The draws as `refresh(model, tolerance=...)` leaves them: with the first of 2, 4, 8 batches that meets it."""
    runs = [found[f"control variate, {n} batches"] for n in FEW]
    numbers, kls = [], []
    for draw in range(len(runs[0].kls)):
        met = [i for i, run in enumerate(runs) if run.estimated[draw] <= tolerance]
        numbers.append(FEW[met[0]] if met else math.inf)
        kls.append(runs[met[0]].kls[draw] if met else 0.0)
    return {
        "tolerance": tolerance,
        **{f"draws with {n} batches": numbers.count(n) for n in FEW},
        "draws refreshed exactly": numbers.count(math.inf),
        "KL": f"{statistics.mean(kls):.2g}",
        "worst draw": f"{max(kls):.2g}",
    }


def between(values: list[float]) -> str:
    ordered = sorted(values)
    last = len(ordered) - 1
    return f"{ordered[round(0.05 * last)]:.2g} to {ordered[round(0.95 * last)]:.2g}"


if __name__ == "__main__":
    main()
