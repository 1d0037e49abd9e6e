"""The places in a model that draws fill: by pointing the model's tensors at a draw, or by copying it in.

Pointing costs two pointer writes a tensor and puts the model back without rounding or copying anything. It needs that
nothing else looks at the tensors' old memory; where something may, the draw is copied in and out by `applied`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...weights.kinds import check_writable
from ...weights.named import Weights, bare_name, check_same, copy_to
from ...weights.running import Buffers


class Places:
    """The tensors of `model` that weights like these name.

    Args:
        like: the first draw; its names and shapes are checked against the model's.

    Attributes:
        tensors: the model's own tensor objects by name; tied names share one.
        obstacle: why they cannot be pointed at a draw; "" if they can.

    Raises:
        ValueError: the model has no such tensor, or its shape differs.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> places = Places(model, {"weight": torch.ones(1, 1)})
    >>> with places.holding({"weight": torch.tensor([[3.0]])}):
    ...     model.weight.item()
    3.0
    """

    def __init__(self, model: nn.Module, like: Weights) -> None:
        self.model = model
        own = dict(_named(model))
        unknown = [name for name in like if name not in own]
        if unknown:
            copy_to(model, like)  # raises, and says what the model has
        self.tensors = {name: own[name] for name in like}
        check_same(self.tensors, like, what=f"writing into {type(model).__name__}")
        check_writable(self.tensors, like, f"writing into {type(model).__name__}")
        self.ids = {id(tensor) for tensor in self.tensors.values()}
        self.obstacle = self._obstacle()
        self._buffers = Buffers(model, beside=self.ids)
        self._home = [] if self.obstacle else [(tensor, tensor.data) for tensor in self._each()]

    @property
    def bytes(self) -> int:
        """Bytes of one draw in the model's own dtypes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._each())

    def fits(self, weights: Weights) -> bool:
        """Say whether a draw has the names and shapes of the first."""
        return weights.keys() == self.tensors.keys() and all(
            weights[name].shape == tensor.shape for name, tensor in self.tensors.items()
        )

    @contextmanager
    def holding(self, weights: Weights) -> Iterator[None]:
        """Run a block with the model's tensors pointing at `weights`; then put tensors and buffers back."""
        try:
            self.point(weights)
            yield
        finally:
            self.back()

    def point(self, weights: Weights) -> None:
        """Point the model's tensors at a draw, cast where its dtype, device or strides differ from theirs."""
        self.point_as_is({name: _fitting(weights[name], tensor) for name, tensor in self.tensors.items()})

    def point_as_is(self, weights: Weights) -> None:
        """Point the model's tensors at memory that need not have their strides."""
        for name, tensor in self.tensors.items():
            tensor.data = weights[name]
        torch.clear_autocast_cache()  # autocast keeps casts of weights by tensor, and would not see new values

    def back(self) -> None:
        """Point every tensor at its own memory again, and restore the buffers."""
        for tensor, data in self._home:
            tensor.data = data
        torch.clear_autocast_cache()
        self._buffers.restore()

    def buffers_changed(self) -> bool:
        """Say whether a forward pass wrote into a buffer that the draws do not name, or put another in its place."""
        return self._buffers.changed()

    def versions(self) -> list[int]:
        """How often each tensor has been written in place: a model that changes its own weights shows here."""
        return [tensor._version for tensor in self._each()]

    def _each(self) -> list[Tensor]:
        return list({id(tensor): tensor for tensor in self.tensors.values()}.values())

    def _obstacle(self) -> str:
        sampled = {}
        for tensor in self._each():
            if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
                return f"a {type(tensor).__name__} is not plain memory"
            if tensor.is_inference():
                return "its tensors were made in inference mode"
            sampled[tensor.untyped_storage().data_ptr()] = id(tensor)
        if len(sampled) < len(self.ids):
            return "its tensors share memory"
        for module in self.model.modules():
            # A compiled graph may hold the addresses of weights; a scripted one holds them in C++.
            if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
                return f"it holds a {type(module).__name__}"
            if isinstance(module, nn.RNNBase) and any(p.is_cuda for p in module.parameters()):
                return "cuDNN holds the weights of its recurrent layers as one block"
            for held in _held(module):
                pointer = 0 if type(held) not in (Tensor, nn.Parameter) else held.untyped_storage().data_ptr()
                if pointer in sampled and sampled[pointer] != id(held) and pointer:
                    return f"a tensor of {type(module).__name__} is a view of a sampled one"
        return ""


class Held:
    """Several draws in memory, stacked by name; `capacity` is how many there is room for.

    >>> places = Places(nn.Linear(1, 1, bias=False), {"weight": torch.ones(1, 1)})
    >>> held = Held(places, capacity=2)
    >>> held.add({"weight": torch.tensor([[3.0]])})
    >>> len(held), held.draw(0)["weight"].item()
    (1, 3.0)
    """

    def __init__(self, places: Places, capacity: int) -> None:
        self.capacity = capacity
        self._count = 0
        self.stacks = {name: _stack(tensor, capacity) for name, tensor in places.tensors.items()}

    def __len__(self) -> int:
        return self._count

    def add(self, weights: Weights) -> None:
        """Copy one more draw in, so that the posterior may reuse its memory."""
        for name, stack in self.stacks.items():
            stack[self._count].copy_(weights[name])
        self._count += 1

    def draw(self, index: int) -> dict[str, Tensor]:
        """Return draw `index`: views."""
        return {name: stack[index] for name, stack in self.stacks.items()}


def _stack(tensor: Tensor, capacity: int) -> Tensor:
    shape, strides = (capacity, *tensor.shape), (tensor.numel(), *tensor.stride())
    dense = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1 == tensor.numel()
    if not dense or tensor.numel() == 0:
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)


def _fitting(weight: Tensor, tensor: Tensor) -> Tensor:
    plain = type(weight) in (Tensor, nn.Parameter) and not weight.is_inference()
    if plain and (weight.dtype, weight.device, weight.stride()) == (tensor.dtype, tensor.device, tensor.stride()):
        return weight.detach()
    return torch.empty_like(tensor).copy_(weight)


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer under each of its names."""
    yield from ((bare_name(name), tensor) for name, tensor in model.named_parameters(remove_duplicate=False))
    yield from ((bare_name(name), tensor) for name, tensor in model.named_buffers(remove_duplicate=False))


def _held(module: nn.Module) -> Iterator[Tensor]:
    """Tensors that a module holds by any name, also in a list."""
    for value in (*vars(module).values(), *module._parameters.values(), *module._buffers.values()):
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Tensor):
                yield item
