"""Lightning: every way of writing and reading a module's state, and runs whose steps, layers or lengths change."""

import logging
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint

from lowland import EMA, SWA, weights_of  # noqa: E402
from lowland.integrations.lightning import AveragingCallback, raw_weights  # noqa: E402
from lowland.weights import floating, trainable  # noqa: E402
from tests.integrations.test_lightning import Module, Walk, loader, trainer  # noqa: E402


def loss_of(module: Module) -> float:
    module.eval()
    with torch.no_grad():
        return torch.stack([(module(x) - y).square().mean() for x, y in loader()]).mean().item()


def fitted(folder: Path, module: pl.LightningModule, *callbacks: Callback, **given: Any) -> pl.Trainer:
    run = trainer(folder, *callbacks, **given)
    run.fit(module, loader(), loader())
    return run


# Which weights a file holds.


def test_a_file_of_weights_only_holds_what_was_measured(tmp_path: Path) -> None:
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_weights_only=True)
    fitted(tmp_path, Module(), AveragingCallback(SWA()), best, enable_checkpointing=True)
    assert loss_of(Module.load_from_checkpoint(best.best_model_path)) == pytest.approx(best.best_model_score.item())


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_file_written_by_hand_holds_the_average_too(tmp_path: Path, weights_only: bool) -> None:
    callback, module = AveragingCallback(SWA()), Module()
    run = fitted(tmp_path, module, callback)
    before = {name: tensor.clone() for name, tensor in weights_of(module).items()}
    run.save_checkpoint(tmp_path / "hand.ckpt", weights_only=weights_only)
    stored = torch.load(tmp_path / "hand.ckpt", weights_only=True)
    mean = callback.averager.mean()
    assert all(torch.equal(stored["state_dict"][name], mean[name]) for name in mean)
    assert all(torch.equal(weights_of(module)[name], tensor) for name, tensor in before.items())
    assert ("raw_state_dict" in stored) is not weights_only


def test_raw_evaluation_leaves_raw_files(tmp_path: Path) -> None:
    module = Module()
    fitted(tmp_path, module, AveragingCallback(SWA(), evaluate="raw")).save_checkpoint(tmp_path / "raw.ckpt", True)
    stored = torch.load(tmp_path / "raw.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights_of(module).items())


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_test_of_a_file_measures_the_file(tmp_path: Path, weights_only: bool) -> None:
    """Not the average that the callback has gone on to since."""
    best = ModelCheckpoint(
        dirpath=tmp_path, monitor="val_loss", mode="max", save_top_k=1, save_weights_only=weights_only
    )
    callback, module = AveragingCallback(EMA(0.5)), Module()
    run = fitted(tmp_path, module, callback, best, enable_checkpointing=True)
    mean = callback.averager.mean()
    [tested] = run.test(module, loader(), ckpt_path=best.best_model_path, verbose=False, weights_only=True)
    assert tested["test_loss"] == pytest.approx(best.best_model_score.item(), rel=1e-6)
    assert all(torch.equal(callback.averager.mean()[name], tensor) for name, tensor in mean.items())
    [again] = run.test(module, loader(), verbose=False)  # without a file: the average
    assert again["test_loss"] != tested["test_loss"]


def test_the_last_file_holds_the_raw_weights_also_when_the_average_is_left_in_the_module(tmp_path: Path) -> None:
    walk, callback, module = Walk(), AveragingCallback(SWA(), load_averaged=True), Module()
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True, every_n_epochs=10)
    fitted(tmp_path, module, walk, callback, saver, enable_checkpointing=True)
    raw = raw_weights(torch.load(tmp_path / "last.ckpt", weights_only=True))
    mean = callback.averager.mean()
    for name, tensor in walk.weights[-1].items():
        assert torch.equal(raw[name], tensor)
        assert torch.equal(weights_of(module)[name], mean[name])


def test_two_averages_cannot_be_measured_in_one_module(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='pass evaluate="raw" to all but one'):
        fitted(tmp_path, Module(), AveragingCallback(SWA()), AveragingCallback(EMA(0.9)))
    walk, other = Walk(), AveragingCallback(EMA(0.9), evaluate="raw")
    module = Module()
    fitted(tmp_path, module, walk, AveragingCallback(SWA()), other)
    assert other.averager.count == 18
    assert torch.equal(module.net[0].bias, walk.weights[-1]["net.0.bias"])


# Modules that save and load in their own way.


class Partial(Module):
    """Saves what it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.net[0].requires_grad_(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if ".0." not in key}


class Renaming(Module):
    """Writes short names, and reads them back."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {key.removeprefix("net."): value for key, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({f"net.{key}": value for key, value in state.items()}, *args, **kwargs)


class Hooked(Module):
    """Packs its state on the way out and unpacks it on the way in."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"packed.{key}": 2 * value for key, value in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        packed = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key.removeprefix("packed."): value / 2 for key, value in packed.items()}


class Extra(Module):
    """Has a part of its state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": len(self.seen)}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


