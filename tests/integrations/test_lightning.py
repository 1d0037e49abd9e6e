"""Lightning's Trainer: what is collected, which weights are measured and saved, and exact resuming."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")
# Lightning tells of its defaults, of missing workers and of its own deprecations by warnings.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lowland import EMA, SWA, SWAG, refresh_bn, weights_of  # noqa: E402
from lowland.averager import Averager  # noqa: E402
from lowland.integrations.lightning import AveragingCallback, raw_weights  # noqa: E402

EPOCHS, ROWS, BATCH = 3, 24, 4
STEPS = ROWS // BATCH


class Module(pl.LightningModule):
    def __init__(self, norm: bool = False, fail_at: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4) if norm else nn.Tanh(), nn.Linear(4, 1))
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.fail_at = fail_at
        self.seen: list[tuple[int, float]] = []  # in validation: the step, and one weight
        self.losses: dict[str, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()

    def _evaluate(self, name: str, batch: list[Tensor]) -> None:
        self.seen.append((self.global_step, self.net[0].bias[0].item()))
        if self.fail_at is not None and self.global_step >= self.fail_at:
            raise KeyError("an error in validation")
        self.log(name, (self(batch[0]) - batch[1]).square().mean())

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self._evaluate("val_loss", batch)

    def test_step(self, batch: list[Tensor], index: int) -> None:
        self._evaluate("test_loss", batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Walk(Callback):
    """The weights after every step of the optimiser."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: pl.LightningModule, *rest: Any) -> None:
        if trainer.global_step > len(self.weights):
            self.weights.append({name: t.clone() for name, t in weights_of(pl_module).items()})


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 3, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=BATCH)


def trainer(folder: Path, *callbacks: Callback, **given: Any) -> pl.Trainer:
    settings = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0, **given}
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **settings},
    )


def by_hand(averager: Averager, walk: Walk, steps: list[int]) -> Averager:
    for step in steps:
        averager.update(walk.weights[step - 1])
    return averager


def assert_same(one: Averager, other: Averager) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a["count"] == b["count"]
    for slot, tensors in a["slots"].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b["slots"][slot][name]), (slot, name)


@pytest.mark.parametrize(
    ("start", "every", "steps"),
    [
        (0, 1, list(range(1, 19))),
        ("1epoch", "1epoch", [6, 12, 18]),
        ("50%", 3, [9, 12, 15, 18]),
        ("2epoch", "2step", [12, 14, 16, 18]),
    ],
)
def test_the_last_epoch_counts(tmp_path: Path, start: int | str, every: int | str, steps: list[int]) -> None:
    walk, callback = Walk(), AveragingCallback(SWAG(rank=2), start=start, every=every)
    trainer(tmp_path, walk, callback).fit(Module(), loader())
    assert_same(callback.averager, by_hand(SWAG(rank=2), walk, steps))


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    walk, callback = Walk(), AveragingCallback(SWA(), start="1epoch", every="1epoch")
    trainer(tmp_path, walk, callback, accumulate_grad_batches=4).fit(Module(), loader())
    assert len(walk.weights) == 2 * EPOCHS  # 6 batches are 2 steps
    assert_same(callback.averager, by_hand(SWA(), walk, [2, 4, 6]))


def test_no_scheduler_is_taken_over(tmp_path: Path) -> None:
    """Lightning-AI/pytorch-lightning#6963: its SWA replaces the scheduler of the run."""
    run = trainer(tmp_path, AveragingCallback(SWA(), start="1epoch"))
    run.fit(Module(), loader())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.5**EPOCHS)


def test_validation_measures_the_average_and_puts_the_weights_back(tmp_path: Path) -> None:
    """Lightning-AI/pytorch-lightning#21724: before the first update, the weights being trained are measured."""
    walk, callback, module = Walk(), AveragingCallback(SWA(), start="2epoch"), Module()
    trainer(tmp_path, walk, callback).fit(module, loader(), loader())
    bias = [weights["net.0.bias"][0] for weights in walk.weights]
    seen = dict(module.seen)
    assert seen[6] == bias[5]
    assert seen[12] == bias[11]
    assert seen[18] == pytest.approx(torch.stack(bias[11:]).mean().item(), abs=1e-6)
    assert module.net[0].bias[0] == bias[-1]


def test_an_exception_in_validation_puts_the_weights_back(tmp_path: Path) -> None:
    """Lightning's WeightAveraging leaves the averaged weights in the module."""
    walk, module = Walk(), Module(fail_at=12)
    with pytest.raises(KeyError, match="an error in validation"):
        trainer(tmp_path, walk, AveragingCallback(SWA())).fit(module, loader(), loader())
    assert len(walk.weights) == 12
    for name, tensor in weights_of(module).items():
        assert torch.equal(tensor, walk.weights[-1][name])


def test_the_best_checkpoint_is_what_was_measured(tmp_path: Path) -> None:
    """Lightning-AI/pytorch-lightning#6074: averaged weights in `state_dict`, the raw ones as the callback's state."""
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_top_k=1)
    callback, module = AveragingCallback(EMA(0.8)), Module()
    run = trainer(tmp_path, callback, best, enable_checkpointing=True)
    run.fit(module, loader(), loader())
    path = best.best_model_path
    loaded = Module.load_from_checkpoint(path)
    [plain] = trainer(tmp_path).validate(loaded, loader(), verbose=False)
    assert plain["val_loss"] == pytest.approx(best.best_model_score.item(), rel=1e-6)
    [tested] = run.test(module, loader(), ckpt_path=path, verbose=False, weights_only=True)
    assert tested["test_loss"] == pytest.approx(best.best_model_score.item(), rel=1e-6)
    stored = torch.load(path, weights_only=True)
    assert not torch.equal(raw_weights(stored)["net.0.weight"], stored["state_dict"]["net.0.weight"])


