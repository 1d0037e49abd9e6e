"""Accumulation curves against predictions of every prefix and suffix of the members."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from lowland import SWAG, Mixture, Snapshots
from lowland.files import SnapshotFiles
from lowland.predict import METRICS, accumulate, predict


def test_curves_equal_the_predictions_of_every_part(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    model, ensemble, ring = nn.Linear(3, 4), SnapshotFiles(tmp_path), Snapshots(4)
    x, y = torch.randn(40, 3, generator=generator), torch.randint(4, (40,), generator=generator)
    for _ in range(4):
        for tensor in model.parameters():
            nn.init.normal_(tensor, generator=generator)
        ensemble.update(model)
        ring.update(model)
    members = list(ensemble.members())
    batches = [x[:25], x[25:]]
    curves = accumulate(model, ensemble, batches, y)
    assert curves == accumulate(model, ring, batches, y)
    assert curves.size == 4
    for m in range(1, 5):
        for order, part in (("alone", members[m - 1 : m]), ("forward", members[:m]), ("backward", members[-m:])):
            probs = predict(model, Mixture(part), batches).probs
            for name, metric in METRICS.items():
                assert curves.curve(order, name)[m - 1] == pytest.approx(metric(probs, y), abs=1e-5)
    assert curves.forward[-1] == pytest.approx(curves.backward[-1], abs=1e-12)


def test_every_member_predicts_once() -> None:
    model, ring, calls = nn.Linear(1, 2), Snapshots(3), Counter[float]()
    for value in (1.0, 2.0, 3.0):
        ring.update({"weight": torch.full((2, 1), value), "bias": torch.zeros(2)})

    def forward(model: nn.Module, batch: torch.Tensor) -> object:
        calls[model.get_parameter("weight")[0, 0].item()] += 1
        return model(batch)

    curves = accumulate(model, ring, [torch.ones(2, 1)], [0, 1], forward=forward, metrics={"first": lambda p, y: 0.5})
    assert calls == {1.0: 1, 2.0: 1, 3.0: 1}
    assert curves.forward == curves.backward == [{"first": 0.5}] * 3


def test_errors(tmp_path: Path) -> None:
    model, swag = nn.Linear(1, 2), SWAG(rank=2)
    for _ in range(3):
        swag.update(model)
    with pytest.raises(ValueError, match="wants a posterior with members"):
        accumulate(model, swag, [torch.ones(1, 1)], [0])
    with pytest.raises(RuntimeError, match="has no members yet"):
        accumulate(model, SnapshotFiles(tmp_path), [torch.ones(1, 1)], [0])
