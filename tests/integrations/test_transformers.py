"""AveragingCallback in Transformers' Trainer: what it collects, evaluates, writes, resumes and leaves behind."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("peft")

from transformers import TrainerCallback

from lowland import EMA, SWA, SWAG, Snapshots, applied, load
from lowland.integrations.schedule import Schedule, schedule
from lowland.integrations.transformers import AveragingCallback, last_checkpoint
from lowland.weights import weights_of
from lowland.weights.named import trainable
from tests.integrations.tiny_trainer import ROWS, adapted, classifier, trainer


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from transformers.utils import logging

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Accelerate collects garbage before every training: a third of a second with all that is loaded here.
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda *generation: 0)
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


class Collector(TrainerCallback):
    """The naive twin: copies of the weights after chosen steps."""

    def __init__(self, steps: list[int]) -> None:
        self.steps, self.seen = steps, []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.seen.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})

    def mean(self) -> dict[str, Tensor]:
        return {name: torch.stack([w[name].double() for w in self.seen]).mean(0) for name in self.seen[0]}


def loss_of(model: nn.Module) -> float:
    model.eval()
    batch = {key: torch.tensor([row[key] for row in ROWS[:16]]) for key in ("input_ids", "labels")}
    with torch.no_grad():
        return float(model(**batch).loss)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# When.


def test_start_and_every_in_steps_epochs_and_shares() -> None:
    assert schedule(3, "2step", total=10) == Schedule(3, 2)
    assert schedule("70%", "1epoch", total=100, per_epoch=10) == Schedule(70, 10)
    assert schedule("3 epochs", "0.5epoch", total=100, per_epoch=10) == Schedule(30, 5)
    assert schedule("70%", 1, total=10) == Schedule(7, 1)  # 0.7 * 10 is 7.000000000000001


@pytest.mark.parametrize("start", [-1, "soon", "101%", "1.5step", True, 2.0])
def test_a_start_that_says_nothing_is_refused(start: Any) -> None:
    with pytest.raises(ValueError, match="start wants a number of steps"):
        AveragingCallback(SWA(), start=start)


def test_other_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every must be at least one step"):
        AveragingCallback(SWA(), every=0)
    with pytest.raises(ValueError, match='"raw", "average" or "both"'):
        AveragingCallback(SWA(), evaluate="averaged")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="SWA, EMA, SWAG or the like, got a str"):
        AveragingCallback("swa")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the training ends after step 12: nothing would be collected"):
        trainer(classifier(), tmp_path, AveragingCallback(SWA(), start=13)).train()
    with pytest.raises(ValueError, match="two AveragingCallbacks"):
        trainer(classifier(), tmp_path, AveragingCallback(SWA()), AveragingCallback(EMA(0.9))).train()


def test_it_collects_what_the_schedule_says_and_leaves_the_run_alone(tmp_path: Path) -> None:
    twin, average = Collector([5, 8, 11]), SWA()
    plain, averaged = classifier(), classifier()
    both = AveragingCallback(average, start=5, every=3, evaluate="both")
    trainer(plain, tmp_path / "plain", twin, eval_strategy="steps", eval_steps=3).train()
    trainer(averaged, tmp_path / "averaged", both, eval_strategy="steps", eval_steps=3).train()
    assert average.count == 3
    for name, value in twin.mean().items():
        torch.testing.assert_close(average.mean()[name].double(), value, rtol=1e-6, atol=1e-7)
    # With dropout, a draw of random numbers more or less would show.
    assert same(weights_of(plain), weights_of(averaged))
    assert both.holds == "raw weights of step 12"


def test_epochs_are_those_of_the_optimiser(tmp_path: Path) -> None:
    # 48 rows in batches of 8, two of them a step: three steps an epoch.
    twin, average = Collector([6, 9, 12]), SWA()
    callback = AveragingCallback(average, start="2epoch", every="1epoch")
    trainer(classifier(), tmp_path, callback, twin, gradient_accumulation_steps=2, save_strategy="no").train()
    assert average.count == 3
    for name, value in twin.mean().items():
        torch.testing.assert_close(average.mean()[name].double(), value, rtol=1e-6, atol=1e-7)


# SWivid/F5-TTS#631 and lightly-train#968: an average updated at every micro-batch moves too fast.
def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    average = SWA()
    made = trainer(classifier(), tmp_path, AveragingCallback(average), gradient_accumulation_steps=3, max_steps=4)
    made.train()
    assert average.count == 4


# PEERS: steps that a gradient scaler skips leave the weights as they are and are not iterates.
def test_a_skipped_step_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    average = Snapshots(20)
    made = trainer(classifier(), tmp_path, AveragingCallback(average, start=2, every=4), save_strategy="no")
    skipped = {6, 7}

    class Accelerator:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        @property
        def optimizer_step_was_skipped(self) -> bool:
            return made.state.global_step in skipped

    real = made.accelerator
    made.accelerator = Accelerator()
    twin = Collector([2, 8, 10])
    made.add_callback(twin)
    made.train()
    assert average.count == 3
    members = average.members()
    assert all(same(dict(member), seen) for member, seen in zip(members, twin.seen, strict=True))


# Evaluation.


def test_both_measures_raw_and_averaged_weights_in_one_evaluation(tmp_path: Path) -> None:
    average, model = SWA(), classifier()
    callback = AveragingCallback(average, start=6, every=2, evaluate="both")
    made = trainer(model, tmp_path, callback, eval_strategy="steps", eval_steps=4)
    made.train()
    found = {
        key: {r["step"]: r[key] for r in made.state.log_history if key in r} for key in ("eval_loss", "eval_avg_loss")
    }
    assert list(found["eval_loss"]) == [4, 8, 12]
    assert list(found["eval_avg_loss"]) == [8, 12]  # nothing was collected before step 6
    assert found["eval_loss"][12] == pytest.approx(loss_of(model), abs=1e-6)
    with callback.applied(model):
        assert found["eval_avg_loss"][12] == pytest.approx(loss_of(model), abs=1e-6)
    assert found["eval_avg_loss"][12] != pytest.approx(found["eval_loss"][12], abs=1e-6)


# pytorch-lightning#21724: a validation before the first update ran with the initial weights in place of the trained.
def test_average_measures_the_raw_weights_until_there_is_an_average(tmp_path: Path) -> None:
    average, model = SWA(), classifier()
    callback = AveragingCallback(average, start=9, evaluate="average")
    raw = trainer(classifier(), tmp_path / "raw", eval_strategy="steps", eval_steps=4)
    raw.train()
    made = trainer(model, tmp_path / "average", callback, eval_strategy="steps", eval_steps=4)
    made.train()
    ours, theirs = ([r["eval_loss"] for r in t.state.log_history if "eval_loss" in r] for t in (made, raw))
    assert ours[:2] == theirs[:2]
    with callback.applied(model):
        assert ours[2] == pytest.approx(loss_of(model), abs=1e-6) != theirs[2]


def test_several_evaluation_sets_are_all_measured_on_the_average(tmp_path: Path) -> None:
    callback = AveragingCallback(SWA(), start=8, every=2, evaluate="both")
    made = trainer(
        classifier(), tmp_path, callback, eval_strategy="steps", eval_steps=12,
        save_steps=12, load_best_model_at_end=True,
        metric_for_best_model="avg_second_loss",
    )  # fmt: skip
    made.eval_dataset = {"first": ROWS[:16], "second": ROWS[16:]}
    made.train()
    found = {key: value for record in made.state.log_history for key, value in record.items() if "loss" in key}
    assert {"eval_first_loss", "eval_second_loss", "eval_avg_first_loss", "eval_avg_second_loss"} <= found.keys()
    assert made.state.best_metric == found["eval_avg_second_loss"]
    assert loss_of(made.model) == pytest.approx(found["eval_avg_first_loss"], abs=1e-6)


# Open-Sora-Plan#186 forgot to restore after validation; Lightning's WeightAveraging does not after an exception.
@pytest.mark.parametrize("evaluate", ["average", "both"])
def test_an_exception_in_an_evaluation_leaves_the_raw_weights(tmp_path: Path, evaluate: Any) -> None:
    model, callback = classifier(), AveragingCallback(SWA(), evaluate=evaluate)
    twin = Collector([4])
    made = trainer(model, tmp_path, callback, twin, eval_strategy="steps", eval_steps=4, save_strategy="no")
    raw = False

    def fail(prediction: Any) -> dict[str, float]:
        nonlocal raw
        raw = same(dict(weights_of(model)), twin.seen[0])
        if not raw:
            raise KeyError("the metric is not there")
        return {}

    made.compute_metrics = fail
    with pytest.raises(KeyError, match="the metric is not there"):
        made.train()
    assert not raw, "the evaluation that failed was of averaged weights"
    assert same(dict(weights_of(model)), twin.seen[0])


# MAE-pytorch#31: the evaluation never used the average. `trainer.evaluate()` is the user's own: no hook hears of it.
def test_an_evaluation_by_the_user(tmp_path: Path) -> None:
    model, callback = classifier(), AveragingCallback(SWA(), evaluate="both")
    made = trainer(model, tmp_path, callback, save_strategy="no")
    made.train()
    before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    raw = made.evaluate()
    assert "eval_avg_loss" not in raw, "the Trainer is as it was"
    with callback.applied(made.model):
        averaged = made.evaluate()
    assert averaged["eval_loss"] != raw["eval_loss"] == pytest.approx(loss_of(model), abs=1e-6)
    assert same(before, dict(weights_of(model)))
    with pytest.raises(RuntimeError, match="has no weights yet"), AveragingCallback(SWA()).applied(model):
        pass


class Normalised(nn.Module):
    """A model with BatchNorm, as people train by the Trainer without being of Transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(30, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.norm(self.table(input_ids).mean(1)))
        return (
            {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
            if labels is not None
            else {"logits": logits}
        )


# pytorch-lightning#14866: averaged weights beside the statistics of the raw ones gave an accuracy near zero.
def test_batchnorm_gets_the_averages_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Normalised()
    batches = [
        {key: torch.tensor([row[key] for row in ROWS[i : i + 16]]) for key in ("input_ids", "labels")}
        for i in (0, 16, 32)
    ]
    callback = AveragingCallback(SWA(), start=3, evaluate="both", bn_batches=batches)
    made = trainer(
        model, tmp_path, callback, learning_rate=0.3, eval_strategy="steps", eval_steps=12, load_best_model_at_end=True,
        metric_for_best_model="avg_loss", save_steps=12,
    )  # fmt: skip
    made.train()
    assert callback.holds.startswith("averaged weights of")
    with torch.no_grad():
        means = torch.cat([model.table(batch["input_ids"]).mean(1) for batch in batches]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, means, rtol=1e-5, atol=1e-6)
    logged = [record["eval_avg_loss"] for record in made.state.log_history if "eval_avg_loss" in record]
    model.eval()
    measured = [
        nn.functional.cross_entropy(model(b["input_ids"])["logits"], b["labels"], reduction="none") for b in batches
    ]
    assert logged == [pytest.approx(float(torch.cat(measured)[:16].mean().detach()), abs=1e-6)]


# What is on the disk.


# fairchem#284, nequip#590: which checkpoint holds which weights?
def test_a_checkpoint_holds_raw_weights_and_averaged_holds_what_was_measured(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    twin, callback = Collector([8]), AveragingCallback(SWA(), start=6, evaluate="average")
    made = trainer(classifier(), tmp_path, callback, twin, eval_strategy="steps", eval_steps=4)
    made.train()
    raw = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-8")
    assert same(dict(weights_of(raw)), twin.seen[0])
    for step in (8, 12):
        averaged = BertForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{step}" / "averaged")
        logged = [r["eval_loss"] for r in made.state.log_history if r["step"] == step and "eval_loss" in r]
        assert logged == [pytest.approx(loss_of(averaged), abs=1e-6)]
    assert not (tmp_path / "checkpoint-4" / "averaged").exists(), "nothing was collected by then"
    assert load(tmp_path / "checkpoint-12" / "averager.safetensors").count == 7
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


# peft: `PeftModel.from_pretrained` reads the average. trl#6416: TRL's callback fails on a PEFT model.
@pytest.mark.parametrize("name", ["default", "mine"])
def test_the_average_of_an_adapter_is_an_adapter_and_scores_what_was_logged(tmp_path: Path, name: str) -> None:
    from peft import PeftModel

    model = adapted()
    if name != "default":
        model = classifier()
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]), adapter_name=name)
    average = SWA()  # selects every parameter: of a PEFT model what is trained is taken
    callback = AveragingCallback(average, start=2, every=2, evaluate="both")
    made = trainer(model, tmp_path, callback, eval_strategy="steps", eval_steps=4)
    made.train()
    assert all(f"lora_A.{name}" in n or f"lora_B.{name}" in n or "modules_to_save" in n for n in average.mean())
    logged = {r["step"]: r["eval_avg_loss"] for r in made.state.log_history if "eval_avg_loss" in r}
    for step in (4, 12):
        loaded = PeftModel.from_pretrained(classifier(), tmp_path / f"checkpoint-{step}" / "averaged")
        assert loss_of(loaded) == pytest.approx(logged[step], abs=1e-6)


