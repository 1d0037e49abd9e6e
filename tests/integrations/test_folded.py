"""Adapters folded into their layers, against the model that runs them beside the layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland import SWA, SWAG, Mixture, Snapshots, applied, predict
from lowland.integrations.peft.folded import Folded, plain_name
from lowland.weights import weights_of

from ..predict.test_plans import Adapter, adapted, points, rows


def plain() -> nn.Sequential:
    """The model of `adapted` without its adapters."""
    model = adapted()
    for place in (2, 4):
        model[place] = model[place].base_layer
    return model


def collected(average: Any, model: nn.Module, only: str = "lora") -> Any:
    for point in points(model, 5, only=only):
        average.update(point)
    return average


@pytest.mark.parametrize("only", ["lora", "", "4.", "lora_B"])
def test_a_folded_draw_gives_what_the_adapters_give(only: str) -> None:
    model, twin = adapted(), plain()
    for draw in points(model, 3, only=only):  # each starts from W_0 again
        folded = Folded(model, draw)
        out = {name: tensor.clone() for name, tensor in weights_of(twin).items()}
        assert all(torch.equal(out[name], tensor) for name, tensor in folded.fold(draw, out=out).items())
        for weights in (folded.fold(draw), out):
            with applied(model, draw), applied(twin, weights), torch.no_grad():
                torch.testing.assert_close(twin(rows()[0]), model(rows()[0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: collected(SWAG(rank=2), model),
        lambda model: collected(SWAG(rank=2), model).tempered(0.5),
        lambda model: collected(Snapshots(3), model),
        lambda model: collected(SWA(), model),
        lambda model: Mixture([collected(SWAG(rank=2), model), collected(SWA(), model)]),
        lambda model: points(model, 1, only="lora")[0],
    ],
)
def test_a_posterior_over_adapters_is_one_over_the_plain_model(make: Callable[[nn.Module], Any]) -> None:
    model = adapted()
    posterior = make(model)
    wanted = predict(model, posterior, rows(), generator=torch.Generator().manual_seed(3))
    got = predict(plain(), Folded(model, posterior), rows(), generator=torch.Generator().manual_seed(3))
    assert got.samples == wanted.samples
    torch.testing.assert_close(got.probs, wanted.probs, rtol=1e-5, atol=1e-6)
    stacked = Folded(model, posterior).sample(2, generator=torch.Generator().manual_seed(1))
    assert stacked["2.weight"].shape == (2, 8, 8)


def changed(**values: object) -> nn.Sequential:
    model = adapted()
    for name, value in values.items():
        setattr(model[2], name, value)
    return model


@pytest.mark.parametrize(
    "values",
    [
        {"lora_variant": {"default": object()}},
        {"use_dora": {"default": True}},
        {"merged": True},
        {"disable_adapters": True},
        {"active_adapters": ["other"]},
        {"fan_in_fan_out": True},
        {"lora_B": nn.ModuleDict({"default": nn.Linear(2, 8)})},
        {"lora_A": nn.ModuleDict({"default": nn.Linear(8, 2, bias=False, dtype=torch.float64)})},
        {"base_layer": nn.Conv1d(8, 8, 1)},
    ],
    ids=str,
)
def test_adapters_of_other_kinds_are_not_folded(values: dict[str, object]) -> None:
    model = changed(**values)
    with pytest.raises(ValueError, match="of a kind that cannot be folded"):
        Folded(model, points(model, 1, only="lora")[0])


def test_what_is_no_adapter_or_has_a_second_use_is_refused() -> None:
    model = adapted()
    model[2].base_layer.weight = model[4].base_layer.weight
    with pytest.raises(ValueError, match="used by another layer too"):
        Folded(model, points(model, 1, only="lora")[0])
    with pytest.raises(ValueError, match="no sampled tensor belongs to a low-rank adapter"):
        Folded(adapted(), points(adapted(), 1, only="5.")[0])


def test_names_without_wrappers() -> None:
    assert plain_name("base_model.model.a.query.base_layer.weight") == "a.query.weight"
    assert plain_name("base_model.model.head.modules_to_save.default.bias") == "head.bias"
    assert plain_name("a.base_layer_norm.weight") == "a.base_layer_norm.weight"


@pytest.mark.slow
def test_peft_layers_are_known() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
    twin = copy.deepcopy(base)
    config = peft.LoraConfig(r=2, lora_alpha=7, target_modules=["0", "2"], init_lora_weights=False, use_rslora=True)
    model = peft.get_peft_model(base, config)
    draws = Mixture(points(model, only="lora"))
    got: Tensor = predict(twin, Folded(model, draws), rows()).probs
    torch.testing.assert_close(got, predict(model, draws, rows()).probs, rtol=1e-5, atol=1e-6)
    dora = peft.get_peft_model(copy.deepcopy(twin), peft.LoraConfig(r=2, target_modules=["0"], use_dora=True))
    with pytest.raises(ValueError, match="of a kind that cannot be folded"):
        Folded(dora, points(dora, 1, only="lora")[0])
    assert isinstance(adapted()[2], Adapter)
