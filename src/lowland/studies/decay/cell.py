"""One cell of a study of decays: a run at a constant rate, the decays that branch off it, and averages of its tail."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland import EMA, applied, copy_to, weights_of
from lowland.ema import half_life
from lowland.soup import weighted
from lowland.weights import Weights, clone_of

from ..grid.cells import Cell
from ..grid.configured import path_of
from ..runs.randomness import derived_seed, own_randomness
from .config import WIDTHS, DecayStudy
from .kind import KIND
from .network import Transformer
from .shapes import SHAPES, coefficients, rate_at
from .texts import Texts, read

_PARTS = ("train", "validation", "test", "shift")
DECAYS = ("linear", "minus-sqrt", "cosine")
# A blend of its own for each: names that begin or end so.
_GROUPS: dict[str, Callable[[str], bool]] = {
    "embeddings": lambda name: name.startswith(("embed", "positions", "head")),
    "attention": lambda name: "attention" in name or "joined" in name,
    "rest": lambda name: True,
}


def run_cell(study: DecayStudy, cell: Cell) -> dict[str, Any]:
    """Train one transformer, decay it in several shapes, merge its tail; plain data for a file.

    The same study and cell give the same numbers on one thread, but for `seconds`. The global random state stays.

    Raises:
        ValueError: the texts are not there or too short.
        RuntimeError: the run diverged.
    """
    with own_randomness():
        return Branches(study, cell).result()


class Branches:
    """The texts, the model and the losses of a cell: a run, what branches off it, and how all that is judged.

    Args:
        device: "cuda" trains and judges in bfloat16 under autocast; the weights stay in float32.
    """

    def __init__(self, study: DecayStudy, cell: Cell, device: str = "cpu") -> None:
        self.study, self.cell, self.device = study, cell, device
        path = path_of(study.data.paths, cell.data)
        texts = read(cell.data, Path(path) if path else None, study.model.context, study.evaluation.rows)
        self.texts = Texts(*(getattr(texts, part).to(device) for part in _PARTS))
        torch.manual_seed(derived_seed(cell.seed, "weights"))  # inside own_randomness
        shape = study.model
        self.model = Transformer(WIDTHS[cell.model], shape.layers, shape.heads, shape.context).to(device)
        self.forward: Callable[[Tensor], Tensor] = self.model  # what training calls: the model, or compiled code of it
        order = torch.Generator().manual_seed(derived_seed(cell.seed, "order"))
        steps, size = study.training.steps + study.training.decay_steps, study.training.batch_size
        self.order = torch.randint(len(self.texts.train), (steps, size), generator=order)
        self.seconds = {"training": 0.0, "averaging": 0.0, "evaluation": 0.0}

    def result(self) -> dict[str, Any]:
        """Run everything that the cell holds."""
        given, merging = self.study.training, self.study.merging
        optimiser = self.optimiser()
        with self.clock("training"):
            self.train(optimiser, range(given.steps), self.warming)
        begun, state = clone_of(weights_of(self.model)), _copied(optimiser.state_dict())
        found: dict[str, Weights] = {"before": begun}
        branch = range(given.steps, given.steps + given.decay_steps)
        for shape in DECAYS:
            copy_to(self.model, begun)
            optimiser.load_state_dict(_copied(state))
            with self.clock("training"):
                self.train(optimiser, branch, self.falling(shape))
            found[f"decayed {shape}"] = clone_of(weights_of(self.model))
        copy_to(self.model, begun)
        optimiser.load_state_dict(_copied(state))
        tails = {steps: EMA(half_life(steps)) for steps in merging.half_lives}
        kept = [begun]

        def keep(step: int) -> None:
            with self.clock("averaging"):
                for tail in tails.values():
                    tail.update(self.model)
                if (step + 1 - given.steps) % merging.every == 0:
                    kept.append(clone_of(weights_of(self.model)))

        with self.clock("training"):
            self.train(optimiser, branch, lambda step: 1.0, keep)
        found["constant"] = kept[-1]
        with self.clock("evaluation"):
            return self.judged(found, kept, {steps: tail.mean() for steps, tail in tails.items()})

    def optimiser(self) -> torch.optim.AdamW:
        """A new optimiser of the model."""
        given = self.study.training
        return torch.optim.AdamW(
            self.model.parameters(), lr=given.learning_rate, betas=(0.9, 0.95), weight_decay=given.weight_decay
        )

    def warming(self, step: int) -> float:
        """The share of the rate at a step before the branches."""
        return min(1.0, (step + 1) / max(1, self.study.training.warmup))

    def falling(self, shape: str) -> Callable[[int], float]:
        """The share of the rate at the steps of a decay, each at its middle."""
        given = self.study.training
        return lambda step: rate_at(shape, (step + 0.5 - given.steps) / given.decay_steps)

    def train(
        self,
        optimiser: torch.optim.Optimizer,
        steps: Sequence[int],
        rate: Callable[[int], float],
        after: Callable[[int], None] | None = None,
    ) -> None:
        """Take steps, each on the batch that is its own whatever came before."""
        self.model.train()
        for step in steps:
            for group in optimiser.param_groups:
                group["lr"] = self.study.training.learning_rate * rate(step)
            loss = self.loss(self.forward, self.texts.train[self.order[step]]).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), self.study.training.clip)
            optimiser.step()
            if not math.isfinite(loss.item()):
                raise RuntimeError(
                    f"cell {self.cell.name} diverged at step {step}: lower training.learning_rate from "
                    f"{self.study.training.learning_rate}"
                )
            if after is not None:
                after(step)

    def judged(
        self, found: dict[str, Weights], kept: Sequence[Weights], tails: Mapping[int, Weights]
    ) -> dict[str, Any]:
        """Merge, choose on validation text, and judge everything."""
        merging = self.study.merging
        last, trials = kept[-1], []
        for window in merging.windows:
            count = self.study.training.decay_steps * window // 100 // merging.every
            for shape in SHAPES:
                average = weighted(kept[-count - 1 :], coefficients(shape, count))
                if window == 100 and f"merged {shape}" in KIND.methods:
                    found[f"merged {shape}"] = average
                for blend in merging.blends:
                    weights = _blended(last, average, lambda name, blend=blend: blend)  # type: ignore[misc]
                    trials.append((window, shape, blend, weights, self.losses(weights, "validation")))
        chosen = min(trials, key=lambda trial: float(trial[4].mean()))
        tests = [float(self.losses(trial[3], "test").mean()) for trial in trials]
        oracle = trials[min(range(len(trials)), key=tests.__getitem__)]
        tail = min(tails, key=lambda steps: float(self.losses(tails[steps], "validation").mean()))
        window, shape, blend = chosen[:3]
        count = self.study.training.decay_steps * window // 100 // merging.every
        average = weighted(kept[-count - 1 :], coefficients(shape, count))
        by_group = self.grouped(last, average, blend)
        found |= {
            "EMA tail": tails[tail],
            "merged, chosen": chosen[3],
            "oracle": oracle[3],
            "merged by groups": _blended(last, average, lambda name: by_group[_group(name)]),
        }
        methods = {
            name: {part: {"nll": float(self.losses(found[name], part).mean())} for part in _PARTS}
            for name in KIND.methods
        }
        rows = [
            {"value": window, "method": shape, "validation": float(losses.mean()), "test": test}
            for (window, shape, blend, _, losses), test in zip(trials, tests, strict=True)
            if blend == 1.0
        ]
        tailed = [
            {"value": steps, "method": "EMA tail"}
            | {part: float(self.losses(weights, part).mean()) for part in ("validation", "test")}
            for steps, weights in tails.items()
        ]
        return {
            "methods": methods,
            "curves": {},
            "trace": [],
            "sensitivity": {"window": rows, "half-life": tailed},
            "chosen": {
                "window": window,
                "shape": shape,
                "blend": blend,
                "half-life": tail,
                **{f"blend of {group}": value for group, value in by_group.items()},
                "oracle": f"{oracle[0]} % {oracle[1]}, blend {oracle[2]}",
                "parameters": sum(p.numel() for p in self.model.parameters()),
            },
            "seconds": self.seconds,
        }

    def grouped(self, last: Weights, average: Weights, one: float) -> dict[str, float]:
        """A blend for each group: the best on half of the validation rows, a group at a time; then shrunk towards the
        one blend as far as the other half wants.
        """
        half = self.study.evaluation.rows // 2
        fitted = dict.fromkeys(_GROUPS, one)

        def loss(blends: Mapping[str, float], rows: slice) -> float:
            weights = _blended(last, average, lambda name: blends[_group(name)])
            return float(self.losses(weights, "validation", rows).mean())

        for group in _GROUPS:
            values = sorted({one, *self.study.merging.blends})
            fitted[group] = min(values, key=lambda value: loss({**fitted, group: value}, slice(half)))
        shrunk = [{g: one + t * (fitted[g] - one) for g in fitted} for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
        return min(shrunk, key=lambda blends: loss(blends, slice(half, None)))

    @torch.no_grad()
    def losses(self, weights: Weights, part: str, rows: slice = slice(None)) -> Tensor:
        """The mean loss of each row of a part (N,), in nats a byte."""
        texts = getattr(self.texts, part)[: self.study.evaluation.rows][rows]
        self.model.eval()
        with applied(self.model, weights):
            size = self.study.evaluation.batch_size
            return torch.cat([self.loss(self.model, chunk) for chunk in texts.split(size)]).double().cpu()

    def loss(self, forward: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Mean cross-entropy of each row (N,)."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            logits = forward(rows[:, :-1])
        return functional.cross_entropy(logits.float().transpose(1, 2), rows[:, 1:], reduction="none").mean(1)

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the time of a block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - begun


def _group(name: str) -> str:
    return next(group for group, holds in _GROUPS.items() if holds(name))


def _blended(last: Weights, average: Weights, blend: Callable[[str], float]) -> dict[str, Tensor]:
    """Last + blend (average - last)."""
    return {name: tensor + blend(name) * (average[name] - tensor) for name, tensor in last.items()}


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state with tensors of its own."""
    return {
        **state,
        "state": {
            key: {k: v.clone() if isinstance(v, Tensor) else v for k, v in entry.items()}
            for key, entry in state["state"].items()
        },
    }
