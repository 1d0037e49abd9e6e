"""Adapters that were trained under another scale than the model's, made to mean in it what they meant."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checkpoints.adapters import compared, lora_scale, read_config

_SCALED = re.compile(r"\.lora_(embedding_)?B\.")
_SCALES = ("lora_alpha", "use_rslora")


def rescaled(
    model: Any, adapter: str, folder: str | os.PathLike[str], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a folder's weights with LoRA's second factors times the folder's scale over the model's.

    Raises:
        ValueError: the folder's configuration makes its tensors mean something else, and no formula says what.
    """
    own = json.loads(json.dumps(model.peft_config[adapter].to_dict(), default=_jsonable))
    theirs = read_config(Path(folder))
    told = compared(own, theirs)
    if not told:
        return dict(weights)
    unlike = compared(*({k: v for k, v in config.items() if k not in _SCALES} for config in (own, theirs)))
    wanted, given = lora_scale(own), lora_scale(theirs)
    if unlike or not wanted or given is None or theirs.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder} has another configuration than the model's adapter, under which its tensors mean something "
            f"else: {', '.join(unlike or told)}; read it into a model with its own configuration"
        )
    ratio = given / wanted
    return {name: tensor * ratio if _SCALED.search(name) else tensor for name, tensor in weights.items()}


def _jsonable(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
