"""What the GPU pack measures of updates, draws, BatchNorm and predictions, beside the triad, a copy and the peers.

Contenders are those of updates.py and draws.py with the model on the device, and loops that people write. Times are of
events on the device, so that a call that only queues work is not taken for one that has done it. A toy size is for
trying the pack on a CPU: its figures say nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import draws
import harness
import torch
import updates
from gpu_training import RECIPES, TOYS, Recipe
from harness import Check, Row, compare, peer, triad, write
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lowland import SWAG, predict, refresh_bn
from lowland.batchnorm import FastRefresh
from lowland.studies.images.networks import build

PEERS = ("swa-gaussian", "torch-uncertainty", "timm", "ema-pytorch", "torch-ema")
ROUNDS, SECONDS = 8, 60.0  # of a table, at most


def models(device: str, toy: bool) -> dict[str, nn.Module]:
    """ResNet-50's shapes, and BERT's where twenty columns of it fit for every contender."""
    if toy:
        return {"toy": updates.nested(updates.lora(inner=16, rank=2)).to(device)}
    found = {"25M": updates.nested(updates.resnet50()).to(device)}
    if torch.cuda.get_device_properties(device).total_memory > 70 << 30:
        with suppress(ImportError):  # transformers may be missing on the machine with the GPU
            found["110M"] = updates.bert().to(device)
    return found


def copying(model: nn.Module) -> Callable[[], object]:
    size, device = updates.size_of(model), next(model.parameters()).device
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    return lambda: target.copy_(source)


def troubles(names: tuple[str, ...], toy: bool) -> dict[str, str]:
    """Why a peer cannot be had, or ''; on a device without a network most cannot."""
    if toy:
        return dict.fromkeys(names, "left out of a dry run")
    return {name: peer(name) for name in names}


def told(lacking: dict[str, str]) -> list[str]:
    return [f"{name} is missing here: {why.splitlines()[-1]}" for name, why in lacking.items() if why]


def measure_updates(device: str, toy: bool) -> None:
    tables: dict[str, list[Row]] = {}
    checks: list[Check] = []
    lacking = troubles(PEERS, toy)
    for name, model in models(device, toy).items():
        limit = triad(updates.size_of(model), device)
        kinds: tuple[tuple[str, float, Callable[..., dict[str, Callable[[], object]]]], ...] = (
            ("mean", 3.0, updates.means), ("diagonal", 5.0, updates.diagonals), ("low-rank", 6.0, updates.all_gaussians)
        )  # fmt: skip
        for kind, vectors, make in kinds:
            rows = compared({**make(model, lacking)}, limit, vectors, model)
            tables[f"{name}: {kind}"] = rows
            ours = next(row for row in rows if row.name.startswith("lowland"))
            got = f"{ours.limit:.2f}x"
            checks.append((f"{name}: {ours.name} is near the limit", "at most 1.25x", got, (ours.limit or 9) <= 1.25))
            gc.collect()
    write("updates", "One update on the device", tables, told(lacking), checks)


def measure_draws(device: str, toy: bool) -> None:
    tables, checks = {}, []
    lacking = troubles(("swa-gaussian", "torch-uncertainty"), toy)
    rank = 4 if toy else draws.RANK
    for name, model in models(device, toy).items():
        swag = collected(model, rank)
        generator = torch.Generator(device).manual_seed(0)
        calls: dict[str, Callable[[], object]] = {
            "lowland sample()": lambda swag=swag, generator=generator: swag.sample(generator=generator),
            "torch: mean + std z1 + D z2": lambda swag=swag: by_hand(swag),
        }
        if not lacking["swa-gaussian"]:
            theirs = draws.official(model, rank)
            calls[draws.FULL] = lambda theirs=theirs: theirs.sample(1.0, cov=True)
        rows = compared(calls, triad(updates.size_of(model), device), rank + 3.0, model)
        tables[name] = rows
        if draws.FULL in calls:
            times = rows[-1].over(rows[0])
            checks.append((f"{name}: a draw against the official's", "100x", f"{times:.0f}x", times >= 100))
        gc.collect()
    write("draws", "One draw on the device", tables, told(lacking), checks)


def collected(model: nn.Module, rank: int) -> SWAG:
    swag = SWAG(rank=rank)
    for _ in range(rank + 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3 * torch.randn_like(parameter))
        swag.update(model)
    return swag


@torch.no_grad()
def by_hand(swag: SWAG) -> dict[str, Tensor]:
    slots, made = swag._slots, {}
    z2 = torch.randn(swag.rank, device=next(iter(slots["mean"].values())).device)
    for name, mean in slots["mean"].items():
        spread = swag._base()[name].sqrt() * torch.randn_like(mean)
        made[name] = mean + (spread + torch.tensordot(z2, slots["deviations"][name], 1)) / 2**0.5
    return made


def compared(calls: dict[str, Any], limit: Any, vectors: float, model: nn.Module) -> list[Row]:
    lengths = dict.fromkeys(calls, vectors) | {"copy of the weights": 2.0}
    everything = {**calls, "copy of the weights": copying(model)}
    return compare(everything, limit=limit, vectors=lengths, rounds=ROUNDS, window=0.02, budget=SECONDS)


def network(name: str, device: str, toy: bool) -> tuple[nn.Module, list[Tensor], Recipe]:
    recipe = (TOYS if toy else RECIPES)[name]
    size, batch, number = (16, 8, 4) if toy else (32, 128, 16)
    model = build(recipe.network, channels=3, size=size, classes=10, depth=recipe.depth, width=recipe.width)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(batch, 3, size, size, generator=generator) for _ in range(number)]
    model = model.to(device, memory_format=torch.channels_last)
    return model, [x.to(device, memory_format=torch.channels_last) for x in images], recipe


def measure_batchnorm(device: str, toy: bool) -> None:
    model, images, _ = network("preresnet110", device, toy)

    @torch.no_grad()
    def forward(training: bool) -> None:
        model.train(training)
        for batch in images:
            model(batch)

    rows = compare(
        {
            "forward passes, eval mode": lambda: forward(False),
            "forward passes, training mode": lambda: forward(True),
            "lowland refresh_bn": lambda: refresh_bn(model, images),
            "torch update_bn": lambda: update_bn(images, model),
        },
        baseline="forward passes, training mode",
        rounds=ROUNDS,
        calls=1,
        budget=SECONDS,
    )
    ratio = rows[2].ratio or 9.0
    checks = [("a refresh costs its forward passes", "at most 1.1x", f"{ratio:.2f}x", ratio <= 1.1)]
    write("batchnorm", f"Refreshing BatchNorm on the device, {len(images)} batches", {"preresnet": rows}, [], checks)


def measure_prediction(device: str, toy: bool) -> None:
    tables, checks = {}, []
    number = 3 if toy else 30
    for name in RECIPES:
        model, images, _ = network(name, device, toy)
        swag = collected(model, 2)
        points = [{key: tensor.clone() for key, tensor in swag.sample(generator=seeded()).items()} for _ in range(3)]

        @torch.no_grad()
        def forward(model: nn.Module = model, images: list[Tensor] = images) -> None:
            model.eval()
            for _ in range(number):
                for batch in images:
                    model(batch)

        @torch.no_grad()
        def loop(model: nn.Module = model, images: list[Tensor] = images, points: Any = points) -> Tensor:
            model.eval()
            total: Any = 0
            for s in range(number):
                model.load_state_dict(points[s % 3], strict=False)
                total = total + torch.cat([torch.softmax(model(batch), -1) for batch in images])
            return total / number

        def ours(model: nn.Module = model, images: list[Tensor] = images, swag: SWAG = swag, **more: Any) -> object:
            return predict(model, swag, images, samples=number, generator=seeded(), **more)

        calls: dict[str, Callable[[], object]] = {
            "forward passes alone": forward,
            "load_state_dict and a pass, draws at hand": loop,
        }
        if name == "vgg16":
            calls["lowland predict, draws made"] = ours
        else:
            calls["lowland predict, draws made, BatchNorm exact"] = lambda ours=ours, x=images: ours(bn_batches=x)
            calls["lowland predict, draws made, FastRefresh"] = lambda ours=ours, x=images: ours(
                bn_batches=FastRefresh(x)
            )
        rows = compare(calls, baseline="forward passes alone", rounds=4, calls=1, budget=SECONDS)
        tables[name] = rows
        if name == "vgg16":
            ratio = rows[-1].ratio or 9.0
            checks.append(("draws cost their forward passes", "at most 1.2x", f"{ratio:.2f}x", ratio <= 1.2))
    write("prediction", f"Predictions of {number} draws on the device", tables, [], checks)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


MEASURES: dict[str, Callable[[str, bool], None]] = {
    "updates": measure_updates,
    "draws": measure_draws,
    "batchnorm": measure_batchnorm,
    "prediction": measure_prediction,
}


def measure(name: str, device: str, toy: bool, out: Any) -> None:
    harness._STATE.update(device=device, out=out, quick=toy)
    MEASURES[name](device, toy)
