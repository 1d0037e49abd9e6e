"""Adapters of a PEFT model as folders: written from named weights, read back into named weights.

A folder holds `adapter_model.safetensors` and `adapter_config.json` under PEFT's own names, so whatever loads adapters
loads it: `PeftModel.from_pretrained`, `load_adapter` for batches with `adapter_names`, servers of many adapters.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...files.replacing import replacing_folder
from ...weights.named import Weights, applied, bare_name, check_same, weights_of
from .scales import rescaled

try:
    from peft import PeftConfig, PeftModel
    from peft.utils import get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights
    from safetensors.torch import save_file
except ImportError:
    raise ImportError("adapters need PEFT: pip install 'lowland[text]'") from None

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PROMPT, TOPK = "prompt_embeddings", "_topk_weights"  # in PEFT's keys: what it computes when it saves


def bare_peft(model: nn.Module) -> PeftModel:
    """Return the PEFT model inside DistributedDataParallel and torch.compile.

    Raises:
        ValueError: there is none.
    """
    inner = model
    while not isinstance(inner, PeftModel):
        wrapped = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else None
        wrapped = getattr(inner, "_orig_mod", None) if wrapped is None else wrapped
        if not isinstance(wrapped, nn.Module):
            raise ValueError(f"a PEFT model is wanted, got a {type(model).__name__}: wrap it with peft.get_peft_model")
        inner = wrapped
    return inner


def active_adapter(model: nn.Module) -> str:
    """Return the name of the one active adapter.

    Raises:
        ValueError: several adapters are active at once, or the model is no PEFT model.
    """
    names = list(bare_peft(model).active_adapters)
    if len(names) != 1:
        raise ValueError(f"one adapter must be active, got {names}: choose with model.set_adapter(name)")
    return str(names[0])


def saved_keys(model: nn.Module, adapter: str | None = None) -> dict[str, str]:
    """Return what a file of the adapter holds: the names of the model's own tensors by PEFT's keys.

    Args:
        adapter: the adapter's name; by default the active one.
    """
    inner = bare_peft(model)
    state = _state(inner, adapter or active_adapter(inner))
    named = (*inner.named_parameters(), *inner.named_buffers())
    names = {tensor.data_ptr(): bare_name(name) for name, tensor in named}
    # A tensor may stand under two keys: a bias of a layer in modules_to_save does with bias="all".
    return {key: names[tensor.data_ptr()] for key, tensor in state.items() if tensor.data_ptr() in names}


def held_names(model: nn.Module, adapter: str | None = None) -> set[str]:
    """Return the names of the model's tensors that a folder of the adapter stands for.

    Most it holds as they are. Of prompt tuning, p-tuning and prefix tuning it holds the prompt that a small encoder
    computes, of VB-LoRA with `save_only_topk_weights` the largest of the logits: all that the model needs of them.
    """
    inner = bare_peft(model)
    adapter = adapter or active_adapter(inner)
    state, names = _state(inner, adapter), set(saved_keys(inner, adapter).values())
    names |= {f"{key.removesuffix(TOPK)}.{adapter}" for key in state if key.endswith(TOPK)}
    if PROMPT in state:
        prefix = f"prompt_encoder.{adapter}."
        names |= {bare_name(name) for name, _ in inner.named_parameters() if bare_name(name).startswith(prefix)}
    return names


def check_saved(model: nn.Module, weights: Weights) -> None:
    """Refuse weights that no adapter folder could hold.

    Raises:
        ValueError: a tensor is no part of the active adapter, by its name; or its method's folder cannot hold averages.
    """
    inner = bare_peft(model)
    saved = held_names(inner)
    lost = [name for name in weights if name not in saved]
    if weights:
        check_method(inner, pruned=bool(lost))
    if lost:
        raise ValueError(
            f"{lost[:5]} ({len(lost)} in all) are no part of the adapter {active_adapter(model)!r}, so its folder "
            "would not hold them: collect with select=lowland.weights.trainable, and name trained layers in "
            "modules_to_save"
        )


def check_method(model: nn.Module, *, pruned: bool = True) -> None:
    """Refuse, by their names, methods whose folder cannot hold an average of their parameters.

    Args:
        pruned: whether ranks of AdaLoRA are pruned, or will be.

    Raises:
        ValueError: the active adapter is of such a method.
    """
    inner = bare_peft(model)
    config = inner.peft_config[active_adapter(inner)]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind == "ADALORA" and (pruned or getattr(config, "rank_pattern", None)):
        raise ValueError(
            "AdaLoRA prunes ranks while it trains: an average over that has ranks which its folder leaves out, so what "
            "is loaded is not what was measured; average LoRA of a fixed rank"
        )


def write_adapter(model: nn.Module, folder: str | os.PathLike[str], weights: Weights | None = None) -> Path:
    """Write the active adapter as a folder, with `weights` in it; the model is left as it was.

    The folder appears whole or not at all. What `weights` does not name is written as it is in the model. Numbers are
    rounded to the model's dtype, so the file holds what the model would compute with.

    Raises:
        ValueError: `weights` names a tensor that the adapter's file does not hold, or the model is no PEFT model.
        OSError: the folder exists and is no adapter folder.
    """
    inner = bare_peft(model)
    adapter = active_adapter(inner)
    given = {} if weights is None else dict(weights)
    check_saved(inner, given)
    with torch.no_grad(), applied(inner, given):
        state = {key: t.detach().cpu().clone().contiguous() for key, t in _state(inner, adapter).items()}
    return write_folder(state, saved_config(inner), folder)


def saved_config(model: nn.Module) -> PeftConfig:
    """Return the active adapter's configuration as its folder holds it."""
    inner = bare_peft(model)
    config = copy.deepcopy(inner.peft_config[active_adapter(inner)])
    config.inference_mode = True
    if config.base_model_name_or_path is None:
        base = inner.get_base_model()
        config.base_model_name_or_path = getattr(base, "name_or_path", None) or None
    return config


