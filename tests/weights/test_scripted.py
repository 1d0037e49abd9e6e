"""Scripted modules, whose tensors live in C++: read, written and averaged like others, and their norms named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowland import SWA, applied, copy_to, predict, refresh_bn, weights_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture
def model() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


def test_read_averaged_and_put_back(model: nn.Module) -> None:
    names = ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert sorted(weights_of(model)) == names
    average = SWA()
    for _ in range(3):
        average.update(model)
    assert sorted(average.mean()) == names
    copy_to(model, {"0.bias": torch.ones(3)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert before["0.bias"].tolist() == [1, 1, 1]
    with applied(model, {"0.bias": torch.zeros(3)}):
        model.train()(torch.randn(4, 2))
        assert not model.state_dict()["0.bias"].any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_its_norms_are_named(model: nn.Module) -> None:
    with pytest.warns(UserWarning, match=r"1 \(RecursiveScriptModule\) keep running statistics"):
        refresh_bn(model, [torch.randn(8, 2)])
    assert predict(model, weights_of(model), [torch.randn(8, 2)]).probs.shape == (8, 3)
