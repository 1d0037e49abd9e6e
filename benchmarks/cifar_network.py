"""A ResNet-20 on CIFAR-10 and 20 iterates of SGD behind it, a seed: what benchmarks/batchnorm.py measures on.

    python benchmarks/cifar_network.py --data cifar10_jpeg.npz

trains on 20,000 training images: 8 epochs of SGD (seed 0), then from there, for each seed in `SEEDS`, 600 further steps
at a constant rate, of which every 30th leaves an iterate for SWAG. 7 and 3.5 minutes on one core.
Images, weights and iterates are kept under .cache/, so that a benchmark that needs them again finds them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CACHE = Path(__file__).parent.parent / ".cache" / "cifar_network"
IMAGES = 20_000  # training images; the test set is used whole
BATCH = 128  # images
EPOCHS = 8  # of SGD before the first iterate
RATE = 0.2  # the highest of a one-cycle schedule
SWAG_RATE = 0.01  # constant, as for PreResNets in the SWAG paper
DECAY = 3e-4  # weight decay, as there
STEPS, EVERY = 600, 30  # steps of SGD at that rate; one iterate each so many
SEEDS = (1,)


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut (He, Zhang, Ren, Sun, 2016, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(out + self.shortcut(x))


def network() -> nn.Sequential:
    """ResNet-20 with 16, 32, 64 channels: 272,474 parameters, 21 BatchNorm layers."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(Block(inputs, width, 2 if stage and not block else 1))
            inputs = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def images(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), standardised, and labels (N,), of "train" (`IMAGES` of them) or "test", shuffled."""
    kept = CACHE / f"{split}.pt"
    if not kept.exists():
        import io

        import numpy
        from PIL import Image

        with numpy.load(data) as arrays:
            names = (f"{split}_bytes", f"{split}_offsets", f"{split}_labels")
            content, offsets, labels = (arrays[name] for name in names)
        number = IMAGES if split == "train" else len(labels)
        # The file is sorted by class.
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:number].numpy()
        pixels = numpy.stack(
            [
                numpy.asarray(Image.open(io.BytesIO(content[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB"))
                for i in chosen
            ]
        )
        CACHE.mkdir(parents=True, exist_ok=True)
        save((torch.from_numpy(pixels), torch.from_numpy(labels[chosen].astype("int64"))), kept)
    raw, labels_ = torch.load(kept)
    mean, std = torch.tensor([125.3, 123.0, 113.9]), torch.tensor([63.0, 62.1, 66.7])
    x = ((raw.float() - mean) / std).permute(0, 3, 1, 2)  # (N, 32, 32, 3) in memory: channels last
    return x, labels_


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image flipped half of the time and shifted by up to 4 pixels, the border filled with the mean colour."""
    n = len(x)
    flip = torch.rand(n, generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    padded = functional.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)  # (N, 40, 40, 3)
    top, left = torch.randint(9, (2, n), generator=generator)
    rows, columns = top[:, None] + torch.arange(32), left[:, None] + torch.arange(32)  # (N, 32)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def training_batches(x: Tensor, seed: int, number: int | None = None) -> list[Tensor]:
    """Shuffled, augmented batches of `BATCH` training images, made once: what BatchNorm is refreshed with."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    parts = order.split(BATCH)[:number]
    return [augmented(x[part], generator).contiguous(memory_format=torch.channels_last) for part in parts]


def save(content: object, path: Path) -> None:
    part = path.with_suffix(".part")  # renamed when complete: a killed run leaves no half file under the name
    torch.save(content, part)
    part.rename(path)


def trained(data: Path) -> dict[str, Tensor]:
    """The state after the epochs of SGD."""
    kept = CACHE / "sgd.pt"
    if not kept.exists():
        x, y = images(data, "train")
        torch.manual_seed(0)
        model = network()
        optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY, nesterov=True)
        total = EPOCHS * (len(x) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total, pct_start=0.25, final_div_factor=50)
        _train(model, optimiser, x, y, total, 0, lambda step: schedule.step())
        save(model.state_dict(), kept)
    return dict(torch.load(kept))


def iterates(data: Path, seed: int) -> list[dict[str, Tensor]]:
    """The weights after every `EVERY` steps at the constant rate, parameters only."""
    kept = CACHE / f"iterates_{seed}.pt"
    if not kept.exists():
        model = network()
        model.load_state_dict(trained(data))
        x, y = images(data, "train")
        optimiser = torch.optim.SGD(model.parameters(), lr=SWAG_RATE, momentum=0.9, weight_decay=DECAY)
        found: list[dict[str, Tensor]] = []

        def keep(step: int) -> None:
            if step % EVERY == 0:
                found.append({name: p.detach().clone() for name, p in model.named_parameters()})

        _train(model, optimiser, x, y, STEPS, seed, keep)
        save(found, kept)
    return list(torch.load(kept))


def _train(model, optimiser, x, y, steps, seed, after) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    model.train()
    order = torch.empty(0, dtype=torch.long)
    begin, shown = time.process_time(), 0.0
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = torch.randperm(len(x), generator=generator)
        part, order = order[:BATCH], order[BATCH:]
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(augmented(x[part], generator)), y[part])
        loss.backward()
        optimiser.step()
        shown = loss.item() if step == 1 else 0.95 * shown + 0.05 * loss.item()
        after(step)
        if step % 100 == 0:
            print(
                f"seed {seed} step {step} of {steps} loss {shown:.3f} {time.process_time() - begin:.0f} CPU s",
                flush=True,
            )


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True)) / len(
            y
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="cifar10_jpeg.npz")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    model = network()
    model.load_state_dict(trained(data))
    print(f"test accuracy after SGD {accuracy(model, *images(data, 'test')):.4f}", flush=True)
    for seed in SEEDS:
        print(f"seed {seed}: {len(iterates(data, seed))} iterates", flush=True)


if __name__ == "__main__":
    main()
