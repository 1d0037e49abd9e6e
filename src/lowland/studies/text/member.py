"""One member of a text study: AdamW phase, SGD phase, predictions; each stage leaves files and is not repeated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowland import SWAG, copy_to, load, save, weights_of
from lowland.averager import draws
from lowland.calibration import entropy, summary
from lowland.weights import Weights, clone_of, trainable

from ..adapters.classifier import AdaptedClassifier
from ..adapters.comparison import TRAINED, Predictions
from ..adapters.tokens import Tokens
from ..adapters.training import adamw, class_probabilities, run_phase, sgd
from ..runs.folder import read_arrays, read_json, write_arrays, write_json
from ..runs.progress import Progress
from ..runs.randomness import stream
from ..runs.settings import period
from .config import TextStudy
from .datasets import Splits


@dataclass(frozen=True)
class Corpora:
    """The tokens of the three splits."""

    train: Tokens
    validation: Tokens
    test: Tokens


@dataclass(frozen=True)
class Member:
    """What one member needs to run its stages."""

    index: int
    study: TextStudy
    classifier: AdaptedClassifier
    corpora: Corpora
    splits: Splits
    folder: Path
    progress: Progress

    @property
    def seed(self) -> int:
        """The seed of everything random in this member."""
        return self.study.training.seeds[self.index]

    def run(self) -> None:
        """Run the stages that have not been run; what a killed stage left behind is overwritten."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stage in (self._adamw, self._swag, *(self._prediction(key) for key in TRAINED)):
            stage()

    # Phases of training.

    def _adamw(self) -> None:
        settings = self.study.training
        self.progress.begin(self._title("AdamW"), self._training_work(settings.epochs))
        if not (self.folder / "adamw.json").exists():
            self.classifier.reset(stream(self.seed, "initial weights"))
            save(clone_of(self._weights()), self.folder / "epoch-0.safetensors")
            steps = settings.epochs * -(-len(self.corpora.train) // settings.batch_size)

            def keep(epoch: int) -> None:
                save(clone_of(self._weights()), self.folder / f"epoch-{epoch}.safetensors")

            optimisers = adamw(self.classifier.model, settings.learning_rate, settings.weight_decay, steps)
            self._phase("adamw", optimisers, settings.epochs, lambda step: None, keep)
        self._told("adamw")

    def _swag(self) -> None:
        settings, swag = self.study.swag, SWAG(rank=self.study.swag.rank, select=trainable)
        epochs = self.study.training.epochs - settings.start
        self.progress.begin(self._title("SWAG"), self._training_work(epochs))
        if not (self.folder / "swag.json").exists():
            copy_to(self.classifier.model, load(self.folder / f"epoch-{settings.start}.safetensors"))
            every, unit = period(settings.every)

            def after_step(step: int) -> None:
                if unit == "step" and step % every == 0:
                    swag.update(self.classifier.model)

            def after_epoch(epoch: int) -> None:
                if unit == "epoch" and epoch % every == 0:
                    swag.update(self.classifier.model)
                if epoch == epochs:
                    if swag.count < 2:
                        raise ValueError(
                            f"the SWAG phase took {swag.count} snapshot(s), it needs at least 2: lower swag.every "
                            f"({settings.every!r}), start earlier or train longer"
                        )
                    save(swag, self.folder / "swag.safetensors")

            optimisers = sgd(self.classifier.model, settings.learning_rate, settings.momentum)
            self._phase("swag", optimisers, epochs, after_step, after_epoch)
        self._told("swag")

    def _phase(
        self,
        name: str,
        optimisers: tuple[Any, Any],
        epochs: int,
        after_step: Callable[[int], None],
        after_epoch: Callable[[int], None],
    ) -> None:
        settings = self.study.training
        monitor = self.corpora.validation.first(settings.monitor_texts)
        truth = self.splits.validation.labels[: settings.monitor_texts]
        begun = time.perf_counter()

        def stepped(step: int) -> None:
            after_step(step)
            self.progress.advance(STEP_COST * settings.batch_size)

        def looked(epoch: int) -> dict[str, float]:
            after_epoch(epoch)
            self.classifier.write(self._weights())
            probs = class_probabilities(
                self.classifier.merged, monitor, self.study.evaluation.batch_size, self.progress.advance
            )
            found = summary(probs, truth, bins=self.study.evaluation.bins)
            return {"epoch": epoch, **{key: float(found[key]) for key in ("nll", "accuracy", "f1")}}

        history = run_phase(
            self.classifier.model,
            self.corpora.train,
            self.splits.train.labels,
            optimisers,
            epochs=epochs,
            batch_size=settings.batch_size,
            clip=settings.clip,
            seed=self.seed if name == "adamw" else self.seed + 2**31,
            after_step=stepped,
            after_epoch=looked,
        )
        seconds = time.perf_counter() - begun
        write_json(self.folder / f"{name}.json", {"seconds": seconds, **dataclasses.asdict(history)})

    def _told(self, name: str) -> None:
        stage = read_json(self.folder / f"{name}.json")
        last = stage["validation"][-1]
        title = {"adamw": "AdamW", "swag": "SWAG"}[name]
        self.progress.end(f"{self._title(title)}: {stage['seconds']:.0f} s, validation NLL {last['nll']:.3f}")

    # Predictions.

    def _prediction(self, key: str) -> Callable[[], None]:
        def stage() -> None:
            passes = self.study.evaluation.samples if key == "swag" else 1
            texts = len(self.corpora.validation) + len(self.corpora.test)
            self.progress.begin(self._title(f"predictions of {TRAINED[key]}"), passes * texts)
            path = self.folder / f"predictions-{key}.npz"
            if not path.exists():
                begun = time.perf_counter()
                if key == "early" and self.early_epoch() == self.study.training.epochs:
                    parts = {name: array for name, array in self._arrays("base").items() if name != "seconds"}
                    self.progress.advance(passes * texts)
                else:
                    parts = {name: tensor.numpy() for name, tensor in self._predict(self._variant(key), passes).items()}
                write_arrays(path, {**parts, "seconds": np.array(time.perf_counter() - begun)})
            self.progress.end("")

        return stage

    def _variant(self, key: str) -> Iterator[Weights]:
        if key == "swag":
            posterior = load(self.folder / "swag.safetensors").tempered(self.study.evaluation.scale)
            return draws(posterior, self.study.evaluation.samples, stream(self.seed, "draws"))
        return iter([self.weights(key)])

    def _predict(self, variant: Iterator[Weights], count: int) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for weights in variant:
            self.classifier.write(weights)
            for name, tokens in (("validation", self.corpora.validation), ("test", self.corpora.test)):
                probs = class_probabilities(
                    self.classifier.merged, tokens, self.study.evaluation.batch_size, self.progress.advance
                )
                sums[name] = sums[name] + probs if name in sums else probs
                if name == "test":
                    each = entropy(probs)
                    sums["test_entropy"] = sums["test_entropy"] + each if "test_entropy" in sums else each
        return {name: total / count for name, total in sums.items()}

    # What the stages left.

    def weights(self, key: str) -> Weights:
        """Return the weights of "base", "early" or "swa"."""
        if key == "swa":
            mean: Weights = load(self.folder / "swag.safetensors").mean()
            return mean
        epoch = self.study.training.epochs if key == "base" else self.early_epoch()
        weights: Weights = load(self.folder / f"epoch-{epoch}.safetensors")
        return weights

    def early_epoch(self) -> int:
        """Return the epoch of the AdamW phase with the lowest validation NLL; of equals the first."""
        looks = self.history("adamw")["validation"]
        return int(min(looks, key=lambda look: (look["nll"], look["epoch"]))["epoch"])

    def history(self, name: str) -> dict[str, Any]:
        """Return the history of a phase."""
        stage: dict[str, Any] = read_json(self.folder / f"{name}.json")
        return stage

    def predictions(self, key: str) -> tuple[Predictions, float]:
        """Return what a variant predicted, and the seconds that took."""
        arrays = self._arrays(key)
        parts = {name: torch.from_numpy(arrays[name]) for name in ("validation", "test", "test_entropy")}
        return Predictions(**parts), float(arrays["seconds"])

    def _arrays(self, key: str) -> dict[str, Any]:
        return read_arrays(self.folder / f"predictions-{key}.npz")

    def _weights(self) -> dict[str, Tensor]:
        return weights_of(self.classifier.model, trainable)

    def _training_work(self, epochs: int) -> float:
        settings = self.study.training
        steps = -(-len(self.corpora.train) // settings.batch_size)
        looked_at = min(settings.monitor_texts, len(self.corpora.validation))
        return epochs * (steps * settings.batch_size * STEP_COST + looked_at)

    def _title(self, stage: str) -> str:
        return f"member {self.index + 1}/{len(self.study.training.seeds)} · {stage}"


STEP_COST = 2.6  # a text's step of training, in its passes through the encoder