def test_save_total_limit_and_the_best_by_the_average(tmp_path: Path) -> None:
    model, callback = adapted(), AveragingCallback(SWA(), start=2, every=2, evaluate="both")
    made = trainer(
        model, tmp_path, callback, eval_strategy="steps", eval_steps=2, save_steps=2, save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="eval_avg_loss",
    )  # fmt: skip
    made.train()
    logged = {r["step"]: r["eval_avg_loss"] for r in made.state.log_history if "eval_avg_loss" in r}
    best = min(logged, key=lambda step: logged[step])
    assert made.state.best_metric == logged[best]
    assert Path(made.state.best_model_checkpoint).name == f"checkpoint-{best}"
    assert callback.holds == f"averaged weights of {tmp_path / f'checkpoint-{best}' / 'averaged'}"
    assert loss_of(model) == pytest.approx(logged[best], abs=1e-6)
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert len(kept) == 2 if best != 12 else kept
    assert all((tmp_path / name / "averaged" / "adapter_config.json").exists() for name in kept)


# A metric of raw weights picks raw weights; nothing else may slip in.
@pytest.mark.parametrize(("load_averaged", "holds"), [(False, "raw"), (True, "averaged")])
def test_which_weights_the_model_holds_in_the_end(tmp_path: Path, load_averaged: bool, holds: str) -> None:
    model, callback = classifier(), AveragingCallback(SWA(), evaluate="both", load_averaged=load_averaged)
    made = trainer(
        model, tmp_path, callback, eval_strategy="steps", eval_steps=4, load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )  # fmt: skip
    made.train()
    key = {"raw": "eval_loss", "averaged": "eval_avg_loss"}[holds]
    step = int(Path(made.state.best_model_checkpoint).name.removeprefix("checkpoint-"))
    logged = [r[key] for r in made.state.log_history if key in r and r["step"] == step]
    assert loss_of(model) == pytest.approx(logged[0], abs=1e-6)
    assert callback.holds.startswith(f"{holds} weights of")


