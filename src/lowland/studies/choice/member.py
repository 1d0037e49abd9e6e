"""One member of a choice study: two AdamW phases and predictions; each stage leaves files and is not repeated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowland import SWAG, copy_to, load, save, weights_of
from lowland.averager import draws
from lowland.calibration import entropy, summary
from lowland.weights import Weights, clone_of, trainable

from ..adapters.classifier import AdaptedClassifier
from ..adapters.training import class_probabilities, run_phase
from ..runs.folder import read_arrays, read_json, write_arrays, write_json
from ..runs.progress import Progress
from ..runs.randomness import derived_seed, own_randomness, stream
from ..runs.settings import period
from .config import ChoiceStudy
from .questions import Question, Questions

VARIANTS = ("base", "early", "dropout", "swa", "swag")  # what a member predicts with
STEP_COST = 2.6  # a question's step of training, in its passes through the model
Voted = dict[str, Tensor]  # by "<set>", "<set>_entropy", "<set>_votes"


@dataclass(frozen=True)
class Material:
    """What all members share: `sets` are validation, test and the shifted sets, by name."""

    study: ChoiceStudy
    adapted: AdaptedClassifier
    head: Weights  # of the model before any training
    train: Questions
    sets: dict[str, Questions]
    asked: dict[str, list[Question]]  # of "train" and the sets
    progress: Progress

    def labels(self, name: str) -> list[int]:
        """Return the right answers of a set."""
        return [question.answer for question in self.asked[name]]


@dataclass(frozen=True)
class Member:
    """One model of the study, and its Gaussian."""

    index: int
    shared: Material
    folder: Path

    @property
    def seed(self) -> int:
        """The seed of everything random in this member."""
        return self.shared.study.training.seeds[self.index]

    def run(self) -> None:
        """Run the stages that have not been run; what a killed stage left behind is overwritten."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stage in (self._first, self._second, *(self._prediction(key) for key in VARIANTS)):
            stage()

    # Phases of training.

    def _first(self) -> None:
        settings, adapted = self.shared.study.training, self.shared.adapted
        self.shared.progress.begin(self._title("AdamW"), self._work(settings.epochs))
        if not (self.folder / "adamw.json").exists():
            adapted.reset(stream(self.seed, "initial weights"), self.shared.head)
            total = settings.epochs * self._steps()
            warm = max(1, round(settings.warmup * total))

            def rate(step: int) -> float:
                return min(1.0, (step + 1) / warm) * min(1.0, max(0.0, (total - step) / max(1, total - warm)))

            def keep(epoch: int) -> None:
                save(clone_of(self._weights()), self.folder / f"epoch-{epoch}.safetensors")

            keep(0)
            self._phase("adamw", settings.learning_rate, rate, settings.epochs, lambda step: None, keep)
        self._told("adamw")

    def _second(self) -> None:
        study = self.shared.study
        settings, swag = study.swag, SWAG(rank=study.swag.rank, select=trainable)
        epochs = study.training.epochs - settings.start
        self.shared.progress.begin(self._title("SWAG"), self._work(epochs))
        if not (self.folder / "swag.json").exists():
            model = self.shared.adapted.model
            copy_to(model, load(self.folder / f"epoch-{self.best_epoch(settings.start)}.safetensors"))
            every, unit = period(settings.every)
            first, last = study.training.learning_rate, settings.learning_rate
            down = round(settings.anneal * self._steps())

            def rate(step: int) -> float:  # torch's SWALR: linear, then constant
                done = 1.0 if down == 0 else min(1.0, step / down)
                return ((1 - done) * first + done * last) / last

            def after_step(step: int) -> None:
                if unit == "step" and step % every == 0:
                    swag.update(model)

            def after_epoch(epoch: int) -> None:
                if unit == "epoch" and epoch % every == 0:
                    swag.update(model)
                if epoch == epochs:
                    if swag.count < 2:
                        raise ValueError(
                            f"the SWAG phase took {swag.count} snapshot(s), it needs at least 2: lower swag.every "
                            f"({settings.every!r}), start earlier or train longer"
                        )
                    save(swag, self.folder / "swag.safetensors")

            self._phase("swag", last, rate, epochs, after_step, after_epoch)
        self._told("swag")

    def _phase(
        self,
        name: str,
        learning_rate: float,
        rate: Callable[[int], float],
        epochs: int,
        after_step: Callable[[int], None],
        after_epoch: Callable[[int], None],
    ) -> None:
        study, shared = self.shared.study, self.shared
        settings = study.training
        parameters = [p for p in shared.adapted.model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=settings.weight_decay)
        begun = time.perf_counter()

        def stepped(step: int) -> None:
            after_step(step)
            shared.progress.advance(STEP_COST * settings.batch_size)

        def looked(epoch: int) -> dict[str, float]:
            after_epoch(epoch)
            shared.adapted.write(self._weights())
            probs = self._probabilities(shared.adapted.merged, "validation")
            found = summary(probs, shared.labels("validation"), bins=study.evaluation.bins)
            return {"epoch": epoch, **{key: float(found[key]) for key in ("nll", "accuracy", "f1")}}

        history = run_phase(
            shared.adapted.model,
            shared.train,
            shared.labels("train"),
            (optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)),
            epochs=epochs,
            batch_size=settings.batch_size,
            clip=settings.clip,
            seed=self.seed if name == "adamw" else self.seed + 2**31,
            after_step=stepped,
            after_epoch=looked,
        )
        write_json(
            self.folder / f"{name}.json", {"seconds": time.perf_counter() - begun, **dataclasses.asdict(history)}
        )

    def _told(self, name: str) -> None:
        stage = read_json(self.folder / f"{name}.json")
        title = {"adamw": "AdamW", "swag": "SWAG"}[name]
        nll = stage["validation"][-1]["nll"]
        self.shared.progress.end(f"{self._title(title)}: {stage['seconds']:.0f} s, validation NLL {nll:.3f}")

    # Predictions.

    def _prediction(self, key: str) -> Callable[[], None]:
        def stage() -> None:
            questions = sum(len(each) for each in self.shared.sets.values())
            passes = self.passes(key)
            self.shared.progress.begin(self._title(f"predictions of {key}"), passes * questions)
            path = self.folder / f"predictions-{key}.npz"
            if not path.exists():
                begun = time.perf_counter()
                parts = self._vote(self._by_dropout(passes) if key == "dropout" else self._by_weights(key), passes)
                arrays = {name: tensor.numpy() for name, tensor in parts.items()}
                write_arrays(path, {**arrays, "seconds": np.array(time.perf_counter() - begun)})
            self.shared.progress.end("")

        return stage

    def passes(self, key: str) -> int:
        """Return how many models a variant averages."""
        settings = self.shared.study.evaluation
        return {"dropout": settings.dropout_samples, "swag": settings.samples}.get(key, 1)

    def _by_weights(self, key: str) -> Iterable[nn.Module]:
        settings = self.shared.study.evaluation
        if key == "swag":
            posterior = load(self.folder / "swag.safetensors").tempered(settings.scale)
            variants: Iterable[Weights] = draws(posterior, settings.samples, stream(self.seed, "draws"))
        else:
            variants = [self.weights(key)]
        for weights in variants:
            self.shared.adapted.write(weights)
            yield self.shared.adapted.merged

    def _by_dropout(self, passes: int) -> Iterable[nn.Module]:
        """The base model with its dropout left on (Gal, Ghahramani 2016, arXiv 1506.02142)."""
        model = self.shared.adapted.model
        copy_to(model, self.weights("base"))
        model.eval()
        dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
        with own_randomness():
            torch.manual_seed(derived_seed(self.seed, "dropout"))
            try:
                for module in dropouts:
                    module.train()
                for _ in range(passes):
                    yield model
            finally:
                model.eval()

    def _vote(self, models: Iterable[nn.Module], count: int) -> Voted:
        sums: Voted = {}
        for model in models:
            for name in self.shared.sets:
                probs = self._probabilities(model, name)
                votes = torch.nn.functional.one_hot(probs.argmax(1), probs.shape[1]).to(probs.dtype)
                for key, value in ((name, probs), (f"{name}_entropy", entropy(probs)), (f"{name}_votes", votes)):
                    sums[key] = sums[key] + value if key in sums else value
        return {key: total / count for key, total in sums.items()}

    def _probabilities(self, model: nn.Module, name: str) -> Tensor:
        size = self.shared.study.evaluation.batch_size
        return class_probabilities(model, self.shared.sets[name], size, self.shared.progress.advance)

    # What the stages left.

    def weights(self, key: str) -> Weights:
        """Return the weights of "base", "early" or "swa"."""
        if key == "swa":
            mean: Weights = load(self.folder / "swag.safetensors").mean()
            return mean
        epochs = self.shared.study.training.epochs
        epoch = epochs if key == "base" else self.best_epoch(epochs)
        weights: Weights = load(self.folder / f"epoch-{epoch}.safetensors")
        return weights

    def best_epoch(self, last: int) -> int:
        """Return the epoch of the first phase, up to `last`, with the lowest validation NLL; 0 if `last` is 0."""
        looks = [look for look in self.history("adamw")["validation"] if look["epoch"] <= last]
        return int(min(looks, key=lambda look: (look["nll"], look["epoch"]))["epoch"]) if looks else 0

    def history(self, name: str) -> dict[str, Any]:
        """Return the history of a phase."""
        stage: dict[str, Any] = read_json(self.folder / f"{name}.json")
        return stage

    def predictions(self, key: str) -> tuple[Voted, float]:
        """Return what a variant predicted on every set, and the seconds that took."""
        arrays = read_arrays(self.folder / f"predictions-{key}.npz")
        seconds = float(arrays.pop("seconds"))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, seconds

    def _weights(self) -> dict[str, Tensor]:
        return weights_of(self.shared.adapted.model, trainable)

    def _steps(self) -> int:
        return -(-len(self.shared.train) // self.shared.study.training.batch_size)

    def _work(self, epochs: int) -> float:
        batch = self.shared.study.training.batch_size
        return epochs * (self._steps() * batch * STEP_COST + len(self.shared.sets["validation"]))

    def work(self) -> float:
        """Return the passes of a question through the model that the member costs."""
        training = 2 * self.shared.study.training.epochs - self.shared.study.swag.start
        questions = sum(len(each) for each in self.shared.sets.values())
        return self._work(training) + sum(self.passes(key) for key in VARIANTS) * questions

    def _title(self, stage: str) -> str:
        return f"member {self.index + 1}/{len(self.shared.study.training.seeds)} · {stage}"
