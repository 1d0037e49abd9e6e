"""Ways in which training code lays out a checkpoint, each with what an average must do with every tensor of it."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Write = Callable[[Path, int], None]


@dataclass(frozen=True)
class Layout:
    """A writer of `folder`, in which `path` is the checkpoint, and the account of an average of two of them.

    `averaged` and `carried` are names of tensors and entries, `left` beginnings of names; `refused` is what the error
    says instead.
    """

    name: str
    write: Write
    averaged: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    refused: str = ""
    path: str = ""
    options: tuple[tuple[str, Any], ...] = ()


def full(step: int, *shape: int) -> Tensor:
    return torch.full(shape or (4, 3), float(step))


def safe(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def dcp(folder: Path, content: Mapping[str, Any]) -> None:
    import torch.distributed.checkpoint as checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(dict(content), checkpoint_id=folder, no_dist=True)


def moments(step: int) -> dict[str, Any]:
    return {"state": {"w": {"exp_avg": full(step + 7), "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}


def _plain(f: Path, s: int) -> None:
    safe(f / "model.safetensors", {"w": full(s), "steps": torch.tensor([s])})


def _index(f: Path, s: int) -> None:
    safe(f / "model-00001-of-00002.safetensors", {"a": full(s)})
    safe(f / "model-00002-of-00002.safetensors", {"b": full(s)})
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    put(f / "model.safetensors.index.json", {"metadata": {}, "weight_map": names})


def _trainer(f: Path, s: int) -> None:
    _plain(f, s)
    torch.save(moments(s), f / "optimizer.pt")
    torch.save({"cpu": torch.get_rng_state()}, f / "rng_state.pth")


def _accelerate(f: Path, s: int) -> None:
    safe(f / "model.safetensors", {"generator.w": full(s)})
    safe(f / "model_1.safetensors", {"critic.w": full(s)})
    torch.save(moments(s), f / "optimizer.bin")


def _sentence(f: Path, s: int) -> None:
    safe(f / "model.safetensors", {"w": full(s)})
    safe(f / "2_Dense" / "model.safetensors", {"linear.weight": full(s)})
    put(f / "modules.json", [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}])
    put(f / "1_Pooling" / "config.json", {})


def _pipeline(f: Path, s: int) -> None:
    safe(f / "unet" / "diffusion_pytorch_model.safetensors", {"w": full(s)})
    safe(f / "vae" / "diffusion_pytorch_model.safetensors", {"w": full(s)})
    put(f / "scheduler" / "scheduler_config.json", {"steps": 1000})
    put(f / "model_index.json", {"_class_name": "P", **{n: ["d", "C"] for n in ("unet", "vae", "scheduler")}})
    safe(f / "unet_ema" / "diffusion_pytorch_model.safetensors", {"w": full(s)})


def _second_file(f: Path, s: int) -> None:
    _plain(f, s)
    safe(f / "value_head.safetensors", {"v": full(s)})
    safe(f / "other" / "model.safetensors", {"v": full(s)})


def _nested(f: Path, s: int) -> None:
    content = {"model": {"w": full(s)}, "optimizer": moments(s), "epoch": s, "lr_scheduler": {"last": s}}
    torch.save(content, f / "last.pt")


def _lightning(f: Path, s: int) -> None:
    content = {
        **{"state_dict": {"net.w": full(s)}, "hyper_parameters": {"width": 1}, "pytorch-lightning_version": "2.6"},
        **{"optimizer_states": [moments(s)], "loops": {"fit": {}}, "callbacks": {}, "lr_schedulers": []},
    }
    torch.save(content, f / "epoch.ckpt")


def _with_ema(f: Path, s: int) -> None:
    torch.save({"state_dict": {"w": full(s)}, "state_dict_ema": {"w": full(s + 10)}}, f / "m.pth.tar")


def _extra(f: Path, s: int) -> None:
    torch.save({"w": full(s), "layer._extra_state": {"steps": s}}, f / "m.pt")


def _namespace(f: Path, s: int) -> None:
    torch.save({"model": {"w": full(s)}, "args": argparse.Namespace(lr=0.1)}, f / "m.pt")


def _params(f: Path, s: int) -> None:
    torch.save({"params": {"net": {"w": full(s)}}, "optim_g": moments(s), "iter": s}, f / "m.pt")


def _gan(f: Path, s: int) -> None:
    torch.save({"generator": {"w": full(s)}, "discriminator": {"w": full(s)}}, f / "m.pt")


def _tied(f: Path, s: int) -> None:
    w = full(s)
    torch.save({"embed": w, "head": w}, f / "m.pt")


def _tied_in_one(f: Path, s: int) -> None:
    w = torch.arange(12.0).view(4, 3) + s
    safe(f / "model.safetensors", {"embed.weight": w, **({"lm_head.weight": w.clone()} if s else {})})


def _wrapped_in_one(f: Path, s: int) -> None:
    torch.save({("module._orig_mod." * s) + name: full(s) for name in ("a.w", "b.w")}, f / "m.pt")


def _mixed_types(f: Path, s: int) -> None:
    safe(f / "model.safetensors", {"w": full(s).bfloat16() if s else full(s)})


def _dcp_model(f: Path, s: int) -> None:
    dcp(f, {"model": {"w": full(s)}, "optim": moments(s), "epoch": s})


def _dcp_app(f: Path, s: int) -> None:
    dcp(f, {"app": {"model": {"w": full(s)}, "optim": moments(s)}})


def _dcp_flat(f: Path, s: int) -> None:
    content: dict[str, Any] = {"tok_embeddings.weight": full(s), "layers.0.w": full(s)}
    dcp(f, {**content, "optimizer": moments(s), "lr_scheduler": {"last": torch.ones(1)}, "train_state": full(s)})


def _dcp_megatron(f: Path, s: int) -> None:
    content: dict[str, Any] = {"decoder.layers.w": full(s), "embedding.w": full(s)}
    content |= {f"optimizer.state.{kind}.decoder.layers.w": full(s) for kind in ("exp_avg", "exp_avg_sq", "fp32_param")}
    dcp(f, {**content, "rng_state": full(s)})
    torch.save({"args": argparse.Namespace(), "iteration": s, "checkpoint_version": 3.0}, f / "common.pt")


def _dcp_two(f: Path, s: int) -> None:
    dcp(f, {"one": {"model": {"w": full(s)}}, "two": {"model": {"w": full(s)}}})


def adapter(f: Path, s: int, config: Mapping[str, Any] | None = None, file: str = "adapter_model.safetensors") -> None:
    prefix = "base_model.model.q.lora_"
    safe(f / file, {f"{prefix}A.weight": full(s, 2, 4), f"{prefix}B.weight": full(s, 4, 2)})
    put(f / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **(config or {})})


def _adapter_two(f: Path, s: int) -> None:
    adapter(f, s)
    adapter(f / "other", s)
    adapter(f / "averaged", s)


def _adapter_bin(f: Path, s: int) -> None:
    f.mkdir(parents=True, exist_ok=True)
    torch.save({"q.lora_A.weight": full(s)}, f / "adapter_model.bin")
    put(f / "adapter_config.json", {"peft_type": "LORA", "r": 2})


def scaled(**config: tuple[Any, Any]) -> Write:
    return lambda f, s: adapter(f, s, {key: values[s] for key, values in config.items()})


def _int8(f: Path, s: int) -> None:
    codes = torch.arange(32).view(4, 8).to(torch.int8) + s
    safe(f / "model.safetensors", {"fc.weight": codes, "fc.SCB": full(s, 4)})


def _gptq(f: Path, s: int) -> None:
    codes = {"fc.qweight": torch.full((4, 8), s, dtype=torch.int32), "fc.scales": full(s).half()}
    safe(f / "model.safetensors", {**codes, "fc.qzeros": torch.full((4, 8), s, dtype=torch.int32)})


def _float8(f: Path, s: int) -> None:
    safe(f / "model.safetensors", {"fc.weight": full(s).to(torch.float8_e4m3fn), "fc.weight_scale": full(s, 1)})


def _codes_alone(f: Path, s: int) -> None:
    safe(f / "model.safetensors", {"fc.packed_data": torch.arange(40, dtype=torch.uint8) + s, "w": full(s)})


def _counters(f: Path, s: int) -> None:
    table = {"attn.relative_position_index": torch.arange(49), "attn.logit_scale": full(s, 2)}
    safe(f / "model.safetensors", {**table, "bn.num_batches_tracked": torch.tensor(s), "mask": torch.ones(40) > s})


def _saved(build: Callable[[], nn.Module]) -> Write:
    def write(f: Path, s: int) -> None:
        torch.manual_seed(s)
        torch.save(build().state_dict(), f / "m.pt")

    return write


def _weight_norm() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))


def _spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))


def _orthogonal() -> nn.Module:
    return nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))


def _pruned(f: Path, s: int) -> None:
    torch.save({"weight_orig": full(s), "weight_mask": (torch.arange(12).view(4, 3) % 2 == s).float()}, f / "m.pt")


def _lowland(f: Path, s: int) -> None:
    import lowland

    f.mkdir(parents=True, exist_ok=True)
    swag = lowland.SWAG(rank=2)
    for place in (-1.0, 0.0, 1.0):
        swag.update({"w": full(s) + place})
    lowland.save(swag, f / "state.safetensors")


P = "parametrizations.weight."
LAYOUTS = [
    Layout("safetensors", _plain, ("w",), ("steps",)),
    Layout("shards", _index, ("a", "b")),
    Layout("trainer", _trainer, ("w",), ("steps",), ("optimizer.pt", "rng_state.pth")),
    Layout("two models", _accelerate, ("generator.w", "model_1/critic.w"), (), ("optimizer.bin",)),
    Layout("sub-folders", _sentence, ("w", "2_Dense/linear.weight")),
    Layout("pipeline", _pipeline, ("unet/w", "vae/w"), (), ("unet_ema",)),
    Layout("a second file", _second_file, ("w",), ("steps",), ("value_head.safetensors", "other")),
    Layout("torch", _nested, ("w",), ("epoch",), ("optimizer", "lr_scheduler"), path="last.pt"),
    Layout(
        *("lightning", _lightning, ("net.w",), ("hyper_parameters", "pytorch-lightning_version")),
        left=("optimizer_states", "loops"),
        path="epoch.ckpt",
    ),
    Layout("raw beside EMA", _with_ema, ("w",), (), ("state_dict_ema",), path="m.pth.tar"),
    Layout(
        *("EMA by key", _with_ema, ("w",), (), ("state_dict",)),
        path="m.pth.tar",
        options=(("key", "state_dict_ema"),),
    ),
    Layout("extra state", _extra, ("w",), ("layer._extra_state",), path="m.pt"),
    Layout("namespace", _namespace, ("w",), (), ("args",), path="m.pt"),
    Layout("a key of its own", _params, ("w",), ("iter",), ("optim_g",), path="m.pt"),
    Layout("two networks", _gan, refused="name one of its mappings: --key generator", path="m.pt"),
    Layout("one of two networks", _gan, ("w",), (), ("generator",), path="m.pt", options=(("key", "discriminator"),)),
    Layout("tied", _tied, ("embed", "head"), path="m.pt"),
    Layout("tied in one", _tied_in_one, ("embed.weight",), (), ("lm_head.weight",)),
    Layout("wrapped in one", _wrapped_in_one, ("a.w", "b.w"), path="m.pt"),
    Layout("mixed types", _mixed_types, ("w",)),
    Layout("dcp", _dcp_model, ("w",), (), ("optim",)),
    Layout("dcp, two levels", _dcp_app, ("w",), (), ("app.optim",)),
    Layout("dcp, flat", _dcp_flat, ("tok_embeddings.weight", "layers.0.w"), (), ("optimizer", "lr_sch", "train_state")),
    Layout(
        "dcp, megatron", _dcp_megatron, ("decoder.layers.w", "embedding.w"), (), ("optimizer", "rng_state", "common")
    ),
    Layout("dcp, two models", _dcp_two, refused="several models.*--key one.model"),
    Layout("dcp, one of two", _dcp_two, ("w",), (), ("one",), options=(("key", "two.model"),)),
    Layout("pattern", _index, ("a",), (), ("b",), options=(("drop", ("b*",)),)),
    Layout("adapter", adapter, tuple(f"base_model.model.q.lora_{x}.weight" for x in "AB")),
    Layout("adapter, torch", _adapter_bin, ("q.lora_A.weight",)),
    Layout(
        *("two adapters", _adapter_two),
        tuple(f"{home}base_model.model.q.lora_{x}.weight" for home in ("", "other/") for x in "AB"),
        left=("averaged",),
    ),
    Layout("alpha", scaled(lora_alpha=(4, 8)), refused="lora_alpha 8 instead of 4"),
    Layout("rank-stabilised", scaled(use_rslora=(False, True)), refused="use_rslora True instead of False"),
    Layout("rank patterns", scaled(rank_pattern=({}, {"q": 2})), refused="rank_pattern"),
    Layout("projection", scaled(projection_prng_key=(0, 1)), refused="projection_prng_key 1 instead of 0"),
    Layout("block sizes", scaled(decompose_factor=(-1, 8)), refused="decompose_factor"),
    Layout(
        "another base", scaled(base_model_name_or_path=("a/one", "a/two")), refused="base model 'two' instead of 'one'"
    ),
    Layout("changed base", scaled(init_lora_weights=(True, "pissa")), refused="init_lora_weights"),
    Layout("dropout", scaled(lora_dropout=(0, 0.5)), tuple(f"base_model.model.q.lora_{x}.weight" for x in "AB")),
    Layout("int8", _int8, refused="quantised weights: fc.weight"),
    Layout("GPTQ", _gptq, refused="quantised weights: fc.qweight"),
    Layout("float8", _float8, refused="types that cannot be averaged.*fc.weight"),
    Layout("codes alone", _codes_alone, refused="integers that differ.*fc.packed_data"),
    Layout("counters", _counters, ("attn.logit_scale",), ("attn.relative_position_index", "bn.num", "mask")),
    Layout("weight norm", _saved(_weight_norm), (f"{P}original0", f"{P}original1", "bias"), path="m.pt"),
    Layout("spectral norm", _saved(_spectral), (f"{P}original", f"{P}0._u", f"{P}0._v", "bias"), path="m.pt"),
    Layout("orthogonal", _saved(_orthogonal), refused="a function of others", path="m.pt"),
    Layout("pruned", _pruned, refused="masks differ", path="m.pt"),
    Layout("state of lowland", _lowland, ("w",), (), ("deviations", "evicted"), path="state.safetensors"),
]