def test_the_average_at_the_end_without_a_best_checkpoint(tmp_path: Path) -> None:
    model, average = classifier(), SWA()
    callback = AveragingCallback(average, load_averaged=True)
    trainer(model, tmp_path, callback, save_strategy="no").train()
    assert same({name: tensor.float() for name, tensor in weights_of(model).items()}, average.mean())
    assert callback.holds == "averaged weights after 12 updates"


def test_a_best_checkpoint_before_the_first_collection_is_raw(tmp_path: Path) -> None:
    callback = AveragingCallback(SWA(), start=12, evaluate="both")
    made = trainer(
        classifier(), tmp_path, callback, eval_strategy="steps", eval_steps=4, load_best_model_at_end=True,
        metric_for_best_model="eval_avg_loss",
    )  # fmt: skip
    made.train()
    # Before the first collection the metric is not a number, which is never the best.
    assert made.state.best_global_step == 12 and math.isfinite(made.state.best_metric)


def test_what_is_trained_and_not_saved_is_refused(tmp_path: Path) -> None:
    model = adapted()
    model.base_model.model.bert.embeddings.LayerNorm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="LayerNorm.weight.* name their layers in modules_to_save"):
        trainer(model, tmp_path, AveragingCallback(SWA())).train()


def test_an_adapter_called_averaged_is_refused(tmp_path: Path) -> None:
    model = adapted()
    model.add_adapter("averaged", model.peft_config["default"])
    with pytest.raises(ValueError, match="an adapter called 'averaged'"):
        trainer(model, tmp_path, AveragingCallback(SWA())).train()


