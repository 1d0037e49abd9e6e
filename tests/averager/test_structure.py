"""What an averager keeps of a model between updates: every change is seen, and the model is not kept alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lowland import EMA, SWA
from lowland.averager.reader import Reader
from lowland.averager.structure import Structure
from lowland.weights import parameters, trainable


def made() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2, bias=False)), nn.BatchNorm1d(2))


def replaced(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def rebound(model: nn.Sequential) -> None:
    before = model[0]._parameters
    model[0]._parameters = {key: nn.Parameter(tensor.detach().clone()) for key, tensor in before.items()}
    model.kept = before  # so that the old dictionary lives on


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "a parameter replaced by an equal one": replaced,
    "a parameter replaced behind the module's back": lambda m: m[0]._parameters.update(
        bias=nn.Parameter(torch.ones(2))
    ),
    "a parameter of one element, equal in value": lambda m: (
        setattr(m[2], "bias", nn.Parameter(torch.zeros(1))) or setattr(m[2], "bias", nn.Parameter(torch.zeros(1)))
    ),
    "another dictionary of parameters": rebound,
    "a parameter added": lambda m: m[1][0].register_parameter("slope", nn.Parameter(torch.ones(1))),
    "a parameter set to None": lambda m: setattr(m[0], "bias", None),
    "a parameter deleted": lambda m: delattr(m[0], "bias"),
    "two parameters exchanged": lambda m: m[0]._parameters.update(weight=m[1][1].weight),
    "a module replaced": lambda m: m[1].__setitem__(1, nn.Linear(2, 2, bias=False)),
    "a module added to a leaf": lambda m: m[1][0].add_module("more", nn.Linear(1, 1)),
    "a module deleted": lambda m: m[1].__delitem__(1),
    "a module under another name": lambda m: m._modules.update(last=m._modules.pop("2")),
    "another dictionary of modules": lambda m: setattr(m, "_modules", dict(reversed(m._modules.items()))),
    "another class": lambda m: setattr(m[0], "__class__", type("Other", (nn.Linear,), {})),
    "a parameter that moved to a neighbour": lambda m: m[1][0].register_parameter("bias", m[0]._parameters.pop("bias")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_a_model_is_seen(change: Callable[[nn.Sequential], object]) -> None:
    model = made()
    structure = Structure.of(model)
    assert structure is not None and structure.held(model) is not None
    assert structure.held(made()) is None
    change(model)
    assert structure.held(model) is None
    again = Structure.of(model)
    assert again is None or again.held(model) is not None


def test_gradients_turned_off_and_on_are_seen() -> None:
    model, reader = made(), Reader()
    for number in range(4):
        model[0].weight.requires_grad_(number % 2 == 0)
        assert ("0.weight" in reader.selected(model, trainable)) == (number % 2 == 0)
        assert "0.weight" in reader.selected(model, parameters)


@pytest.mark.parametrize(
    "move",
    [
        lambda tensor: tensor.data.t(),  # the same memory and shape in another order
        lambda tensor: tensor.data.view(2, 8),
        lambda tensor: tensor.data[:1],
        lambda tensor: tensor.data.clone(),
        lambda tensor: tensor.data.double(),
    ],
)
def test_a_parameter_that_lies_otherwise_is_not_as_last_time(move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model, reader = nn.Linear(4, 4, bias=False), Reader()
    for wanted in (False, True):
        assert reader.read(model)[1] is wanted
        reader.accept()
    model.weight.data = move(model.weight)
    assert not reader.read(model)[1]


def test_a_buffer_makes_a_wrapper_a_model_of_its_own() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 1)

    model, reader = Holder(), Reader()
    assert list(reader.selected(model)) == ["weight", "bias"]
    model.register_buffer("steps", torch.zeros(1))
    assert list(reader.selected(model)) == ["module.weight", "module.bias"]


def test_modules_that_say_they_are_equal_are_told_apart() -> None:
    class Alike(nn.Linear):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Alike)

        __hash__ = nn.Linear.__hash__

    model, average = nn.Sequential(Alike(1, 1, bias=False)), SWA()
    nn.init.zeros_(model[0].weight)
    for _ in range(2):
        average.update(model)
    model[0] = Alike(1, 1, bias=False)
    nn.init.constant_(model[0].weight, 3.0)
    average.update(model)
    assert average.mean()["0.weight"].item() == 1.0


def test_tied_parameters_are_followed_when_one_is_untied() -> None:
    model, average = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), EMA(0.5)
    model[1].weight = model[0].weight
    for _ in range(3):
        average.update(model)
    assert list(average.mean()) == ["0.weight"]
    model[1].weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"unexpected \['1.weight'\]"):
        average.update(model)
    model[1].weight = model[0].weight
    average.update(model)
    assert average.count == 4


def test_an_averager_does_not_keep_a_model_alive() -> None:
    gone, average = [], SWA()
    model = made()
    gone.append(weakref.ref(model[1][1].weight))
    average.update(model)
    average.update(model)
    del model
    assert gone[0]() is None  # at once, without a collection

    # A hook that refers to the whole model keeps it until the average is used.
    model = made()
    model[0].register_forward_hook(lambda *_, whole=model: None)
    gone.append(weakref.ref(model[1][1].weight))
    average.update(model)
    del model
    average.mean()
    gc.collect()
    assert gone[1]() is None


def test_an_averager_follows_one_model_after_another() -> None:
    average, models = SWA(), [made(), made(), made()]
    for model in models:
        average.update(model)
    wanted = torch.stack([model[0].weight.detach() for model in models]).mean(0)
    torch.testing.assert_close(average.mean()["0.weight"], wanted)