def test_a_checkpoint_written_while_swapped_holds_the_raw_weights(tmp_path: Path) -> None:
    """mir-group/nequip#590: a checkpoint caught the averaged weights as if they were the trained ones."""

    class Saves(Callback):
        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    walk, module = Walk(), Module()
    trainer(tmp_path, walk, AveragingCallback(SWA()), Saves()).fit(module, loader(), loader())
    stored = torch.load(tmp_path / "12.ckpt", weights_only=True)
    for name, tensor in walk.weights[11].items():
        assert torch.equal(raw_weights(stored)[name], tensor)
    assert torch.equal(weights_of(module)["net.0.bias"], walk.weights[-1]["net.0.bias"])


@pytest.mark.parametrize("make", [SWA, lambda: EMA(0.9), lambda: SWAG(rank=3)], ids=["swa", "ema", "swag"])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, make: Callable[[], Averager]) -> None:
    """Lightning-AI/pytorch-lightning#11665: averages could not be reloaded."""

    def run(epochs: int, **given: Any) -> tuple[Module, AveragingCallback]:
        module, callback = Module(), AveragingCallback(make(), start=4, every=5)
        saver = ModelCheckpoint(dirpath=tmp_path / str(epochs), save_last=True)
        # The schedule is in steps: that of 18 for both.
        trainer(tmp_path, callback, saver, max_epochs=epochs, enable_checkpointing=True).fit(
            module, loader(), loader(), weights_only=True, **given
        )
        return module, callback

    whole, callback = run(EPOCHS)
    run(2)
    resumed, again = run(EPOCHS, ckpt_path=tmp_path / "2" / "last.ckpt")
    assert_same(callback.averager, again.averager)
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name])


def test_resuming_with_another_averager_is_refused(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    trainer(tmp_path, AveragingCallback(EMA(0.9)), saver, enable_checkpointing=True).fit(Module(), loader())
    with pytest.raises(ValueError, match=r"no state of AveragingCallback\(EMA\(decay=0.99"):
        trainer(tmp_path, AveragingCallback(EMA(0.99)), max_epochs=4).fit(
            Module(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )


def test_batch_norm_is_measured_anew_for_the_average(tmp_path: Path) -> None:
    """Lightning-AI/pytorch-lightning#14866: averaged weights with wrong statistics."""
    batches = list(loader())
    callback, module = AveragingCallback(SWA(), bn_batches=batches, load_averaged=True), Module(norm=True)
    run = trainer(tmp_path, callback)
    run.fit(module, loader(), loader())
    measured = run.callback_metrics["val_loss"].item()
    by_hand = Module(norm=True)
    by_hand.load_state_dict({**module.state_dict(), **callback.averager.mean()})
    refresh_bn(by_hand, batches)
    by_hand.eval()
    expected = torch.stack([(by_hand(x) - y).square().mean() for x, y in batches]).mean().item()
    assert measured == pytest.approx(expected, rel=1e-5)
    module.eval()
    assert torch.stack([(module(x) - y).square().mean() for x, y in batches]).mean().item() == pytest.approx(expected)


def test_a_skipped_step_is_made_up_for() -> None:
    """The gradient scaler's factor falls when it leaves a step out."""
    module, callback = Module(), AveragingCallback(SWA(), start=2, every=10)
    scales = iter([8.0, 8.0, 4.0, 4.0])
    fake = SimpleNamespace(
        strategy=None,
        global_step=0,
        num_training_batches=20,
        accumulate_grad_batches=1,
        estimated_stepping_batches=20,
        precision_plugin=SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: next(scales))),
    )
    callback.on_train_start(fake, module)
    counts = []
    for fake.global_step in (1, 2, 3):
        callback.on_train_batch_end(fake, module, None, None, 0)
        counts.append(callback.averager.count)
    assert counts == [0, 0, 1]


def test_a_sharding_strategy_is_refused() -> None:
    class FSDPStrategy:
        pass

    with pytest.raises(ValueError, match="FSDPStrategy shards the model"):
        AveragingCallback(SWA()).on_train_start(SimpleNamespace(strategy=FSDPStrategy()), Module())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="averager must be"):
        AveragingCallback("swa")
    with pytest.raises(ValueError, match="at least one step"):
        AveragingCallback(SWA(), every=0)
    with pytest.raises(ValueError, match="start wants"):
        AveragingCallback(SWA(), start="soon")


def test_a_training_that_ends_before_its_average_begins_says_so(tmp_path: Path) -> None:
    averaging = AveragingCallback(SWA(), start="90%")
    stop = pl.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9)
    with pytest.warns(UserWarning, match=r"ended after step \d+, before the average began at step \d+: it holds no"):
        trainer(tmp_path, averaging, stop, max_epochs=10).fit(Module(), loader(), loader())
    assert averaging.averager.count == 0
