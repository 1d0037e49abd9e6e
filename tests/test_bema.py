"""BEMA: numbers by hand, the paper's limits, TRL's callback on the same iterates, and what TRL's cannot do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowland import BEMA, EMA, applied, load, save
from lowland.weights import trainable

from .problems import walk


def by_hand(path: list[float], kappa: float, eta: float, rho: float, gamma: float, least: float = 0.0) -> float:
    """Equation by equation, in float64."""
    ema = path[0]
    for t, w in enumerate(path[1:], start=1):
        beta = max((rho + gamma * t) ** -kappa, least)
        ema = (1 - beta) * ema + beta * w
    t = len(path) - 1
    return ema + (rho + gamma * t) ** -eta * (path[-1] - path[0])


@pytest.mark.parametrize(
    ("kappa", "eta", "rho", "gamma", "least"),
    [(0.5, 0.2, 10.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0, 0.0), (0.0, 0.3, 10.0, 2.0, 0.0), (0.9, 0.0, 3.0, 400.0, 0.05)],
)
def test_it_is_the_equation(kappa: float, eta: float, rho: float, gamma: float, least: float) -> None:
    path = torch.randn(40, generator=torch.Generator().manual_seed(0)).cumsum(0).tolist()
    average = BEMA(kappa, eta, lag=rho, multiplier=gamma, least=least)
    for w in path:
        average.update({"w": torch.tensor(w, dtype=torch.float64)})
    assert average.mean()["w"].item() == pytest.approx(by_hand(path, kappa, eta, rho, gamma, least), rel=1e-12)


def test_a_correction_that_has_faded_leaves_an_average_of_equal_shares() -> None:
    """With kappa = 1 and age t + 1 the average is the mean of all iterates."""
    average, path = BEMA(1.0, 50.0, lag=1.0), walk(7)
    for weights in path:
        average.update(weights)
    for name, tensor in average.mean().items():
        assert torch.allclose(tensor, torch.stack([weights[name] for weights in path]).mean(0), atol=1e-6)


def test_it_lags_less_than_the_plain_average_behind_a_drift() -> None:
    """Noiseless Ornstein-Uhlenbeck, the paper's model: theta_t = target (1 - exp(-t / 50))."""
    plain, corrected = EMA(0.98), BEMA(lag=10)
    for step in range(60):
        weights = {"w": 1 - torch.exp(torch.tensor(-step / 50.0))}
        plain.update(weights)
        corrected.update(weights)
    assert abs(1 - corrected.mean()["w"]) < abs(1 - plain.mean()["w"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lag": 0}, "lag must be positive"),
        ({"ema_power": -1}, "ema_power must be at least 0"),
        ({"least": 2}, "least"),
    ],
)
def test_wrong_numbers_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BEMA(**given)


def test_it_equals_trl_on_the_same_iterates() -> None:
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    pytest.importorskip("transformers")

    class Plain(nn.Module):
        def __init__(self, config: Any = None) -> None:
            super().__init__()
            self.config, self.layer = config, nn.Linear(3, 2)

    model, f, after = Plain(), 3, 2
    theirs = callbacks.BEMACallback(update_freq=f, update_after=after, lag=10, multiplier=0.5)
    theirs.on_train_begin(None, None, None, model=model)
    ours = BEMA(lag=10 + 0.5 * after, multiplier=0.5 * f)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 21):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        theirs.on_step_end(None, type("State", (), {"global_step": step}), None, model=model)
        if step >= after and (step - after) % f == 0:
            ours.update(model)
    for name, parameter in theirs.running_model.named_parameters():
        torch.testing.assert_close(ours.mean()[name], parameter.detach(), atol=1e-6, rtol=0)


def test_adapters_are_averaged_and_resumed_in_the_trainer(tmp_path: Path) -> None:
    """huggingface/trl#6416: its callback builds the model anew from its configuration, which an adapter's is not."""
    pytest.importorskip("peft")
    from lowland.integrations.transformers import AveragingCallback
    from tests.integrations.tiny_trainer import adapted, trainer

    def run(**given: Any) -> BEMA:
        average = BEMA(select=trainable)
        callback = AveragingCallback(average, start=1, every=2)
        trainer(adapted(), tmp_path / "run", callback, max_steps=8, save_steps=4, **{"logging_steps": 100}).train(
            **given
        )
        return average

    whole, resumed = run(), run(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert whole.count == resumed.count == 4
    assert all(torch.equal(tensor, resumed.mean()[name]) for name, tensor in whole.mean().items())
    assert all("lora_" in name or "classifier" in name for name in whole.mean())


def test_a_state_file_goes_on(tmp_path: Path) -> None:
    average = BEMA(0.6, lag=4)
    model = nn.Linear(2, 2)
    average.update(model)
    save(average, tmp_path / "bema.safetensors")
    again = load(tmp_path / "bema.safetensors")
    assert again.settings == average.settings
    with applied(model, again.mean()):
        pass