# Resuming.


def averagers() -> list[Any]:
    return [SWA(), EMA(0.8), SWAG(rank=3, select=trainable), Snapshots(3)]


# pytorch-lightning#6074, composer#2016, trl#3855: averaging states that a checkpoint does not hold.
@pytest.mark.parametrize(("index", "peft"), [(0, True), (1, False), (2, True), (3, False)])
def test_a_resumed_run_equals_the_one_that_was_not(tmp_path: Path, index: int, peft: bool) -> None:
    def run(resume: str | None) -> tuple[Any, Any]:
        model = adapted() if peft else classifier()
        average = averagers()[index]
        callback = AveragingCallback(average, start=3, every=2, evaluate="average")
        made = trainer(model, tmp_path, callback, eval_strategy="steps", eval_steps=8, save_steps=8)
        made.train(resume_from_checkpoint=resume)
        return model, average

    model, average = run(None)
    again, resumed = run(str(tmp_path / "checkpoint-8"))
    assert same(dict(weights_of(model)), dict(weights_of(again)))
    assert resumed.count == average.count == 5
    for slot, tensors in average.state_dict()["slots"].items():
        assert same(tensors, resumed.state_dict()["slots"][slot])
    if peft:
        assert list(again.peft_config) == ["default"], "averaged/ is not one more adapter"


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step


