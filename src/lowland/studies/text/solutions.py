"""The solutions of a member of a text study for landscapes: the base model's adapters, SWA's, and SWAG's Gaussian."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowland import load

from ..adapters.classifier import adapt, load_encoder
from ..adapters.tokens import Tokens, tokenise
from ..runs.folder import read_json
from ..runs.randomness import own_randomness, quiet
from ..runs.solutions import Solutions
from .datasets import load_splits
from .review import check_run

MOST = 500  # texts of each part


def answered(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean cross-entropy and the share of wrong answers of one batch."""
    found: Any = model(**batch)
    wrong = found["logits"].detach().argmax(-1) != batch["labels"]
    return {"loss": found["loss"], "error": wrong.float().mean()}


def solutions(folder: Path, member: int) -> Solutions:
    """Return the adapters of a member as AdamW and as SWA left them, the first ones, and SWAG's Gaussian.

    Raises:
        ValueError: the folder holds no finished text study, or no such member.
    """
    study = check_run(folder)
    home = folder / "stages" / f"member-{member}"
    if not 0 <= member < len(study.training.seeds):
        raise ValueError(f"{folder} has no member {member}: it has {len(study.training.seeds)}, counted from 0")
    with quiet(), own_randomness():
        splits = load_splits(study.data)
        encoder, tokenizer, _ = load_encoder(study.model)
        length = int(study.model.max_length or read_json(folder / "metrics.json")["max_length"])
        parts = {"train": splits.train, "test": splits.test}
        tokens = {name: tokenise(tokenizer, part.texts[:MOST], length) for name, part in parts.items()}
        size = study.evaluation.batch_size
        classifier = adapt(encoder, study.model, study.lora, len(splits.names), list(tokens.values()), size)
    swag = load(folder / "posterior.safetensors").components[member]  # of the second phase that was chosen
    weights = {
        "base": load(home / f"epoch-{study.training.epochs}.safetensors"),
        "SWA": dict(swag.mean()),
        "start": load(home / "epoch-0.safetensors"),
    }
    sets = {name: _batches(tokens[name], part.labels, size) for name, part in parts.items()}
    about = {
        "data": ", ".join(f"{len(one)} {name}" for name, one in tokens.items()) + " texts",
        "model": f"{study.model.encoder} with adapters",
        "n": f"member {member}",
    }
    return Solutions(classifier.model, weights, sets, answered, [], about, {"SWAG": swag})


def _batches(tokens: Tokens, labels: Any, size: int) -> list[dict[str, Tensor]]:
    truth = torch.as_tensor(list(labels))
    return [{**batch, "labels": truth[rows]} for rows, batch in tokens.batches(size)]
