"""AveragingCallback where runs are unusual: who reads its metrics, what an adapter's folder is, layers that freeze."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
from peft import PeftModel, get_peft_model
from transformers import TrainerCallback

from lowland import EMA, SWA, applied, weights_of
from lowland.integrations.peft import read_adapter, write_adapter
from lowland.integrations.transformers import AveragingCallback
from lowland.weights import trainable
from tests.integrations.tiny_trainer import ROWS, adapted, classifier, trainer


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from transformers.utils import logging

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda *generation: 0)
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([row["input_ids"] for row in ROWS])).logits.double()


# Who reads the metrics.

PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"patience": 0, "factor": 0.1},
    "metric_for_best_model": "eval_avg_loss",
    "greater_is_better": False,
    "save_strategy": "no",
}


@pytest.mark.parametrize(
    ("start", "given"),
    [
        ("75%", {"eval_strategy": "steps", "eval_steps": 2}),
        (7, {"eval_strategy": "epoch"}),
        (2, {"eval_strategy": "steps", "eval_steps": 4, "eval_on_start": True}),
    ],
)
def test_a_rate_that_would_be_cut_by_no_number_is_refused(tmp_path: Path, start: Any, given: dict[str, Any]) -> None:
    made = trainer(classifier(), tmp_path, AveragingCallback(SWA(), start, evaluate="both"), **PLATEAU, **given)
    with pytest.raises(ValueError, match="would take each evaluation before the first collection"):
        made.train()


@pytest.mark.parametrize(
    ("evaluate", "given"),
    [
        ("both", {"eval_strategy": "steps", "eval_steps": 2}),  # from the first evaluation on there is an average
        ("both", {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss"}),
        ("average", {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss"}),
    ],
)
def test_a_rate_that_reads_numbers_is_let_be(tmp_path: Path, evaluate: Any, given: dict[str, Any]) -> None:
    callback = AveragingCallback(SWA(), start=2, evaluate=evaluate)
    trainer(classifier(), tmp_path, callback, **{**PLATEAU, **given, "max_steps": 4}).train()
    assert callback.averager.count == 3


def test_an_evaluation_that_no_argument_tells_of_is_met_too(tmp_path: Path) -> None:
    class Asks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_evaluate = state.global_step == 1

    given = {**PLATEAU, "eval_strategy": "steps", "eval_steps": 4}
    made = trainer(classifier(), tmp_path, AveragingCallback(SWA(), 4, evaluate="both"), Asks(), **given)
    with pytest.raises(ValueError, match="would take each evaluation"):
        made.train()


# Adapters whose file is a function of their parameters.

COMMON = {"task_type": "SEQ_CLS", "num_virtual_tokens": 2, "token_dim": 16, "num_layers": 1, "num_attention_heads": 2}
WHERE = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
FUNCTIONS = {
    "prompt": lambda: peft.PromptTuningConfig(**COMMON),
    "p-tuning": lambda: peft.PromptEncoderConfig(encoder_hidden_size=8, **COMMON),
    "p-tuning-lstm": lambda: peft.PromptEncoderConfig(
        encoder_hidden_size=8, encoder_reparameterization_type="LSTM", **COMMON
    ),
    "vblora-topk": lambda: peft.VBLoRAConfig(
        r=2, num_vectors=8, vector_length=4, topk=2, save_only_topk_weights=True, **WHERE
    ),
}
OTHERS = {
    "ia3": lambda: peft.IA3Config(task_type="SEQ_CLS", target_modules=["key"], feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(r=2, **WHERE),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, **WHERE),
    "vera": lambda: peft.VeraConfig(r=4, **WHERE),
    "shira": lambda: peft.ShiraConfig(r=1, **WHERE),
    "fourier": lambda: peft.FourierFTConfig(n_frequency=10, **WHERE),
    "tokens": lambda: peft.LoraConfig(r=2, trainable_token_indices=[1, 2], **WHERE),
}


def moved(config: Any) -> tuple[Any, SWA]:
    model, average = get_peft_model(classifier(), config), SWA(select=trainable)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        with torch.no_grad():
            for tensor in weights_of(model, trainable).values():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        average.update(model)
    return model, average


@pytest.mark.parametrize("kind", [*FUNCTIONS, *OTHERS])
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own, of a few kinds
def test_a_folder_of_any_method_reloads_to_the_average(tmp_path: Path, kind: str) -> None:
    model, average = moved((FUNCTIONS | OTHERS)[kind]())
    with applied(model, average.mean()):
        wanted = logits(model)
    write_adapter(model, tmp_path / "a", average.mean())
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(classifier(), tmp_path / "a")), wanted, atol=1e-5, rtol=0
    )
    if kind in FUNCTIONS and kind != "prompt":
        with pytest.raises(ValueError, match="holds what PEFT computes"):
            read_adapter(model, tmp_path / "a")
    else:
        read = read_adapter(model, tmp_path / "a")
        assert all(torch.equal(read[name], tensor) for name, tensor in average.mean().items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_positions_that_another_adapter_chose_are_refused(tmp_path: Path) -> None:
    model, average = moved(peft.ShiraConfig(r=1, random_seed=0, **WHERE))
    write_adapter(model, tmp_path / "a", average.mean())
    other, _ = moved(peft.ShiraConfig(r=1, random_seed=1, **WHERE))
    with pytest.raises(ValueError, match="shira_indices"):
        read_adapter(other, tmp_path / "a")


@pytest.mark.parametrize("kind", ["prompt", "p-tuning"])
def test_prompts_go_through_the_callback(tmp_path: Path, kind: str) -> None:
    """Also the best of them comes back into the model, whose parameters its folder need not hold."""
    model = get_peft_model(classifier(), FUNCTIONS[kind]())
    callback = AveragingCallback(SWA(), start=2, every=2, evaluate="both")
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_avg_loss", "eval_strategy": "steps"}
    made = trainer(model, tmp_path, callback, max_steps=8, eval_steps=4, **best)
    made.train()
    folder = Path(made.state.best_model_checkpoint) / "averaged"
    assert str(folder) in callback.holds
    served = PeftModel.from_pretrained(classifier(), folder)
    torch.testing.assert_close(logits(served), logits(model), atol=1e-5, rtol=0)


def test_ranks_that_are_pruned_are_refused_by_the_methods_name(tmp_path: Path) -> None:
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=12, tinit=1, tfinal=3, deltaT=1, **WHERE)
    model = get_peft_model(classifier(), config)
    with pytest.raises(ValueError, match="AdaLoRA prunes ranks"):
        trainer(model, tmp_path / "run", AveragingCallback(SWA()), max_steps=2).train()
    average = SWA(select=trainable)
    average.update(model)
    write_adapter(model, tmp_path / "whole", average.mean())  # nothing has been pruned
    config.rank_pattern = {"bert.encoder.layer.0.attention.self.query.lora_E": [True, False, True, False]}
    with pytest.raises(ValueError, match="AdaLoRA prunes ranks"):
        write_adapter(model, tmp_path / "pruned", average.mean())


# Layers that change while the run goes on.


class Turns(TrainerCallback):
    """Freezes or unfreezes the query's factors after a step, and again where a resumed run is past it."""

    def __init__(self, at: int, on: bool = False) -> None:
        self.at, self.on = at, on

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step >= self.at:
            for name, parameter in model.named_parameters():
                if "query" in name and "lora_" in name:
                    parameter.requires_grad_(self.on)

    on_train_begin = on_step_end