class Drops(Callback):
    """Takes an entry out of every file."""

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"].pop("net.0.bias")


@pytest.mark.parametrize("kind", [Partial, Renaming, Hooked, Extra])
def test_modules_that_save_in_their_own_way_resume_as_if_never_stopped(tmp_path: Path, kind: type[Module]) -> None:
    def run(epochs: int, **given: Any) -> tuple[Module, AveragingCallback]:
        module, callback = kind(), AveragingCallback(SWA(), start=4, every=5)
        saver = ModelCheckpoint(dirpath=tmp_path / str(epochs), save_last=True)
        trainer(tmp_path, callback, saver, max_epochs=epochs, enable_checkpointing=True).fit(
            module, loader(), loader(), weights_only=False, **given
        )
        return module, callback

    whole, callback = run(3)
    run(2)
    resumed, again = run(3, ckpt_path=tmp_path / "2" / "last.ckpt")
    assert again.averager.count == callback.averager.count == 3
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name])
    for name, tensor in callback.averager.mean().items():
        assert torch.equal(tensor, again.averager.mean()[name])
    loaded = kind.load_from_checkpoint(tmp_path / "3" / "last.ckpt", weights_only=False)
    averaged = {name: tensor for name, tensor in weights_of(loaded).items() if name in callback.averager.mean()}
    for name, tensor in averaged.items():
        assert torch.equal(tensor, callback.averager.mean()[name])


