"""What the configurations of the studies of adapters share: the adapter, its encoder, and the rules of both."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from ..runs.settings import BELOW_ONE, DIFFERENT_SEEDS, POSITIVE, SHARE, SWAG_RANK, Rule, at_least, each_at_least
from ..runs.settings import period as period


@dataclass(frozen=True)
class Model:
    """Which encoder, and what stands on it."""

    encoder: str = "packaged"  # the packaged MiniLM, a local folder or a hub name
    pooling: str = "mean"  # or "cls"
    max_length: int = 0  # tokens; 0: chosen from the training texts, as `fitting_length` does
    encoder_dropout: float = 0.0  # with 0 attention takes its fast path
    head_dropout: float = 0.1


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()  # names of linear layers; empty: the attention's query and value
    layers: tuple[int, ...] = ()  # empty: all; upper layers only: what lies below is computed once per text


# Of the settings that every study of adapters and SWAG has.
ADAPTER_RULES: dict[str, Rule] = {
    "data.test_share": SHARE,
    "data.seed": at_least(0),
    "lora.rank": at_least(1),
    "lora.alpha": POSITIVE,
    "lora.dropout": BELOW_ONE,
    "lora.layers": Rule(lambda layers: min(layers, default=0) >= 0, "count layers from 0"),
    "training.seeds": DIFFERENT_SEEDS,
    "training.epochs": at_least(1),
    "training.batch_size": at_least(1),
    "training.learning_rate": POSITIVE,
    "training.weight_decay": at_least(0),
    "training.clip": POSITIVE,
    "swag.start": at_least(0),
    "swag.learning_rate": POSITIVE,
    "swag.rank": SWAG_RANK,
    "swag.other_starts": each_at_least(0),
    "swag.other_rates": Rule(lambda rates: all(0 < rate < math.inf for rate in rates), "be positive numbers"),
    "evaluation.samples": at_least(1),
    "evaluation.scale": at_least(0),
    "evaluation.other_scales": each_at_least(0),
    "evaluation.bins": at_least(1),
    "evaluation.resamples": at_least(10),
    "evaluation.level": SHARE,
    "evaluation.batch_size": at_least(1),
}


RATE_STEP = 2.5  # between the rates of the second phase that a study of own data tries
OTHER_SCALES = (0.5, 2.0)


def searched(sections: dict[str, Any], given: dict[str, Any], default: Any) -> None:
    """Have a study of own data try rates, starts and scales of the second phase, where it says nothing of them.

    What was tuned on the packaged sets need not suit another one: rates below and above, a start at half of the epochs,
    half and twice the covariance.
    """
    swag = sections.get("swag", default.swag)
    training = sections.get("training", default.training)
    evaluation = sections.get("evaluation", default.evaluation)
    said = {key for section in ("swag", "evaluation") for key in given.get(section, {})}
    later = max(1, training.epochs // 2)
    changes: dict[str, Any] = {}
    if "other_rates" not in said:
        rates = (swag.learning_rate / RATE_STEP, swag.learning_rate * RATE_STEP)
        changes["other_rates"] = tuple(float(f"{rate:.3g}") for rate in rates)
    if "other_starts" not in said and swag.start < later < training.epochs:
        changes["other_starts"] = (later,)
    sections["swag"] = dataclasses.replace(swag, **changes)
    if "other_scales" not in said:
        sections["evaluation"] = dataclasses.replace(evaluation, other_scales=OTHER_SCALES)


LENGTH = Rule(lambda length: length == 0 or length >= 4, "be 0 (chosen from the texts) or at least 4")
MODEL_NAME = Rule(bool, 'name a folder, a hub model, or "packaged"')


def in_epochs(given: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Turn `swag.start` written as "2 epochs" or "50%" into a number of epochs; `epochs` where training says none.

    Raises:
        ValueError: it is no whole number of epochs.

    >>> in_epochs({"swag": {"start": "50%"}, "training": {"epochs": 8}}, 4)["swag"]
    {'start': 4}
    """
    swag, training = given.get("swag"), given.get("training")
    if not isinstance(swag, dict) or not isinstance(swag.get("start"), str):
        return given
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|epochs?)?\s*", swag["start"])
    whole = training.get("epochs", epochs) if isinstance(training, dict) else epochs
    share = found is not None and found[2] == "%" and isinstance(whole, int)
    amount = float(found[1]) * (whole / 100 if share else 1) if found is not None else 0.5
    if amount != round(amount):
        raise ValueError(
            f"swag.start must be a whole number of epochs, such as 2, '2 epochs' or '50%', got {swag['start']!r} "
            f"of {whole} epochs: SWAG begins at the end of an epoch"
        )
    return {**given, "swag": {**swag, "start": round(amount)}}


def check_adapters(study: Any) -> None:
    """Check what settings of a study of adapters and SWAG mean together.

    Raises:
        ValueError: SWAG starts too late, its period cannot be read, or there is no one source of data.
    """
    start, epochs = max(study.swag.start, *study.swag.other_starts, 0), study.training.epochs
    if not start < epochs:
        raise ValueError(
            f"swag.start must come before the last epoch, got start {start} of {epochs} epochs: lower it, or train "
            "longer"
        )
    period(study.swag.every)
    if bool(study.data.name) == bool(study.data.train):
        raise ValueError("data takes either name= (a packaged set) or train= (your file), got both or none of them")


def check_snapshots(study: Any, items: int) -> None:
    """See before any training that the SWAG phase will take two snapshots or more from `items` training examples.

    Raises:
        ValueError: it will not.
    """
    every, unit = period(study.swag.every)
    epochs = study.training.epochs - max(study.swag.start, *study.swag.other_starts, 0)
    steps = epochs * -(-items // study.training.batch_size)
    count = (steps if unit == "step" else epochs) // every
    if count < 2:
        smaller = "lower swag.every, " if every > 1 or unit == "epoch" else ""
        raise ValueError(
            f"the SWAG phase would take {count} snapshot{'' if count == 1 else 's'} in its {steps} "
            f"step{'' if steps == 1 else 's'} (every {study.swag.every!r}), it needs at least 2: {smaller}lower "
            "training.batch_size or swag.start, or give more data"
        )
