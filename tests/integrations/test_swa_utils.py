"""torch.optim.swa_utils: both directions, the averaging functions, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)

from lowland import EMA, SWA, SWAG, load, save
from lowland.averager import Averager
from lowland.integrations.swa_utils import Function, from_averaged_model, to_averaged_model
from lowland.weights.named import matching


def walk(model: nn.Module, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * steps)


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    walk(model, 1, 0)
    return model


KINDS = [
    pytest.param(SWA, {}, id="swa"),
    pytest.param(lambda: EMA(0.9), {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, id="ema"),
    pytest.param(lambda: Function(avg_fn=get_ema_avg_fn(0.7)), {"avg_fn": get_ema_avg_fn(0.7)}, id="function"),
]


@pytest.mark.parametrize(("make", "theirs"), KINDS)
def test_there_and_back_goes_on_as_one(make: Callable[[], Averager], theirs: dict) -> None:
    """Three updates by torch, three by lowland, three by torch: as nine by torch."""
    model = network()
    whole, parts = AveragedModel(model, **theirs), AveragedModel(model, **theirs)
    for step in range(9):
        walk(model, 1, step)
        whole.update_parameters(model)
        if step < 3:
            parts.update_parameters(model)
        if step == 2:
            average = from_averaged_model(parts, make())
        if 3 <= step < 6:
            average.update(model)
        if step == 5:
            assert average.count == 6
            parts = to_averaged_model(average, model)
        if step > 5:
            parts.update_parameters(model)
    assert int(parts.n_averaged) == 9
    for p, q in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_a_state_dict_alone_is_enough(tmp_path: Path) -> None:
    model = network()
    theirs = AveragedModel(model)
    for step in range(4):
        walk(model, 1, step)
        theirs.update_parameters(model)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    state = torch.load(tmp_path / "theirs.pt", weights_only=True)
    average = from_averaged_model(state, SWA(select=matching("weight|bias")))
    assert average.count == 4
    expected = dict(theirs.module.named_parameters())
    assert average.mean().keys() == expected.keys()
    for name, tensor in average.mean().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("given", "twin"),
    [
        ({"avg_fn": get_swa_avg_fn()}, SWA()),
        ({"multi_avg_fn": get_swa_multi_avg_fn()}, SWA()),
        ({"avg_fn": get_ema_avg_fn(0.9)}, EMA(0.9)),
        ({"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, EMA(0.9)),
    ],
    ids=["swa", "swa, all at once", "ema", "ema, all at once"],
)
def test_their_functions_make_the_same_average(given: dict, twin: Averager) -> None:
    model, average = network().to(torch.bfloat16), Function(**given)
    for step in range(6):
        walk(model, 1, step)
        average.update(model)
        twin.update(model)
    for name, tensor in average.mean().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, twin.mean()[name], rtol=1e-6, atol=1e-6)


def test_a_function_of_ones_own_is_honoured() -> None:
    """Lightning-AI/pytorch-lightning#10872: a custom avg_fn was ignored."""
    average = Function(avg_fn=lambda mean, new, count: torch.maximum(mean, new))
    for value in (1.0, 5.0, 3.0):
        average.update({"w": torch.tensor([value])})
    assert average.mean()["w"].item() == 5.0


def test_a_function_that_fails_leaves_the_average() -> None:
    def fails(means: object, new: object, count: object) -> None:
        means[0].fill_(99.0)
        raise RuntimeError("no")

    average = Function(multi_avg_fn=fails)
    average.update({"w": torch.ones(1)})
    with pytest.raises(RuntimeError, match="no"):
        average.update({"w": torch.zeros(1)})
    assert average.count == 1
    assert average.mean()["w"].item() == 1.0


def test_a_file_names_the_function_and_wants_it_again(tmp_path: Path) -> None:
    average = Function(avg_fn=get_ema_avg_fn(0.9))
    average.update(network())
    save(average, tmp_path / "average.safetensors")
    with pytest.raises(ValueError, match="pass it again"):
        load(tmp_path / "average.safetensors")
    assert load(tmp_path / "average.safetensors", avg_fn=get_ema_avg_fn(0.9)).count == 1
    with pytest.raises(ValueError, match="other hyper-parameters"):
        load(tmp_path / "average.safetensors", avg_fn=get_swa_avg_fn())


def test_what_does_not_fit_is_refused() -> None:
    model = network()
    theirs = AveragedModel(model)
    with pytest.raises(ValueError, match="averaged nothing"):
        from_averaged_model(theirs, SWA())
    theirs.update_parameters(model)
    with pytest.raises(ValueError, match="a mean only"):
        from_averaged_model(theirs, SWAG(rank=2))
    with pytest.raises(ValueError, match="n_averaged"):
        from_averaged_model(dict(model.state_dict()), SWA())
    busy = SWA()
    busy.update(model)
    with pytest.raises(ValueError, match="already holds"):
        from_averaged_model(theirs, busy)
    with pytest.raises(ValueError, match="avg_fn"):
        posterior = SWAG(rank=2)
        posterior.update(model)
        to_averaged_model(posterior, model)
    with pytest.raises(ValueError, match="one function"):
        Function()
    with pytest.raises(RuntimeError, match="no weights yet"):
        to_averaged_model(SWA(), model)


def test_a_parameter_added_later_is_refused_by_name() -> None:
    """swa_utils pairs by position, so a module put in front shifts every average silently."""
    model, average = network(), Function(avg_fn=get_swa_avg_fn())
    average.update(model)
    with pytest.raises(ValueError, match="named differently"):
        average.update(nn.Sequential(nn.Linear(3, 4), *network()))
