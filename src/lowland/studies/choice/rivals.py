"""What SWAG on adapters is held against besides the study's own methods, a member at a time.

    zero-shot             the model before training
    last iterate          where the second phase ended: it was trained as long as SWAG's mean was
    SWAG, scale 2         what the code of SWAG-LoRA calls scale 1
    SWAG, fitted scale    of several the one with the lowest NLL of the validation questions
    TFB                   isotropic noise on the base model's adapters, as large as the anchors bear (arXiv 2412.05723)
    TFB, SWAG's shape     SWAG's own covariance, scaled likewise
    Laplace, head         a Kronecker-factored Laplace approximation of the base model's head, where laplace-torch is

The anchors are the validation questions: of training questions that were learned by heart none bears noise.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowland import load
from lowland.averager import Drawable
from lowland.calibration import entropy, fit_temperature, largest_scale, nll, summary
from lowland.integrations.peft import IsotropicAdapters

from ..adapters.member import Member, Voted
from ..adapters.predicting import predicted
from ..runs.folder import read_arrays, read_json, write_arrays, write_json
from ..runs.randomness import stream
from .laplace import head_draws
from .regime import Regime

SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the covariance, tried on validation questions
EPSILON = 0.01  # nats that TFB may cost on the anchors
TFB_START = 1e-4  # variance of an element of U^T B A at which the search begins
ZERO, TRAINED = "zero-shot", "base on its training questions"
ALWAYS = {"zero": ZERO, "fit": TRAINED}  # one pass each: what `regime` asks for
EXTRA = {
    "last": "last iterate",
    "double": "SWAG, scale 2",
    "fitted": "SWAG, fitted scale",
    "tfb": "TFB",
    "tfb-swag": "TFB, SWAG's shape",
}
LAPLACE = {"laplace": "Laplace, head"}
Found = tuple[Drawable, int | None, dict[str, float]]  # a posterior, how many draws, what was chosen for it


def rivals_of(kind: str, extra: bool) -> dict[str, str]:
    """Return the rivals of a study by key, with what they are called."""
    laplace = LAPLACE if kind != "pairs" and importlib.util.find_spec("laplace") is not None else {}
    return {**ALWAYS, **EXTRA, **laplace} if extra else dict(ALWAYS)


def beside(members: Sequence[Member], draws: Sequence[Voted], temperatures: Sequence[float]) -> dict[str, Any]:
    """Return what metrics.json says of the rivals and of the regime, and what the report notes of them.

    Args:
        draws: what each member's SWAG predicts.
        temperatures: what validation questions want of each member's base model.
    """
    shared = members[0].shared
    settings, kind = shared.study.evaluation, shared.study.model.kind
    found, parts = {}, {}
    for key, name in rivals_of(kind, settings.rivals).items():
        shared.progress.say(f"beside: {name}")
        each = [rival(member, key) for member in members]
        parts[key] = [voted for voted, _ in each]
        chosen = [one for _, one in each if one]
        found[name] = {**judged(parts[key], shared.labels, settings.bins), **({"chosen": chosen} if chosen else {})}
    regime = Regime(
        train_accuracy=accuracy_of(parts["fit"], "train", shared.labels["train"]),
        untrained=found[ZERO]["temperature"],
        trained=sum(temperatures) / len(temperatures),
        mutual_information=mutual_information(draws, "test"),
    )
    notes = [
        f"{name}: NLL {own['test']['nll']:.3f}, ECE {own['test']['ece']:.3f}, accuracy {own['test']['accuracy']:.3f}."
        for name, own in found.items()
        if "test" in own
    ]
    return {"rivals": found, "regime": {**dataclasses.asdict(regime), "says": regime.says()}, "notes": notes}


def rival(member: Member, key: str) -> tuple[Voted, dict[str, float]]:
    """Return what a rival predicts on every set, and what was chosen for it; found once, then read from files."""
    path, note = member.folder / f"rival-{key}.npz", member.folder / f"rival-{key}.json"
    if not note.exists():
        shared = member.shared
        posterior, samples, chosen = MAKERS[key](member)
        found = predicted(
            shared.adapted,
            posterior,
            {"train": shared.train} if key == "fit" else shared.sets,
            shared.study.evaluation.batch_size,
            samples=samples,
            generator=stream(member.seed, f"draws of {key}"),
        )
        arrays: dict[str, Any] = {}
        for name, part in found.items():
            arrays |= {name: part.probs.numpy(), f"{name}_entropy": part.expected_entropy.numpy()}
        write_arrays(path, arrays)
        write_json(note, chosen)
    return {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}, read_json(note)


def _last(member: Member) -> Found:
    return load(member.folder / f"{member.shared.second}-last.safetensors"), None, {}


def _double(member: Member) -> Found:
    settings = member.shared.study.evaluation
    return member.posterior().tempered(2.0), settings.samples, {"scale": 2.0}


def _fitted(member: Member) -> Found:
    swag, samples = member.posterior(), member.shared.study.evaluation.samples
    tried = {scale: _anchored(member, swag.tempered(scale), samples) for scale in SCALES}
    tried[0.0] = _anchored(member, swag.mean(), None)
    best = min(tried, key=lambda scale: tried[scale])
    posterior: Drawable = swag.tempered(best) if best else swag.mean()
    return posterior, samples if best else None, {"scale": best}


def _tfb(member: Member) -> Found:
    return _borne(member, IsotropicAdapters(member.weights("base")), TFB_START)


def _tfb_swag(member: Member) -> Found:
    return _borne(member, member.posterior(), 1.0)


def _borne(member: Member, posterior: Any, start: float) -> Found:
    samples = member.shared.study.evaluation.samples

    def cost(scale: float) -> float:
        drawn: Drawable = posterior.tempered(scale) if scale else posterior.mean()
        return _anchored(member, drawn, samples if scale else None)

    found = largest_scale(cost, EPSILON, start=start, precision=0.25)
    told = {"scale": found.scale, "anchors_nll": found.cost, "point_nll": found.point, "tried": float(len(found.tried))}
    drawn: Drawable = posterior.tempered(found.scale) if found.scale else posterior.mean()
    return drawn, samples if found.scale else None, told


def _anchored(member: Member, posterior: Drawable, samples: int | None) -> float:
    """NLL of the validation questions; the same draws in every call."""
    shared = member.shared
    found = predicted(
        shared.adapted,
        posterior,
        {"validation": shared.sets["validation"]},
        shared.study.evaluation.batch_size,
        samples=samples,
        generator=stream(member.seed, "draws for anchors"),
    )
    return nll(found["validation"].probs, list(shared.labels["validation"]))


MAKERS: Mapping[str, Callable[[Member], Found]] = {
    "zero": lambda member: (member.epoch(0), None, {}),
    "fit": lambda member: (member.weights("base"), None, {}),
    "last": _last,
    "double": _double,
    "fitted": _fitted,
    "tfb": _tfb,
    "tfb-swag": _tfb_swag,
    "laplace": lambda member: (head_draws(member), None, {}),
}


def judged(parts: Sequence[Voted], labels: Mapping[str, Sequence[int]], bins: int) -> dict[str, Any]:
    """Return the mean over members of each metric of a rival, by set, with the temperature that validation wants."""
    found: dict[str, Any] = {}
    for name in (key for key in parts[0] if not key.endswith("_entropy")):
        truth = list(labels[name])
        each = [summary(one[name], truth, bins=bins) for one in parts]
        found[name] = {key: sum(float(one[key]) for one in each) / len(each) for key in ("nll", "ece", "accuracy")}
        found[name]["mutual_information"] = mutual_information(parts, name)
    if "validation" in found:
        wanted = [fit_temperature(one["validation"], list(labels["validation"])) for one in parts]
        found["temperature"] = sum(wanted) / len(wanted)
    return found


def mutual_information(parts: Sequence[Voted], name: str) -> float:
    """Return what the draws of a member disagree about, in nats: the mean over members and examples."""
    each = [float((entropy(one[name]) - one[f"{name}_entropy"]).clamp_min(0).mean()) for one in parts]
    return sum(each) / len(each)


def accuracy_of(parts: Sequence[Voted], name: str, labels: Sequence[int]) -> float:
    """Return the mean accuracy of members."""
    truth = torch.tensor(list(labels))
    each: list[Tensor] = [(one[name].argmax(1) == truth).double().mean() for one in parts]
    return float(torch.stack(each).mean())