def write_folder(state: Mapping[str, Tensor], config: PeftConfig, folder: str | os.PathLike[str]) -> Path:
    """Write an adapter's tensors, under PEFT's keys, and its configuration; the folder appears whole or not at all."""
    target = Path(folder)
    if target.exists() and not (target / CONFIG_FILE).exists():
        raise OSError(f"{target} exists and is no adapter folder: name another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(target) as part:
        save_file(dict(state), part / WEIGHTS_FILE, metadata={"format": "pt"})
        config.save_pretrained(str(part))
    return target


def read_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return an adapter folder's weights by the names that `model` gives its active adapter: copies, on the CPU.

    They go into `predict`, `Mixture`, `copy_to` and `average_adapters`. A LoRA that was trained under another
    `lora_alpha` or `use_rslora` comes with its B scaled, so that in the model it is the function that it was.

    Raises:
        ValueError: the folder's adapter is of another kind or another shape than the model's, its configuration makes
            its tensors mean something else, or it holds what PEFT has computed, such as the prompt of p-tuning, from
            which the parameters cannot be had.
    """
    keys = saved_keys(model) | _computed_keys(bare_peft(model))
    state, own = load_peft_weights(str(folder), device="cpu"), _state(bare_peft(model), active_adapter(model))
    missing = [key for key in keys if key not in state]
    # What PEFT computes when it saves, such as the positions that SHiRA has chosen, must be the model's own.
    computed = {key: tensor.cpu() for key, tensor in own.items() if key not in keys}
    unexpected = [
        key
        for key in state
        if key not in keys and not (key in computed and torch.equal(state[key].to(computed[key].dtype), computed[key]))
    ]
    if missing or unexpected:
        raise ValueError(
            f"{folder} is an adapter of another kind than the model's {active_adapter(model)!r}: "
            f"missing {missing[:5]}, unexpected {unexpected[:5]}"
        )
    weights = {name: state[key] for key, name in keys.items()}
    like = weights_of(bare_peft(model), lambda name, tensor: bare_name(name) in weights)
    check_same(like, weights, what=f"reading {folder}")
    return rescaled(bare_peft(model), active_adapter(model), folder, weights)


def _computed_keys(model: PeftModel) -> dict[str, str]:
    """Further keys whose tensors are parameters, though PEFT computes them: a prompt that is an embedding as it is.

    Raises:
        ValueError: a key holds what parameters cannot be had from.
    """
    adapter = active_adapter(model)
    state, prefix = _state(model, adapter), f"prompt_encoder.{adapter}."
    prompt = state.get(PROMPT)
    if prompt is not None:
        own = {bare_name(n): p for n, p in model.named_parameters() if bare_name(n).startswith(prefix)}
        if list(own) == [f"{prefix}embedding.weight"] and own[f"{prefix}embedding.weight"].shape == prompt.shape:
            return {PROMPT: f"{prefix}embedding.weight"}
    if prompt is not None or any(key.endswith(TOPK) for key in state):
        raise ValueError(
            f"the folder of a {type(model.peft_config[adapter]).__name__} holds what PEFT computes of the parameters "
            "when it saves, not the parameters: load it with PeftModel.from_pretrained, and keep averages with "
            "lowland.save"
        )
    return {}


def _state(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    # Without a state given, PEFT warns of biases in LoRA's own layers, which it takes for factors.
    state: dict[str, Tensor] = get_peft_model_state_dict(model, state_dict=model.state_dict(), adapter_name=adapter)
    return state