def test_what_another_callback_takes_out_of_a_file_stays_out(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fitted(tmp_path, Module(), Drops(), AveragingCallback(SWA()), saver, enable_checkpointing=True)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "net.0.bias" not in stored["state_dict"] and "net.0.bias" in stored["raw_state_dict"]


def test_what_the_module_changes_on_loading_is_kept(tmp_path: Path) -> None:
    class Migrating(Module):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"]["net.2.bias"] = torch.full((1,), 7.0)

    class Sees(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.bias = pl_module.net[2].bias.item()

    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fitted(tmp_path, Module(), AveragingCallback(SWA(), start=1), saver, enable_checkpointing=True)
    sees = Sees()
    trainer(tmp_path, AveragingCallback(SWA(), start=1), sees, max_epochs=4).fit(
        Migrating(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert sees.bias == 7.0


# Steps.


class ByHand(Module):
    """Two optimisers that step in every batch, or one of them in every third."""

    def __init__(self, rare: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.rare = rare
        self.collected: list[int] = []

    def training_step(self, batch: list[Tensor], index: int) -> None:
        first, second = self.optimizers()
        self.manual_backward((self(batch[0]) - batch[1]).square().mean())
        if not self.rare or index % 3 == 2:
            for optimizer in (first,) if self.rare else (first, second):
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.05) for layer in (self.net[0], self.net[2])]


class Notes(Callback):
    """After which batches an average has grown; stands behind it."""

    def __init__(self, callback: AveragingCallback) -> None:
        self.callback, self.batches, self.grown, self.count = callback, 0, [], 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.batches += 1
        if self.callback.averager.count > self.count:
            self.grown.append(self.batches)
            self.count = self.callback.averager.count


@pytest.mark.parametrize(
    ("start", "every", "rare", "grown"),
    [
        ("50%", 1, False, list(range(9, 19))),
        ("2epoch", "1epoch", False, [12, 18]),
        (5, 4, False, [5, 9, 13, 17]),
        ("50%", "1epoch", True, [9, 15]),
        (5, 4, True, [6, 9, 15, 18]),  # each waits for the next batch with a step
    ],
)
def test_a_step_by_hand_is_a_batch(
    tmp_path: Path, start: int | str, every: int | str, rare: bool, grown: list[int]
) -> None:
    callback = AveragingCallback(SWA(), start=start, every=every)
    notes = Notes(callback)
    fitted(tmp_path, ByHand(rare), callback, notes)
    assert notes.grown == grown


def test_a_share_of_a_limit_that_counts_every_optimiser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the length of the training is not known"):
        fitted(tmp_path, ByHand(), AveragingCallback(SWA(), start="50%"), max_steps=12, max_epochs=-1)


def test_accumulations_that_change_are_counted_as_they_are(tmp_path: Path) -> None:
    """6 steps in the first epoch, then 3 in each: 12 in all, where the Trainer's own estimate is 18."""
    callback = AveragingCallback(SWA(), start="50%")
    fitted(tmp_path, Module(), GradientAccumulationScheduler({0: 1, 1: 2}), callback)
    assert callback.averager.count == 7
    with pytest.raises(ValueError, match="the length of an epoch is not known"):
        changing = GradientAccumulationScheduler({0: 1, 1: 2})
        fitted(tmp_path, Module(), changing, AveragingCallback(SWA(), start="2epoch"))


def test_a_callback_serves_a_second_training(tmp_path: Path) -> None:
    callback = AveragingCallback(SWA(), start=4)
    fitted(tmp_path, Module(), callback)
    fitted(tmp_path, Module(), callback)
    assert callback.averager.count == 2 * 15


@pytest.mark.parametrize(
    ("first", "second", "given"),
    [
        ({"start": "50%"}, {"start": "50%"}, {"max_epochs": 9}),
        ({"start": "1epoch"}, {"start": "1epoch"}, {"max_epochs": 4, "accumulate_grad_batches": 2}),
        ({"every": "1epoch"}, {"every": "1epoch"}, {"max_epochs": 6, "limit_train_batches": 3}),
    ],
)
def test_a_resume_under_another_schedule_is_refused_and_the_advice_works(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], given: dict[str, Any]
) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    callback = AveragingCallback(SWA(), **first)
    fitted(tmp_path, Module(), callback, saver, enable_checkpointing=True)
    steps = {"start": callback._schedule.start, "every": callback._schedule.every}
    resume = {"ckpt_path": tmp_path / "last.ckpt", "weights_only": True}
    with pytest.raises(ValueError, match=f"pass start={steps['start']}, every={steps['every']} to go on"):
        trainer(tmp_path, AveragingCallback(SWA(), **second), **given).fit(Module(), loader(), **resume)
    again = AveragingCallback(SWA(), **steps)
    trainer(tmp_path, again, **given).fit(Module(), loader(), **resume)
    assert again.averager.count > callback.averager.count


# Layers that change while the run goes on.


class Turns(Callback):
    """Freezes or unfreezes the first layer at the second epoch."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            pl_module.net[0].requires_grad_(self.on)


def test_a_layer_that_is_frozen_on_the_way_stays_in_the_average(tmp_path: Path) -> None:
    callback = AveragingCallback(SWA(select=trainable))
    fitted(tmp_path, Module(), Turns(False), callback)
    assert callback.averager.count == 18 and "net.0.weight" in callback.averager.mean()


def test_a_layer_that_is_unfrozen_on_the_way_is_named(tmp_path: Path) -> None:
    module = Module()
    module.net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"net\.0\.weight.*were they unfrozen"):
        fitted(tmp_path, module, Turns(True), AveragingCallback(SWA(select=trainable)))


# BatchNorm.


def test_stale_statistics_are_told_once_by_name(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fitted(tmp_path, Module(norm=True), AveragingCallback(SWA()))
    assert sum("['net.1'] keep the running statistics" in str(warning.message) for warning in told) == 1


@pytest.mark.parametrize("given", [{"select": floating}, {}])
def test_statistics_that_are_right_are_not_told(tmp_path: Path, given: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        callback = AveragingCallback(SWA(**given), bn_batches=None if given else list(loader()))
        fitted(tmp_path, Module(norm=True), callback)
    assert not any("running statistics" in str(warning.message) for warning in told)


def test_layers_kept_in_eval_mode_keep_their_statistics(tmp_path: Path) -> None:
    class Still(Module):
        def __init__(self) -> None:
            super().__init__(norm=True)
            self.net.append(nn.BatchNorm1d(1))
            self.net[1].running_mean.fill_(0.25)

        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.net[1].eval()
            return self

    class Sees(Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            self.still, self.other = (pl_module.net[i].running_mean.clone() for i in (1, 3))

    module, callback, sees = Still().train(), AveragingCallback(SWA(), bn_batches=list(loader())), Sees()
    fitted(tmp_path, module, callback, sees, num_sanity_val_steps=0)
    assert torch.equal(sees.still, torch.full((4,), 0.25)) and torch.equal(module.net[1].running_mean, sees.still)
    assert not torch.equal(sees.other, module.net[3].running_mean)
    with callback.applied(module):
        module.eval()
        out = torch.cat([module.net[:3](x) for x, _ in loader()])
    assert torch.allclose(sees.other, out.mean(0), atol=1e-5)


# Stopping.


def test_ctrl_c_says_what_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stops(Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == 8:
                raise KeyboardInterrupt

    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    before = signal.getsignal(signal.SIGINT)
    try:
        with caplog.at_level(logging.WARNING, "lowland"), pytest.raises((SystemExit, KeyboardInterrupt)):
            fitted(tmp_path, Module(), AveragingCallback(SWA()), Stops(), saver, enable_checkpointing=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped after step 8" in caplog.text and "8 updates" in caplog.text
    assert f"ckpt_path='{tmp_path / 'last.ckpt'}'" in caplog.text


def test_attach_joins_a_trainer_before_its_checkpoints(tmp_path: Path) -> None:
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_weights_only=True)
    run, callback = trainer(tmp_path, best, enable_checkpointing=True), AveragingCallback(SWA())
    callback.attach(run)
    callback.attach(run)
    run.fit(Module(), loader(), loader())
    assert callback.averager.count == 18
    assert loss_of(Module.load_from_checkpoint(best.best_model_path)) == pytest.approx(best.best_model_score.item())
