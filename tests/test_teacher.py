"""A teacher without a model of its own: what it computes, what it leaves alone, what it holds, and resuming."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland import BEMA, EMA, SWA, load, save, weights_of
from lowland.teacher import Teacher
from lowland.weights import floating, trainable


class Net(nn.Module):
    """Dropout, BatchNorm and a tied weight."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.drop(self.norm(self.one(x).tanh())))


def batch(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_step_for_step_it_is_a_second_model(dtype: torch.dtype, decay: float) -> None:
    """Mean teacher's loss, 30 steps: an own module in eval mode that holds the average, kept in float64 beside it."""
    model, twin = Net(dtype), Net(dtype).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    teacher = Teacher(EMA(decay), model)
    reference = {name: tensor.double() for name, tensor in weights_of(model).items()}
    for step in range(30):
        x = batch(step, dtype)
        student = model(x)
        buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
        with torch.no_grad():
            for name, tensor in weights_of(twin).items():
                tensor.copy_(reference[name])
            for name, tensor in twin.named_buffers():
                tensor.copy_(buffers[name])
        with teacher.weights():
            target = model(x)
        torch.testing.assert_close(target, twin(x).detach(), atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)
        assert (
            not target.requires_grad
            and model.training
            and not (model.norm.running_mean - buffers["norm.running_mean"]).any()
        )
        optimizer.zero_grad()
        ((student - target).square().mean() + (student - x).square().mean()).backward()
        optimizer.step()
        teacher.update()
        for name, tensor in weights_of(model).items():
            reference[name] += (1 - decay) * (tensor.double() - reference[name])
    for name, tensor in teacher.averager.mean().items():
        torch.testing.assert_close(tensor.double(), reference[name], atol=1e-6, rtol=1e-6)


def test_a_graph_made_before_the_block_is_differentiated_after_it() -> None:
    """Overwriting the weights in place would be refused by autograd, or worse, used."""
    model = Net().eval()
    teacher = Teacher(EMA(0.5), model)
    with torch.no_grad():
        for tensor in weights_of(model).values():
            tensor.add_(1.0)
    x = batch(0)
    loss = model(x).square().mean()
    with teacher.weights():
        model(x)
    loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    assert all(torch.equal(one, parameter.grad) for one, parameter in zip(found, model.parameters(), strict=True))


def test_autocast_does_not_hand_the_students_weights_to_the_teacher() -> None:
    """Its cache knows a parameter by its identity, inside one autocast block."""
    model = nn.Linear(4, 4, bias=False)
    teacher = Teacher(EMA(0.5), model)
    with torch.no_grad():
        model.weight.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not model(torch.ones(1, 4)).any()
        with teacher.weights():
            assert model(torch.ones(1, 4)).any()
        assert not model(torch.ones(1, 4)).any()


def test_a_compiled_model_sees_the_teacher() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    compiled = torch.compile(model, backend="eager")
    teacher, x = Teacher(EMA(0.5), compiled), torch.ones(1, 4)
    before = compiled(x).detach()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    after = compiled(x).detach()
    with teacher.weights():
        assert torch.equal(compiled(x), before)
    assert torch.equal(compiled(x).detach(), after) and not torch.equal(before, after)


@pytest.mark.parametrize("make", [lambda: EMA(0.9), BEMA, SWA], ids=["EMA", "BEMA", "SWA"])
def test_it_resumes_bit_for_bit(make: Callable[[], Any], tmp_path: Path) -> None:
    def steps(model: Net, teacher: Teacher, first: int, last: int) -> None:
        for step in range(first, last):
            with torch.no_grad():
                for tensor in weights_of(model).values():
                    tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(step)))
            teacher.update()

    model = Net()
    whole = Teacher(make(), model)
    steps(model, whole, 0, 4)
    torch.save((model.state_dict(), whole.state_dict()), tmp_path / "state.pt")
    save(whole.averager, tmp_path / "teacher.safetensors")
    steps(model, whole, 4, 8)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    by_state, by_file = Net(), Net()
    resumed = Teacher(make(), by_state)
    by_state.load_state_dict(weights)
    resumed.load_state_dict(state)
    by_file.load_state_dict(weights)
    for student, teacher in ((by_state, resumed), (by_file, Teacher(load(tmp_path / "teacher.safetensors"), by_file))):
        steps(student, teacher, 4, 8)
        assert teacher.averager.count == whole.averager.count
        for name, tensor in whole.averager.mean().items():
            assert torch.equal(tensor, teacher.averager.mean()[name])


def test_only_what_is_trained_is_held_and_exchanged() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    teacher = Teacher(EMA(0.9), model)
    assert sorted(teacher.averager.mean()) == ["1.bias", "1.weight"]
    frozen = model[0].weight.data_ptr()
    with teacher.weights():
        assert model[0].weight.data_ptr() == frozen
        # float32 weights are the averager's own: no copy is made of them
        held = teacher.averager._views()["slots"]["mean"]
        assert model[1].weight.data_ptr() == held["1.weight"].data_ptr()
    model[1].requires_grad_(False)  # frozen later: still the teacher's
    teacher.update()


def test_buffers_are_averaged_where_they_are_selected() -> None:
    model = Net()
    teacher = Teacher(EMA(0.5, select=floating), model)
    with torch.no_grad():
        model.norm.running_mean.fill_(2.0)
    teacher.update()
    with teacher.weights():
        assert torch.equal(model.norm.running_mean, torch.ones(6))
    assert torch.equal(model.norm.running_mean, torch.full((6,), 2.0))


def test_the_student_comes_back_after_an_error_and_modes_stay() -> None:
    model = Net()
    model.drop.eval()
    before = copy.deepcopy(model.state_dict())
    teacher = Teacher(EMA(0.0), model)
    with pytest.raises(KeyError), teacher.weights():
        raise KeyError
    assert model.training and not model.drop.training
    with teacher.weights(training=True):
        assert model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if "norm" not in name)


def test_what_cannot_be_right_is_refused() -> None:
    model = Net()
    teacher = Teacher(EMA(0.9), model)
    with teacher.weights(), teacher.weights():
        with pytest.raises(RuntimeError, match="outside teacher.weights"):
            teacher.update()
    with pytest.raises(RuntimeError, match=r"one\.bias.* were written into"), teacher.weights():
        model.one.bias.add_(1.0)
    with pytest.raises(ValueError, match="named differently"):
        Teacher(teacher.averager, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="selects no tensor"):
        Teacher(EMA(0.9), nn.Linear(2, 2).requires_grad_(False))


def test_an_adapter_is_all_that_is_held() -> None:
    """huggingface/trl#5990, lerobot#4323: teachers of adapters that stay trainable, or are a second model."""
    pytest.importorskip("peft")
    from tests.integrations.tiny_trainer import ROWS, adapted

    model = adapted().eval()
    teacher = Teacher(EMA(0.5), model)
    assert sorted(teacher.averager.mean()) == sorted(weights_of(model, trainable))
    ids = torch.tensor([row["input_ids"] for row in ROWS[:4]])
    before = model(input_ids=ids).logits.detach()
    with torch.no_grad():
        for tensor in weights_of(model, trainable).values():
            tensor.add_(0.3)
    base = {name: p.data_ptr() for name, p in model.named_parameters() if not p.requires_grad}
    with teacher.weights():
        assert torch.equal(model(input_ids=ids).logits, before)
        assert all(p.data_ptr() == base[name] for name, p in model.named_parameters() if name in base)
    assert all(p.requires_grad for name, p in model.named_parameters() if name not in base)
    assert list(model.peft_config) == ["default"]
