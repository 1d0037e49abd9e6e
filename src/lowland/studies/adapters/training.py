"""One phase of training by Transformers' Trainer: an optimiser, a number of epochs, what is called after each step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..runs.randomness import derived_seed, own_randomness, stream
from .tokens import Batch, Buckets, Corpus


@dataclass
class History:
    """What a phase looked like: losses and rates by step, validation metrics by epoch."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)


class _Rows(Dataset[int]):
    """The numbers of the training texts: batches are made from them when they are needed."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> int:
        return row


def adamw(model: nn.Module, rate: float, decay: float, steps: int) -> tuple[Any, Any]:
    """AdamW whose rate falls linearly to zero over `steps` (Loshchilov, Hutter 2017, arXiv 1711.05101)."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=decay)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.0, 1 - step / steps))


def sgd(model: nn.Module, rate: float, momentum: float) -> tuple[Any, Any]:
    """SGD with momentum at a constant rate."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate, momentum=momentum)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)


def run_phase(
    model: nn.Module,
    tokens: Corpus,
    labels: Sequence[int],
    optimisers: tuple[Any, Any],
    *,
    epochs: int,
    batch_size: int,
    clip: float,
    seed: int,
    after_step: Callable[[int], None],
    after_epoch: Callable[[int], dict[str, float]],
) -> History:
    """Train for `epochs` and return the history.

    Args:
        after_step: called with the number of the step, from 1.
        after_epoch: called with the number of the epoch, from 1; returns its validation metrics.

    Raises:
        RuntimeError: the loss is not finite any more.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    history = History()
    target = torch.tensor(list(labels))

    def collate(rows: list[int]) -> Batch:
        return {**tokens.batch(rows), "labels": target[rows]}

    class Follow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            after_step(state.global_step)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            training = model.training
            history.validation.append(after_epoch(round(state.epoch)))
            model.train(training)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" not in (logs or {}):
                return
            loss = float(logs["loss"])
            if loss != loss or loss in (float("inf"), float("-inf")):
                raise RuntimeError(
                    f"the loss is {loss} after step {state.global_step}: lower the learning rate, or clip more tightly"
                )
            history.step.append(int(state.global_step))
            history.loss.append(loss)
            history.lr.append(float(logs["learning_rate"]))

    class BucketTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            lengths = [len(ids) for ids in tokens.ids]
            return Buckets(lengths, batch_size, stream(seed, "order"))

    with own_randomness(), tempfile.TemporaryDirectory(prefix="lowland-trainer-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            max_grad_norm=clip,
            seed=derived_seed(seed, "dropout") % 2**31,
            save_strategy="no",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
        trainer = BucketTrainer(
            model=model,
            args=arguments,
            train_dataset=_Rows(len(tokens)),
            data_collator=collate,
            optimizers=optimisers,
            callbacks=[Follow()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return history


@torch.inference_mode()
def class_probabilities(
    classifier: nn.Module, tokens: Corpus, batch_size: int, done: Callable[[int], None] | None = None
) -> Tensor:
    """Return probabilities (N, C) in float64 in the order of the texts; `done` hears how many texts are through."""
    device = next(classifier.parameters()).device
    probs: Tensor | None = None
    for rows, batch in tokens.batches(batch_size):
        logits = classifier(**{name: tensor.to(device) for name, tensor in batch.items()})["logits"]
        part = torch.softmax(logits.double(), -1).cpu()
        if probs is None:
            probs = part.new_empty((len(tokens), part.shape[1]))
        probs[rows] = part
        if done is not None:
            done(len(rows))
    if probs is None:
        raise ValueError("there are no texts to classify")
    return probs