# PEFT holds one adapter at most when biases are trained: a second one, read from averaged/, would be an error.
def test_an_adapter_with_biases_resumes(tmp_path: Path) -> None:
    trainer(adapted(bias="all"), tmp_path, AveragingCallback(SWA())).train()
    average = SWA()
    model = adapted(bias="all")
    trainer(model, tmp_path, AveragingCallback(average)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert average.count == 12 and list(model.peft_config) == ["default"]


def test_a_callback_added_later_resumes_too(tmp_path: Path) -> None:
    trainer(adapted(), tmp_path, AveragingCallback(SWA())).train()
    model, average = adapted(), SWA()
    made = trainer(model, tmp_path)
    made.add_callback(AveragingCallback(average))
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert average.count == 12 and list(model.peft_config) == ["default"]


# FastVideo#1440: the state was dropped on resume when the start lies ahead. Samudra#313: the average was overwritten.
def test_a_start_that_lies_ahead_survives_a_resume(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ended after step 8, before the average began at step 10"):
        trainer(classifier(), tmp_path, AveragingCallback(SWA(), start=10), Stop(8)).train()
    average = SWA()
    trainer(classifier(), tmp_path, AveragingCallback(average, start=10)).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-8")
    )
    assert average.count == 3


# Enerzyme#36: a cold restart of the average in mid-run went unnoticed.
def test_a_checkpoint_without_the_state_is_refused_once_collections_have_begun(tmp_path: Path) -> None:
    trainer(classifier(), tmp_path).train()
    resume = str(tmp_path / "checkpoint-8")
    with pytest.raises(ValueError, match="holds no averager .*start=9"):
        trainer(classifier(), tmp_path, AveragingCallback(SWA())).train(resume_from_checkpoint=resume)
    average = SWA()
    trainer(classifier(), tmp_path, AveragingCallback(average, start=9)).train(resume_from_checkpoint=resume)
    assert average.count == 4


def test_another_schedule_or_averager_is_refused_on_resume(tmp_path: Path) -> None:
    trainer(classifier(), tmp_path, AveragingCallback(EMA(0.9), start="50%", every=1)).train()
    resume = str(tmp_path / "checkpoint-8")
    with pytest.raises(ValueError, match="collected from step 6 every 1 steps.*from step 6 every 2"):
        trainer(classifier(), tmp_path, AveragingCallback(EMA(0.9), start=6, every=2)).train(
            resume_from_checkpoint=resume
        )
    with pytest.raises(ValueError, match="decay"):
        trainer(classifier(), tmp_path, AveragingCallback(EMA(0.8), start=6)).train(resume_from_checkpoint=resume)


def test_a_run_that_starts_over_starts_the_average_over(tmp_path: Path) -> None:
    average, model = SWA(), classifier()
    made = trainer(model, tmp_path, AveragingCallback(average), Fail(), save_strategy="no")
    with pytest.raises(OSError, match="out of the blue"):
        made.train()
    assert average.count == 6
    made.remove_callback(Fail)
    made.train()
    assert average.count == 12


class Fail(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            raise OSError("out of the blue")


SCRIPT = """
import sys
from pathlib import Path
from lowland import SWAG, save
from lowland.integrations.transformers import AveragingCallback
from lowland.integrations.transformers import last_checkpoint
from tests.integrations.tiny_trainer import adapted, trainer

folder = Path(sys.argv[1])
average = SWAG(rank=3)
callback = AveragingCallback(average, start="20%")
made = trainer(adapted(), folder, callback, max_steps=30, save_steps=1, save_total_limit=3)
made.train(resume_from_checkpoint=last_checkpoint(folder))
save(average, folder / "average.safetensors")
save({name: p for name, p in made.model.named_parameters() if p.requires_grad}, folder / "model.safetensors")
"""


# A plain script with one line more, killed in the middle of whatever it is doing, and run again.
@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_average(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    script = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "cut")]
    run = subprocess.Popen(script, cwd=root, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (tmp_path / "cut" / "checkpoint-13").exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "average.safetensors").exists()
    subprocess.run(script, cwd=root, env=environment(), check=True, capture_output=True)
    average, model = SWAG(rank=3), adapted()
    trainer(
        model, tmp_path / "whole", AveragingCallback(average, start="20%"), max_steps=30, save_strategy="no"
    ).train()
    resumed = load(tmp_path / "cut" / "average.safetensors")
    assert resumed.count == average.count == 25
    for slot, tensors in average.state_dict()["slots"].items():
        assert same(tensors, resumed.state_dict()["slots"][slot]), slot
    assert same(dict(weights_of(model, trainable)), load(tmp_path / "cut" / "model.safetensors"))


def environment(**more: str) -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    path = f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


def test_the_newest_whole_checkpoint_is_resumed(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step, text in ((9, "{}"), (10, "{}"), (11, '{"global_st'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


# A checkpoint that can be resumed holds the average: the Trainer writes its own state last.
def test_a_crash_while_the_average_is_written_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lowland.integrations.transformers.trainer as inside

    def crash(*args: Any) -> None:
        raise OSError("no space left")

    callback = AveragingCallback(SWA())
    made = trainer(classifier(), tmp_path, callback, save_steps=6)
    made.train()
    monkeypatch.setattr(inside, "save", crash)
    made = trainer(classifier(), tmp_path, AveragingCallback(SWA()), save_steps=5, max_steps=5)
    with pytest.raises(OSError, match="no space left"):
        made.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    assert json.loads((tmp_path / "checkpoint-12" / "averaging.json").read_text())["updates"] == 12


# Other Trainers and wrappers.


def test_sequence_to_sequence(tmp_path: Path) -> None:
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=30, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    model.generation_config.max_length = 4
    rows = [{"input_ids": row["input_ids"], "labels": [5, 1 + row["labels"]]} for row in ROWS]
    callback = AveragingCallback(SWA(), start=4, evaluate="both")
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=8, learning_rate=1e-2, save_steps=6, report_to="none",
        disable_tqdm=True, use_cpu=True, eval_strategy="steps", eval_steps=6, predict_with_generate=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    made = Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:8], callbacks=[callback])
    made.train()
    logged = {key: r[key] for r in made.state.log_history for key in r if key in ("eval_loss", "eval_avg_loss")}
    with callback.applied(model):
        assert made.evaluate(max_length=3)["eval_loss"] == pytest.approx(logged["eval_avg_loss"], abs=1e-6)
    averaged = T5ForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-6" / "averaged")
    assert torch.equal(averaged.shared.weight, callback.averager.mean()["shared.weight"])


# accelerate#3634 and transformers#9439: "we didn't implement those". Compiled and DDP-wrapped models are the same run.
@pytest.mark.slow
def test_a_compiled_model_sees_the_swap(tmp_path: Path) -> None:
    # wandb/senpai#2899, #3303: renamed parameters were never averaged; a compiled forward did not see the swap.
    torch._dynamo.reset()
    plain, compiled = Normalised(), Normalised()
    compiled.load_state_dict(plain.state_dict())
    losses = []
    for name, model in (("plain", plain), ("compiled", compiled)):
        batches = [{key: torch.tensor([row[key] for row in ROWS]) for key in ROWS[0]}]
        callback = AveragingCallback(SWA(), start=2, evaluate="both", bn_batches=batches)
        extra = {"torch_compile": True, "torch_compile_backend": "eager"} if name == "compiled" else {}
        made = trainer(
            model,
            tmp_path / name,
            callback,
            eval_strategy="steps",
            eval_steps=4,
            max_steps=4,
            learning_rate=0.1,
            **extra,
        )
        made.train()
        assert sorted(callback.averager.mean()) == sorted(weights_of(plain))
        losses.append([r["eval_avg_loss"] for r in made.state.log_history if "eval_avg_loss" in r])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


DISTRIBUTED = """
import sys
from pathlib import Path
import torch
from lowland import SWA
from lowland.integrations.transformers import AveragingCallback
from tests.integrations.tiny_trainer import adapted, trainer

average = SWA()
callback = AveragingCallback(average, start=2, every=2, evaluate="both")
made = trainer(adapted(), Path(sys.argv[1]), callback, max_steps=4, save_steps=4, eval_strategy="steps", eval_steps=4,
               ddp_backend="gloo")
made.train()
assert type(made.model_wrapped).__name__ == "DistributedDataParallel"
torch.save(average.mean(), f"{sys.argv[1]}/mean-{made.args.process_index}.pt")
"""


@pytest.mark.slow
def test_two_processes_hold_one_average(tmp_path: Path) -> None:
    from peft import PeftModel

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    script = [sys.executable, "-W", "ignore", "-c", DISTRIBUTED, str(tmp_path / "out")]
    runs = [
        subprocess.Popen(
            script,
            cwd=Path(__file__).resolve().parents[2],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors[0][-3000:]
    one, other = (torch.load(tmp_path / "out" / f"mean-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(one, other)
    loaded = PeftModel.from_pretrained(classifier(), tmp_path / "out" / "checkpoint-4" / "averaged")
    loras = {name: tensor for name, tensor in weights_of(loaded).items() if "lora" in name}
    assert same(loras, {name: tensor for name, tensor in one.items() if "lora" in name})


# trl#6416, trl#3855: TRL's own averaging callback fails on PEFT models and does not resume.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_supervised_fine_tuning_of_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, **{str(i): i + 2 for i in range(10)}}, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    rows = Dataset.from_list([{"text": f"{i % 10} {(i + 1) % 10} {(i + 2) % 10}"} for i in range(32)])

    def base() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                        max_position_embeddings=16, pad_token_id=0, eos_token_id=1)
        )  # fmt: skip

    def run(resume: str | None) -> tuple[Any, Any, Any]:
        arguments = SFTConfig(
            str(tmp_path), max_steps=6, per_device_train_batch_size=8, learning_rate=1e-2, save_steps=3,
            eval_strategy="steps", eval_steps=3, report_to="none", disable_tqdm=True, use_cpu=True, bf16=False,
            dataloader_pin_memory=False, gradient_checkpointing=False, max_length=8, lr_scheduler_type="constant",
        )  # fmt: skip
        average = SWA()
        made = SFTTrainer(
            model=base(), args=arguments, train_dataset=rows, eval_dataset=rows.select(range(8)),
            processing_class=tokenizer, peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
            callbacks=[AveragingCallback(average, start=2, evaluate="both")],
        )  # fmt: skip
        made.train(resume_from_checkpoint=resume)
        return made, average, average.mean()

    made, _, mean = run(None)
    logged = [record for record in made.state.log_history if "eval_avg_loss" in record]
    assert [record["step"] for record in logged] == [3, 6]
    # What TRL adds to the log of an evaluation is the average's too, and says so.
    assert not [
        key for record in logged for key in record if key.startswith("eval_") and not key.startswith("eval_avg_")
    ]
    _, _, resumed = run(str(tmp_path / "checkpoint-3"))
    assert same(mean, resumed)
    loaded = PeftModel.from_pretrained(base(), tmp_path / "checkpoint-6" / "averaged")
    with applied(made.model, mean):
        ids = torch.tensor([[2, 3, 4]])
        torch.testing.assert_close(loaded.eval()(ids).logits, made.model.eval()(ids).logits)
