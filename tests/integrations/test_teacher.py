"""TeacherCallback: in a Trainer of one's own loss, beside an average, resumed, and in TRL's self-distillation."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("peft")

from transformers import Trainer

from lowland import EMA, SWA, weights_of
from lowland.integrations.transformers import AveragingCallback, TeacherCallback
from lowland.weights import trainable
from tests.integrations.tiny_trainer import adapted, classifier, trainer


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


class Distils(Trainer):
    """The task's loss, and the distance to the teacher's logits."""

    callback: TeacherCallback

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        with self.callback.teacher.weights():
            target = model(**inputs).logits
        loss = outputs.loss + (outputs.logits - target).square().mean()
        return (loss, outputs) if return_outputs else loss


def run(folder: Path, *more: Any, model: Any = None, resume: Any = None, **given: Any) -> tuple[TeacherCallback, Any]:
    callback = TeacherCallback(EMA(0.9), every=given.pop("every", 1))
    made = trainer(
        model or classifier(), folder, callback, *more, kind=Distils, **{"max_steps": 8, "save_steps": 4, **given}
    )
    made.callback = callback
    made.train(resume_from_checkpoint=resume)
    return callback, made


@pytest.mark.parametrize("make", [classifier, adapted])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, make: Any) -> None:
    callback, whole = run(tmp_path, model=make())
    assert callback.averager.count == 9  # the copy, and one a step
    again, resumed = run(tmp_path, model=make(), resume=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(tensor, weights_of(resumed.model)[name]) for name, tensor in weights_of(whole.model).items())
    assert again.averager.count == 9
    assert all(torch.equal(tensor, again.averager.mean()[name]) for name, tensor in callback.averager.mean().items())
    if make is adapted:
        assert sorted(callback.averager.mean()) == sorted(weights_of(whole.model, trainable))


def test_a_checkpoint_without_a_teacher_is_refused(tmp_path: Path) -> None:
    trainer(classifier(), tmp_path, max_steps=4).train()
    with pytest.raises(ValueError, match=r"teacher\.safetensors is not there"):
        run(tmp_path, resume=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("teacher_first", [True, False])
def test_it_goes_beside_an_average_and_both_leave_the_trainer(tmp_path: Path, teacher_first: bool) -> None:
    teacher, average = TeacherCallback(EMA(0.9), every=2), AveragingCallback(SWA(), start=3, evaluate="average")
    callbacks = (teacher, average) if teacher_first else (average, teacher)
    made = trainer(classifier(), tmp_path, *callbacks, kind=Distils, max_steps=4)
    made.callback = teacher
    made.train()
    assert (teacher.averager.count, average.averager.count) == (3, 2)
    assert {"averaged", "teacher.safetensors", "averager.safetensors"} <= {
        p.name for p in (tmp_path / "checkpoint-4").iterdir()
    }
    seen: list[bool] = []
    average.applied = lambda model: seen.append(True)  # type: ignore[assignment]
    made.evaluate()
    made.save_model(str(tmp_path / "after"), _internal_call=True)
    assert not seen and not (tmp_path / "after" / "teacher.safetensors").exists()


def test_there_is_no_teacher_before_the_training() -> None:
    with pytest.raises(RuntimeError, match="no teacher before"):
        _ = TeacherCallback(EMA(0.9)).teacher
    with pytest.raises(ValueError, match="averager must be"):
        TeacherCallback("ema")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one step"):
        TeacherCallback(EMA(0.9), every=0)


# TRL.


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def language_model(dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=32, max_position_embeddings=64, eos_token_id=1, pad_token_id=0, **sizes)
        return LlamaForCausalLM(config).to(dtype)


def self_distilled(folder: Path, callback: Any, dtype: torch.dtype = torch.float32, **given: Any) -> Any:
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.sdft import SDFTConfig, SDFTTrainer

        settings = {
            **{"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_strategy": "no"},
            **{"max_completion_length": 4, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False},
            **{
                "dataloader_pin_memory": False,
                "num_loss_tokens_to_skip": 0,
                "num_generations": 2,
                "distillation_topk": 5,
                "teacher_model_kind": "live",
            },
            **{"gradient_checkpointing": False, "logging_steps": 100, **given},
        }
        rows = [{"prompt": "a b c", "privileged_context": "d e"}, {"prompt": "f g", "privileged_context": "h"}] * 4
        peft_config = settings.pop("peft_config", None)
        return SDFTTrainer(
            model=language_model(dtype),
            args=SDFTConfig(str(folder), **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            callbacks=[] if callback is None else [callback],
            peft_config=peft_config,
        )


@pytest.mark.filterwarnings("ignore")  # TRL's and PEFT's own
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "adapter"])
def test_trl_distils_from_this_teacher(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("trl")
    from peft import LoraConfig

    callback = TeacherCallback(EMA(0.5))
    given = (
        {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)}
        if kind == "adapter"
        else {}
    )
    made = self_distilled(tmp_path, callback, torch.bfloat16 if kind == "bfloat16" else torch.float32, **given)
    held: list[float] = []
    forward = made._forward_logits

    def seen(model: nn.Module, **inputs: Any) -> torch.Tensor:
        name, tensor = next(iter(weights_of(made.model, trainable).items()))
        held.append((tensor.float() - callback.averager.mean()[name]).abs().max().item())
        return forward(model=model, **inputs)

    made._forward_logits = seen
    made.train()
    assert callback.averager.count == 4 and made.teacher_model is made.model
    students, teachers = held[0::2], held[1::2]
    rounding = 2e-4 if kind == "bfloat16" else 0.0
    assert len(teachers) == 3 and max(teachers) <= rounding < min(students[1:])
    assert all(tensor.dtype == torch.float32 for tensor in callback.averager.mean().values())
    assert made._get_teacher_context_for_self_distillation != callback.teacher.weights  # given back


@pytest.mark.filterwarnings("ignore")
def test_a_second_teacher_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from peft import LoraConfig

    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    made = self_distilled(tmp_path, TeacherCallback(EMA(0.5)), teacher_model_kind="base", peft_config=adapter)
    with pytest.raises(ValueError, match="pass teacher_model_kind='live'"):
        made.train()
