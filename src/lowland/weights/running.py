"""How a batch goes through a model, unless the caller says otherwise with `forward=`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .shards import local


def call(model: nn.Module, batch: object) -> object:
    """Call `model` with a batch as loaders make them, moved to the device of the model's first parameter.

    A tensor is the only argument; of a tuple or list the first element is; a mapping gives keyword arguments.

    Raises:
        ValueError: the batch is none of these.

    >>> call(nn.Identity(), (torch.ones(1), "label"))
    tensor([1.])
    """
    return caller(model)(model, batch)


def caller(model: nn.Module) -> Callable[[nn.Module, object], object]:
    """Return `call` for a model that stays on its device, which is looked up here and not at each call.

    >>> caller(nn.Identity())(nn.Identity(), torch.ones(1))
    tensor([1.])
    """
    first = next(model.parameters(), None)
    device = None if first is None else first.device

    def run(model: nn.Module, batch: object) -> object:
        if isinstance(batch, Tensor):
            return model(_moved(batch, device))
        if isinstance(batch, Mapping):
            return model(**{name: _moved(value, device) for name, value in batch.items()})
        if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 0:
            return model(_moved(batch[0], device))
        raise ValueError(
            "a batch must be a tensor, a tuple that starts with one, or a mapping of arguments, got "
            f"{type(batch).__name__}: pass forward=lambda model, batch: ..."
        )

    return run


def _moved(value: object, device: torch.device | None) -> object:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def unwrapped(model: nn.Module, *, compiled: bool = False) -> nn.Module:
    """The model inside DistributedDataParallel, and with `compiled` also inside torch.compile.

    The wrapper broadcasts rank 0's buffers before each forward pass, also in eval mode: passes over shards of unequal
    length would wait for each other for ever, and statistics gathered on one rank would be overwritten by another's.

    >>> model = nn.Linear(1, 1)
    >>> unwrapped(model) is model
    True
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif compiled and isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode; give every module its own mode back afterwards, also on an exception.

    >>> model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1)).train()
    >>> model[1].training = False
    >>> with evaluating(model):
    ...     model[0].training
    False
    >>> model.training, model[0].training, model[1].training
    (True, True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Buffers:
    """The buffers of a model as they are now: their values, and which tensor stands under which name.

    A forward pass may write into a buffer, or assign another tensor to its name; both are seen and undone. So are other
    tensors that modules hold as attributes, as far as names go: their values are not kept.

    Args:
        beside: ids of buffers whose values are someone else's to keep.

    >>> model = nn.BatchNorm1d(1)
    >>> kept = Buffers(model)
    >>> model.running_mean = model.running_mean + 1
    >>> kept.changed()
    True
    >>> kept.restore()
    >>> model.running_mean
    tensor([0.])
    """

    def __init__(self, model: nn.Module, beside: Collection[int] = ()) -> None:
        modules = list(model.modules())
        # A scripted module keeps its buffers in C++, where no name can be given another tensor.
        plain = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
        self._named = [(m._buffers, key, held) for m in plain for key, held in m._buffers.items()]
        self._named += [
            (vars(m), key, held) for m in plain for key, held in vars(m).items() if isinstance(held, Tensor)
        ]
        unique = {id(b): b.detach() for m in modules for b in m._buffers.values() if b is not None}
        with torch.no_grad():
            self._values = [(key, b, b.clone()) for key, b in unique.items() if key not in beside]

    def changed(self) -> bool:
        """Say whether a value or a name's tensor is another than it was."""
        if any(home.get(key) is not held for home, key, held in self._named):
            return True
        return not all(torch.equal(torch.nan_to_num(b), torch.nan_to_num(saved)) for _, b, saved in self._values)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the tensors back under their names, and the values into them; a model that was moved stays there."""
        moved = {}
        for home, key, held in self._named:
            now = home.get(key)
            if now is held:
                continue
            if isinstance(now, Tensor) and held is not None and _form(now) != _form(held) and now.shape == held.shape:
                moved[id(held)] = now
            else:
                home[key] = held
        for number, buffer, saved in self._values:
            local(moved.get(number, buffer)).copy_(local(saved))


def _form(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    return tensor.device, tensor.dtype
