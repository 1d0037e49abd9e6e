"""Averaging through the optimiser's hook: when it collects, what it leaves out, and resuming."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lowland import EMA, SWA, SWAG
from lowland.integrations.optimizer import follow


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, accumulate: int = 1) -> None:
    for step in steps:
        optimizer.zero_grad()
        for part in range(accumulate):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(100 * step + part))
            model(x).square().mean().backward()
        optimizer.step()


def setting(
    kind: type[torch.optim.Optimizer] = torch.optim.SGD, **given: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    return model, kind(model.parameters(), **{"lr": 0.1, **given})


def test_it_equals_the_update_written_in_the_loop() -> None:
    model, optimizer = setting()
    by_hook, by_hand = SWAG(rank=3), SWAG(rank=3)
    follow(by_hook, model, optimizer, start=4, every=3)
    for step in range(1, 15):
        loop(model, optimizer, range(step, step + 1))
        if step in (4, 7, 10, 13):
            by_hand.update(model)
    assert by_hook.count == 4
    for slot, tensors in by_hand.state_dict()["slots"].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, by_hook.state_dict()["slots"][slot][name])


def test_accumulated_batches_are_one_step() -> None:
    """SWivid/F5-TTS#631, lightly-ai/lightly-train#968: averages taken after every micro-batch."""
    model, optimizer = setting()
    average = EMA(0.9)
    follow(average, model, optimizer)
    loop(model, optimizer, range(5), accumulate=4)
    assert average.count == 5


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_leaves_out_does_not_count(fused: bool) -> None:
    model, optimizer = setting(torch.optim.AdamW, fused=fused)
    average = SWA()
    following = follow(average, model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for overflow in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        if overflow:
            model.weight.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
    assert (average.count, following.step) == (2, 2)


def test_a_scheduler_and_a_closure_do_not_disturb_it() -> None:
    model, optimizer = setting(torch.optim.LBFGS, lr=1.0, max_iter=3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    average = SWA()
    follow(average, model, optimizer)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
        scheduler.step()
    assert average.count == 2


def test_a_removed_handle_collects_nothing_more() -> None:
    model, optimizer = setting()
    average = SWA()
    following = follow(average, model, optimizer)
    loop(model, optimizer, range(2))
    following.remove()
    following.remove()
    loop(model, optimizer, range(2))
    assert average.count == 2


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    model, optimizer = setting(momentum=0.9)
    whole = EMA(0.8)
    follow(whole, model, optimizer, start=3, every=4)
    loop(model, optimizer, range(20))

    model, optimizer = setting(momentum=0.9)
    half = EMA(0.8)
    following = follow(half, model, optimizer, start=3, every=4)
    loop(model, optimizer, range(9))
    state = {"model": model, "optimizer": optimizer, "average": half, "following": following}
    torch.save({key: one.state_dict() for key, one in state.items()}, tmp_path / "state.pt")

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    model, optimizer = setting(momentum=0.9)
    rest = EMA(0.8)
    following = follow(rest, model, optimizer, start=3, every=4)
    for key, one in {"model": model, "optimizer": optimizer, "average": rest, "following": following}.items():
        one.load_state_dict(copy.deepcopy(saved[key]))
    loop(model, optimizer, range(9, 20))
    assert rest.count == whole.count
    for name, tensor in whole.mean().items():
        assert torch.equal(tensor, rest.mean()[name])


def test_what_it_cannot_follow_is_refused() -> None:
    model, optimizer = setting()
    with pytest.raises(ValueError, match="torch optimiser"):
        follow(SWA(), model, object())
    with pytest.raises(ValueError, match="length of the training"):
        follow(SWA(), model, optimizer, start="70%")


def test_accelerate_saves_and_resumes_it_exactly(tmp_path: Path) -> None:
    """huggingface/accelerate#1666: what is not prepared could not be saved; registered objects can."""
    accelerate = pytest.importorskip("accelerate")

    def run(first: int, last: int, resume: bool = False, save: bool = False) -> SWAG:
        accelerator = accelerate.Accelerator(cpu=True)
        model, optimizer = setting(torch.optim.AdamW)
        model, optimizer = accelerator.prepare(model, optimizer)
        average = SWAG(rank=3)
        following = follow(average, model, optimizer, start=2, every=2)
        accelerator.register_for_checkpointing(average, following)
        if resume:
            accelerator.load_state(str(tmp_path / "checkpoint"))
        for step in range(first, last):
            optimizer.zero_grad()
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            accelerator.backward(model(x).square().mean())
            optimizer.step()
        if save:
            accelerator.save_state(str(tmp_path / "checkpoint"))
        return average

    whole = run(0, 16)
    run(0, 7, save=True)
    rest = run(7, 16, resume=True)
    assert rest.count == whole.count == 8
    for slot, tensors in whole.state_dict()["slots"].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, rest.state_dict()["slots"][slot][name])


class TwoSteps(torch.optim.Optimizer):
    """As sharpness-aware minimisation is often written: no `step`, and the optimiser that moves the weights inside."""

    def __init__(self, params: object, inside: bool) -> None:
        super().__init__(params, {"lr": 0.1})
        if inside:
            self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1)

    def second_step(self) -> None:
        self.base_optimizer.step()


class Both(TwoSteps):
    """Has a `step` too, which a loop may leave aside."""

    def step(self, closure: object = None) -> None:
        self.second_step()


@pytest.mark.parametrize(
    ("inside", "advice"), [(True, r"follow its \.base_optimizer"), (False, "call averager.update")]
)
def test_an_optimiser_whose_steps_have_other_names_is_refused(inside: bool, advice: str) -> None:
    model, _ = setting()
    with pytest.raises(ValueError, match=f"TwoSteps has no step.*{advice}"):
        follow(SWA(), model, TwoSteps(model.parameters(), inside))


def test_the_advice_collects() -> None:
    model, _ = setting()
    average, optimizer = SWA(), TwoSteps(model.parameters(), inside=True)
    with follow(average, model, optimizer.base_optimizer):
        for _ in range(3):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.second_step()
    assert average.count == 3


def test_steps_that_were_never_seen_are_told() -> None:
    model, _ = setting()
    average, optimizer = SWA(), Both(model.parameters(), inside=True)
    following = follow(average, model, optimizer)
    optimizer.second_step()
    with pytest.warns(UserWarning, match=r"no call of Both\.step, so nothing was collected"):
        following.remove()
    following.remove()  # once is enough
    with follow(average, model, optimizer):
        optimizer.step()
    assert average.count == 1


def test_an_error_in_the_block_is_not_talked_over() -> None:
    model, optimizer = setting()
    with pytest.raises(KeyError), follow(SWA(), model, optimizer):
        raise KeyError


def test_a_share_without_the_whole_names_what_to_give() -> None:
    model, optimizer = setting()
    for start, name in (("70%", "total="), ("3epoch", "per_epoch=")):
        with pytest.raises(ValueError, match=name):
            follow(SWA(), model, optimizer, start=start)
