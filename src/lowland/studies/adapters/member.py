"""One member of a study of adapters: two phases of training and predictions; each stage leaves files, none is repeated.

What the studies differ in is handed in: the two phases, the examples, and which variants predict.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowland import SWAG, copy_to, load, save, weights_of
from lowland.averager import Drawable
from lowland.calibration import entropy, summary
from lowland.weights import Weights, clone_of, trainable

from ..runs.folder import read_arrays, read_json, write_arrays, write_json
from ..runs.progress import Progress
from ..runs.randomness import derived_seed, own_randomness, stream
from ..runs.settings import period
from .classifier import AdaptedClassifier
from .predicting import predicted, products_for
from .tokens import Corpus
from .training import class_probabilities, run_phase

STEP_COST = 2.6  # an example's step of training, in its passes through the model
Voted = dict[str, Tensor]  # by "<set>", "<set>_entropy", "<set>_votes"


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    `optimisers` makes an optimiser and its schedule for a model and the number of steps of an epoch.
    """

    epochs: int
    start: Callable[[Member], Weights | None]  # the weights it starts from; None: those that are there
    optimisers: Callable[[nn.Module, int], tuple[Any, Any]]


@dataclass(frozen=True)
class Material:
    """What all members share: `sets` are validation, test and others, `labels` those of "train" and of the sets."""

    study: Any
    adapted: AdaptedClassifier
    train: Corpus
    sets: Mapping[str, Corpus]
    monitor: Corpus  # the validation examples that are looked at after each epoch
    labels: Mapping[str, Sequence[int]]
    phased: Callable[[Any], tuple[Phase, ...]]  # the phases of a study: AdamW, SWAG, and AdamW at a tuned rate
    variants: Mapping[str, str]  # what a member predicts with, and how the study calls it
    progress: Progress
    second: str = "swag"  # how the files of the second phase are called

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of training."""
        return self.phased(self.study)

    @property
    def steps(self) -> int:
        """Steps of training in an epoch."""
        return -(-len(self.train) // int(self.study.training.batch_size))


@dataclass(frozen=True)
class Member:
    """One model of the study, and its Gaussian."""

    index: int
    shared: Material
    folder: Path

    @property
    def seed(self) -> int:
        """The seed of everything random in this member."""
        return int(self.shared.study.training.seeds[self.index])

    def run(self) -> None:
        """Run the stages that have not been run; what a killed stage left behind is overwritten."""
        self.first()
        self.second()
        if "tuned" in self.shared.variants:
            self._tuned()
        for key in self.shared.variants:
            self._prediction(key)

    # Phases of training.

    def first(self) -> None:
        """Train by AdamW and keep the weights after each epoch."""
        self.folder.mkdir(parents=True, exist_ok=True)

        def keep(epoch: int) -> None:
            save(clone_of(self._weights()), self.folder / f"epoch-{epoch}.safetensors")

        self._phase("adamw", "AdamW", self.shared.phases[0], lambda step: None, keep, begin=lambda: keep(0))

    def _tuned(self) -> None:
        phase = self.shared.phases[2]

        def keep(epoch: int) -> None:
            if epoch == phase.epochs:
                save(clone_of(self._weights()), self.folder / "tuned.safetensors")

        self._phase("tuned", "AdamW, tuned rate", phase, lambda step: None, keep)

    def second(self) -> None:
        """Train on from the first phase and fit a SWAG to what is passed."""
        settings, phase, model = self.shared.study.swag, self.shared.phases[1], self.shared.adapted.model
        swag = SWAG(rank=settings.rank, select=trainable)
        every, unit = period(settings.every)

        def after_step(step: int) -> None:
            if unit == "step" and step % every == 0:
                swag.update(model)

        def after_epoch(epoch: int) -> None:
            if unit == "epoch" and epoch % every == 0:
                swag.update(model)
            if epoch == phase.epochs:
                save(swag, self.folder / f"{self.shared.second}.safetensors")
                save(clone_of(self._weights()), self.folder / f"{self.shared.second}-last.safetensors")

        self._phase(self.shared.second, "SWAG", phase, after_step, after_epoch)

    def _phase(
        self,
        name: str,
        title: str,
        phase: Phase,
        after_step: Callable[[int], None],
        after_epoch: Callable[[int], None],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        shared = self.shared
        file = self.folder / f"{name}.json"
        shared.progress.begin(self._title(title), self.training(phase.epochs))
        if not file.exists():
            weights = phase.start(self)
            if weights is not None:
                copy_to(shared.adapted.model, weights)
            begin()
            self._train(name, phase, after_step, after_epoch)
        stage = read_json(file)
        nll = stage["validation"][-1]["nll"]
        shared.progress.end(f"{self._title(title)}: {stage['seconds']:.0f} s, validation NLL {nll:.3f}")

    def _train(
        self, name: str, phase: Phase, after_step: Callable[[int], None], after_epoch: Callable[[int], None]
    ) -> None:
        shared, settings = self.shared, self.shared.study.training
        truth = list(shared.labels["validation"])[: len(shared.monitor)]

        def stepped(step: int) -> None:
            after_step(step)
            shared.progress.advance(STEP_COST * settings.batch_size)

        def looked(epoch: int) -> dict[str, float]:
            after_epoch(epoch)
            shared.adapted.write(self._weights())
            probs = self._probabilities(shared.adapted.merged, shared.monitor)
            found = summary(probs, truth, bins=shared.study.evaluation.bins)
            return {"epoch": epoch, **{key: float(found[key]) for key in ("nll", "accuracy", "f1")}}

        begun = time.perf_counter()
        history = run_phase(
            shared.adapted.model,
            shared.train,
            shared.labels["train"],
            phase.optimisers(shared.adapted.model, shared.steps),
            epochs=phase.epochs,
            batch_size=settings.batch_size,
            clip=settings.clip,
            seed=self.seed + 2**31 if name == self.shared.second else self.seed,
            after_step=stepped,
            after_epoch=looked,
        )
        seconds = time.perf_counter() - begun
        write_json(self.folder / f"{name}.json", {"seconds": seconds, **dataclasses.asdict(history)})

    # Predictions.

    def _prediction(self, key: str) -> None:
        progress, passes = self.shared.progress, self.passes(key)
        work = passes * self._examples()
        progress.begin(self._title(f"predictions of {self.shared.variants[key]}"), work)
        path = self.folder / f"predictions-{key}.npz"
        if not path.exists():
            begun = time.perf_counter()
            if key == "early" and self.early_epoch() == self.shared.phases[0].epochs:
                parts = {name: array for name, array in self._arrays("base").items() if name != "seconds"}
                progress.advance(work)
            else:
                voted = self._by_dropout(passes) if key == "dropout" else self._by_weights(key)
                parts = {name: tensor.numpy() for name, tensor in voted.items()}
            write_arrays(path, {**parts, "seconds": np.array(time.perf_counter() - begun)})
        progress.end("")

    def passes(self, key: str) -> int:
        """Return how many models a variant averages."""
        settings = self.shared.study.evaluation
        if key == "dropout":
            return int(settings.dropout_samples)
        return int(settings.samples) if key == "swag" else 1

    def _by_weights(self, key: str) -> Voted:
        settings, drawn = self.shared.study.evaluation, key == "swag"
        posterior: Drawable = self.weights(key) if not drawn else {}
        if drawn:
            posterior = self.posterior().tempered(settings.scale)
        found = predicted(
            self.shared.adapted,
            posterior,
            self.shared.sets,
            settings.batch_size,
            samples=settings.samples if drawn else None,
            done=self.shared.progress.advance,
            generator=stream(self.seed, "draws"),
            products=self.products(),
        )
        voted: Voted = {}
        for name, part in found.items():
            voted |= {name: part.probs, f"{name}_entropy": part.expected_entropy, f"{name}_votes": part.votes}
        return voted

    def _by_dropout(self, passes: int) -> Voted:
        """The base model with its dropout left on, as `predict` has it not (Gal, Ghahramani 2016, arXiv 1506.02142)."""
        model = self.shared.adapted.model
        copy_to(model, self.weights("base"))
        model.eval()
        dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
        sums: Voted = {}
        with own_randomness():
            torch.manual_seed(derived_seed(self.seed, "dropout"))
            try:
                for module in dropouts:
                    module.train()
                for _ in range(passes):
                    for name, examples in self.shared.sets.items():
                        probs = self._probabilities(model, examples)
                        votes = nn.functional.one_hot(probs.argmax(1), probs.shape[1]).to(probs.dtype)
                        for key, value in (
                            (name, probs),
                            (f"{name}_entropy", entropy(probs)),
                            (f"{name}_votes", votes),
                        ):
                            sums[key] = sums[key] + value if key in sums else value
            finally:
                model.eval()
        return {key: total / passes for key, total in sums.items()}

    def _probabilities(self, model: nn.Module, examples: Corpus) -> Tensor:
        return class_probabilities(
            model, examples, self.shared.study.evaluation.batch_size, self.shared.progress.advance
        )

    def tried(self, scale: float) -> tuple[Tensor, float]:
        """Return the validation probabilities (N, C) of the second phase's mean (scale 0), or of draws at a scale.

        The other number is the seconds that it took to predict them.
        """
        settings, path = self.shared.study.evaluation, self.folder / f"{self.shared.second}-scale-{scale:g}.npz"
        checked = {"validation": self.shared.sets["validation"]}
        self.shared.progress.begin(self._title(f"validation at scale {scale:g}"), self.trying(scale))
        if not path.exists():
            begun = time.perf_counter()
            found = predicted(
                self.shared.adapted,
                self.posterior().tempered(scale) if scale else self.posterior().mean(),
                checked,
                settings.batch_size,
                samples=settings.samples if scale else None,
                done=self.shared.progress.advance,
                generator=stream(self.seed, "draws"),
                products=self.products(),
            )
            taken = np.array(time.perf_counter() - begun)
            write_arrays(path, {"validation": found["validation"].probs.numpy(), "seconds": taken})
        self.shared.progress.end("")
        kept = read_arrays(path)
        return torch.from_numpy(kept["validation"]), float(kept["seconds"])

    def products(self) -> str:
        """Return the type for products of matrices, which the first member to predict settles for all."""
        path, settings = self.folder.parent / "products.json", self.shared.study.evaluation
        if getattr(settings, "products", "float32") == "float32":
            return "float32"
        if not path.exists():
            checked, size = self.shared.sets["validation"], settings.batch_size
            write_json(path, products_for(self.shared.adapted, self.weights("base"), checked, size))
        return str(read_json(path)["products"])

    # What the stages left.

    def posterior(self) -> SWAG:
        """Return the Gaussian that the second phase fitted."""
        swag: SWAG = load(self.folder / f"{self.shared.second}.safetensors")
        return swag

    def epoch(self, number: int) -> Weights:
        """Return the weights after an epoch of the first phase; 0 is where it started."""
        weights: Weights = load(self.folder / f"epoch-{number}.safetensors")
        return weights

    def weights(self, key: str) -> Weights:
        """Return the weights of "base", "early", "swa" or "tuned"."""
        if key == "swa":
            return self.posterior().mean()
        if key == "tuned":
            tuned: Weights = load(self.folder / "tuned.safetensors")
            return tuned
        return self.epoch(self.shared.phases[0].epochs if key == "base" else self.early_epoch())

    def early_epoch(self, last: int | None = None) -> int:
        """Return the epoch of the first phase, up to `last`, with the lowest validation NLL; of equals the first.

        Where there is none, as `last` is 0, that is 0.
        """
        looks = self.history("adamw")["validation"]
        looks = [look for look in looks if last is None or look["epoch"] <= last]
        return int(min(looks, key=lambda look: (look["nll"], look["epoch"]))["epoch"]) if looks else 0

    def history(self, name: str) -> dict[str, Any]:
        """Return the history of a phase: "adamw", "swag" or "tuned"."""
        stage: dict[str, Any] = read_json(self.folder / f"{self.shared.second if name == 'swag' else name}.json")
        return stage

    def predictions(self, key: str) -> tuple[Voted, float]:
        """Return what a variant predicted on every set, and the seconds that took."""
        arrays = self._arrays(key)
        seconds = float(arrays.pop("seconds"))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, seconds

    def _arrays(self, key: str) -> dict[str, Any]:
        return read_arrays(self.folder / f"predictions-{key}.npz")

    def _weights(self) -> dict[str, Tensor]:
        return weights_of(self.shared.adapted.model, trainable)

    # What they cost, in passes of an example through the model.

    def work(self) -> float:
        """Return what all stages cost."""
        training = sum(self.training(phase.epochs) for phase in self.shared.phases)
        return training + sum(self.passes(key) for key in self.shared.variants) * self._examples()

    def trying(self, scale: float) -> float:
        """Return what it costs to look at a scale."""
        passes = int(self.shared.study.evaluation.samples) if scale else 1
        return passes * len(self.shared.sets["validation"])

    def training(self, epochs: int) -> float:
        batch = int(self.shared.study.training.batch_size)
        return epochs * (self.shared.steps * batch * STEP_COST + len(self.shared.monitor))

    def _examples(self) -> int:
        return sum(len(each) for each in self.shared.sets.values())

    def _title(self, stage: str) -> str:
        return f"member {self.index + 1}/{len(self.shared.study.training.seeds)} · {stage}"
