"""Settings of an adapter's configuration that scale or shape what its tensors mean.

LoRA's tensors mean `alpha / r` times their product, VeRA's vectors are coordinates in a random basis drawn from a key:
tensors of two configurations with the same names and shapes can mean different things. Everything in a configuration
counts, but for what is known to matter in training only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Of training, of bookkeeping, or seen in the names of the tensors.
_IGNORED = frozenset(
    "inference_mode peft_version auto_mapping task_type runtime_config loftq_config eva_config corda_config "
    "lora_ga_config megatron_config megatron_core target_modules exclude_modules layers_to_transform layers_pattern "
    "modules_to_save feedforward_modules fan_in_fan_out total_step tinit tfinal deltaT beta1 beta2 orth_reg_weight "
    "target_r prompt_tuning_init prompt_tuning_init_text prompt_tuning_init_state_dict_path tokenizer_name_or_path "
    "tokenizer_kwargs ensure_weight_tying save_projection init_weights d_initial revision base_model_name_or_path "
    "base_model_class parent_library low_cpu_mem_usage ephemeral_gpu_offload save_only_topk_weights".split()
)
_TRAINING = re.compile(r".*dropout.*|.*_dropout_prob|.*regularization.*|init_std|sparsity_seed")
# Ways to begin that change the base weights, so that the adapter fits no other base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "eva", "miss", "bat")
# Numbers that count only together with a switch.
_SWITCHED = {"qalora_group_size": "use_qalora"}


def differences(first: Path, other: Path, folders: Sequence[str] = ()) -> list[str]:
    """Return in words what two adapter folders' configurations say that changes what equal tensors mean.

    Raises:
        ValueError: a configuration cannot be read.
    """
    found = compared(read_config(first), read_config(other))
    for name in folders:
        own = compared(read_config(first / name), read_config(other / name))
        found += [f"in {name}: {difference}" for difference in own]
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration, or an empty one for what is no adapter folder.

    Raises:
        ValueError: the file is no JSON object.
    """
    file = folder / "adapter_config.json"
    if not folder.is_dir() or not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no adapter configuration ({error}): save the adapter anew") from None
    return content


def compared(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Return in words the settings of two configurations that change what equal tensors mean.

    >>> compared({"r": 2, "lora_alpha": 4, "lora_dropout": 0.1}, {"r": 2, "lora_alpha": 8, "use_dora": False})
    ['lora_alpha 8 instead of 4']
    """
    if not one or not two:
        return []
    found = []
    for key in dict.fromkeys((*one, *two)):
        if key in _IGNORED or _TRAINING.fullmatch(key):
            continue
        if key in _SWITCHED and not (one.get(_SWITCHED[key]) or two.get(_SWITCHED[key])):
            continue
        a, b = (_plain(key, config.get(key)) for config in (one, two))
        if a != b:
            found.append(f"{_short(key)} {_shown(two.get(key))} instead of {_shown(one.get(key))}")
    bases = [_base(config) for config in (one, two)]
    if all(bases) and bases[0] != bases[1]:
        found.append(f"base model {_shown(bases[1])} instead of {_shown(bases[0])}")
    return found


def _base(config: Mapping[str, Any]) -> str | None:
    """The last part of the base model's path, with its revision; where it lies says nothing."""
    name = str(config.get("base_model_name_or_path") or "").rstrip("/")
    revision = config.get("revision") or "main"
    last = re.split(r"[/\\]", name)[-1]
    return f"{last}@{revision}" if last and revision != "main" else last or None


def _plain(key: str, value: Any) -> Any:
    if key == "init_lora_weights":
        text = str(value).lower()
        return text if text.startswith(_CHANGES_BASE) else None
    if value in (None, False, "none", "None") or (isinstance(value, list | dict | str) and not value):
        return None
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return sorted(value)
    return value


def _shown(value: Any) -> str:
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def lora_scale(config: Mapping[str, Any]) -> float | None:
    """Return what multiplies a LoRA product under a configuration, or None where it differs from layer to layer.

    >>> lora_scale({"lora_alpha": 16, "r": 4}), lora_scale({"lora_alpha": 16, "r": 4, "use_rslora": True})
    (4.0, 8.0)
    """
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("rank_pattern") or config.get("alpha_pattern") or not rank or alpha is None:
        return None
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else float(rank))
