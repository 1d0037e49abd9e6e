"""A small training by each integration, killed half-way when asked to; a script, and called for the rest of it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowland import SWAG, save, weights_of
from lowland.averager import Averager
from lowland.integrations.optimizer import follow

STEPS, SAVE_EVERY, KILLED_AFTER = 24, 5, 13


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def data(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


def train(model: nn.Module, optimizer: Any, first: int, after: Callable[[int], None]) -> None:
    for step in range(first, STEPS + 1):
        optimizer.zero_grad()
        x, y = data(step)
        (model(x) - y).square().mean().backward()
        optimizer.step()
        after(step)


def write(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def read(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=True) if path.exists() else None


def by_follow(folder: Path, killed: bool) -> Averager:
    model, average = network(), SWAG(rank=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    following = follow(average, model, optimizer, start=4, every=2)
    parts = {"model": model, "optimizer": optimizer, "average": average, "following": following}
    saved = read(folder / "state.pt")
    for key, part in parts.items() if saved else ():
        part.load_state_dict(saved[key])

    def after(step: int) -> None:
        if step % SAVE_EVERY == 0:
            write({key: part.state_dict() for key, part in parts.items()}, folder / "state.pt")
        end(killed and step == KILLED_AFTER)

    train(model, optimizer, following.step + 1, after)
    return average


def by_torchcontrib(folder: Path, killed: bool) -> dict[str, Tensor]:
    from lowland.integrations.torchcontrib import SWA

    model = network()
    optimizer = SWA(torch.optim.AdamW(model.parameters(), lr=0.01), swa_start=4, swa_freq=2, swa_lr=0.005)
    saved = read(folder / "state.pt")
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])

    def after(step: int) -> None:
        if step % SAVE_EVERY == 0:
            write({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "state.pt")
        end(killed and step == KILLED_AFTER)

    train(model, optimizer, optimizer.param_groups[0]["step_counter"] + 1, after)
    optimizer.swap_swa_sgd()
    return weights_of(model)


def by_accelerate(folder: Path, killed: bool) -> Averager:
    from accelerate import Accelerator

    accelerator, average = Accelerator(cpu=True), SWAG(rank=3)
    model, optimizer = network(), None
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    following = follow(average, model, optimizer, start=4, every=2)
    accelerator.register_for_checkpointing(average, following)
    if (folder / "whole").exists():
        accelerator.load_state(str(folder / (folder / "whole").read_text()))

    def after(step: int) -> None:
        if step % SAVE_EVERY == 0:
            accelerator.save_state(str(folder / f"step-{step}"))
            (folder / "whole").write_text(f"step-{step}")
        end(killed and step == KILLED_AFTER)

    train(model, optimizer, following.step + 1, after)
    return average


def by_lightning(folder: Path, killed: bool) -> Averager:
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    from lowland.integrations.lightning import AveragingCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = data(self.global_step + 1)  # Lightning reads the loader from its beginning when it resumes
            return (self.net(x) - y).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    class Ends(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
            end(killed and trainer.global_step == KILLED_AFTER)

    averaging = AveragingCallback(SWAG(rank=3), start=4, every=2)
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=SAVE_EVERY, save_last=True)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[averaging, saver, Ends()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    steps = torch.utils.data.DataLoader(list(range(1, STEPS + 1)), batch_size=None)
    trainer.fit(Module(), steps, ckpt_path=last if last.exists() else None, weights_only=True)
    return averaging.averager


def end(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


WAYS = {"follow": by_follow, "torchcontrib": by_torchcontrib, "accelerate": by_accelerate, "lightning": by_lightning}

if __name__ == "__main__":
    way, home = sys.argv[1], Path(sys.argv[2])
    save(WAYS[way](home, killed=True), home / "never.safetensors")