@pytest.mark.parametrize("select", [None, trainable])
def test_layers_frozen_on_the_way_stay_in_the_average(tmp_path: Path, select: Any) -> None:
    def run(steps: int, **given: Any) -> SWA:
        average = SWA() if select is None else SWA(select=select)
        callbacks = (Turns(5), AveragingCallback(average))  # the run is frozen before the callback looks
        made = trainer(
            adapted(), tmp_path / "run", *callbacks, max_steps=steps, save_steps=6, lr_scheduler_type="constant"
        )
        made.train(**given)
        return average

    whole = run(8)
    resumed = run(8, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert whole.count == resumed.count == 8
    assert any("query" in name for name in whole.mean())
    assert all(torch.equal(tensor, resumed.mean()[name]) for name, tensor in whole.mean().items())


def test_a_layer_unfrozen_on_the_way_is_named(tmp_path: Path) -> None:
    model = adapted()
    Turns(0).on_step_end(None, type("State", (), {"global_step": 0}), None, model=model)
    made = trainer(model, tmp_path, Turns(3, on=True), AveragingCallback(SWA()), max_steps=5, save_strategy="no")
    with pytest.raises(ValueError, match="query.*were they unfrozen since"):
        made.train()


# BatchNorm.


class Normalised(nn.Module):
    """Two layers with running statistics; the first may be kept in eval mode."""

    def __init__(self, still: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 2)
        self.one, self.two = nn.BatchNorm1d(8), nn.BatchNorm1d(2)
        self.still = still

    def train(self, mode: bool = True) -> "Normalised":
        super().train(mode)
        if self.still:
            self.one.eval()
        return self

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        out = self.two(self.head(self.one(self.table(input_ids).mean(1))))
        return {"logits": out} if labels is None else {"loss": nn.functional.cross_entropy(out, labels), "logits": out}


def test_stale_statistics_are_told_once_by_name(tmp_path: Path) -> None:
    made = trainer(
        Normalised(),
        tmp_path,
        AveragingCallback(SWA(), evaluate="both"),
        **{"eval_strategy": "steps", "eval_steps": 2, "max_steps": 6},
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made.train()
    assert sum("['one', 'two'] keep the running statistics" in str(warning.message) for warning in told) == 1


def test_layers_kept_in_eval_mode_keep_their_statistics(tmp_path: Path) -> None:
    model = Normalised(still=True)
    batches = [{key: torch.tensor([row[key] for row in ROWS]) for key in ROWS[0]}]
    callback = AveragingCallback(SWA(), bn_batches=batches)
    trainer(model, tmp_path, callback, max_steps=4, save_strategy="no", learning_rate=0.1).train()
    before = model.two.running_mean.clone()
    with callback.applied(model):
        assert torch.equal(model.one.running_mean, torch.zeros(8)) and model.one.track_running_stats
        inside = model.head(model.one.eval()(model.table(batches[0]["input_ids"]).mean(1)))
        torch.testing.assert_close(model.two.running_mean, inside.mean(0), atol=1e-5, rtol=0)
    assert torch.equal(model.two.running_mean, before)


# Joining, and being stopped.


def test_attach_resumes_without_looking_for_its_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(resume: Any, attach: bool) -> EMA:
        average = EMA(0.5)
        callback = AveragingCallback(average, start=2)
        made = trainer(classifier(), tmp_path, *([] if attach else [callback]), max_steps=8, save_steps=4)
        if attach:
            callback.attach(made)
        made.train(resume_from_checkpoint=resume)
        return average

    whole = run(None, attach=False)
    monkeypatch.setattr("inspect.currentframe", lambda: None)
    for resume in (str(tmp_path / "checkpoint-4"), None):
        again = run(resume, attach=True)
        assert again.count == whole.count == 7
        assert all(torch.equal(tensor, again.mean()[name]) for name, tensor in whole.mean().items())


def test_ctrl_c_says_what_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.steps = classifier(), 0

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
            self.steps += 1
            if self.steps == 6:
                raise KeyboardInterrupt
            return self.inner(input_ids=input_ids, labels=labels)

    made = trainer(Stops(), tmp_path, AveragingCallback(SWA(), start=2))
    with caplog.at_level(logging.WARNING, "lowland"), pytest.raises(KeyboardInterrupt):
        made.train()
    assert "stopped after step 5" in caplog.text and "4 updates" in caplog.text
    assert f"resume_from_checkpoint='{tmp_path / 'checkpoint-4'}'" in caplog.text


def test_every_argument_after_the_schedule_has_a_name() -> None:
    with pytest.raises(TypeError):
        AveragingCallback(SWA(), 0, 1, "both")  # type: ignore[misc]
