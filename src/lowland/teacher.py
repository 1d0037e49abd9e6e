"""A teacher that is an average of its student, and has no model of its own.

    teacher = Teacher(EMA(0.99), model)
    with teacher.weights():
        target = model(batch)              # the teacher's, without gradients
    loss = distance(model(batch), target)

The student's own module runs with the teacher's weights in it for the length of a block: of a PEFT model only the
adapter is exchanged, and there is no second base model. The average is kept in float32 whatever the student's dtype,
in which an update of a per cent would mostly be rounded away.

Tarvainen, Valpola 2017, arXiv 1703.01780 (mean teacher); Grill et al. 2020, arXiv 2006.07733 (BYOL).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .averager.averager import Averager
from .weights.named import Weights, bare_name, check_same, copy_to, selected, weights_of
from .weights.running import evaluating
from .weights.shards import is_sharded, local, reshard


class Teacher:
    """An averager of a model's trained weights, with which the same model can be run.

    The teacher begins as a copy of the student. Frozen parameters are the same in both and are neither averaged nor
    exchanged; which ones are trained is asked once, here.

    Args:
        averager: how the teacher follows: `EMA`, or any other averager. One with updates goes on from them.
        model: the student, bare or in a wrapper.

    Raises:
        ValueError: nothing of the model is trained, or the averager holds other tensors.

    >>> from lowland import EMA
    >>> student = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(student.weight)
    >>> teacher = Teacher(EMA(0.75), student)
    >>> _ = nn.init.ones_(student.weight)
    >>> teacher.update()
    >>> with teacher.weights():
    ...     student(torch.ones(1))
    tensor([0.2500])
    >>> student.weight.item()
    1.0
    """

    def __init__(self, averager: Averager, model: nn.Module) -> None:
        self.averager = averager
        self.model = model
        self._inside = False

        def moving(name: str, tensor: Tensor) -> bool:
            return averager.select(name, tensor) and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))

        self._names = frozenset(weights_of(model, moving))
        if averager.count:
            check_same(averager.mean(), self._student(), what="a teacher from this averager")
        else:
            averager.update(self._student())

    def update(self) -> None:
        """Follow the student by one update; call it after the optimiser's step.

        Raises:
            RuntimeError: inside `weights`, where the model does not hold the student.
            ValueError: as `Averager.update`.
        """
        if self._inside:
            raise RuntimeError("the model holds the teacher's weights here: call update() outside teacher.weights()")
        self.averager.update(self._student())

    @contextmanager
    def weights(self, *, training: bool = False) -> Iterator[nn.Module]:
        """Run a block with the teacher's weights in the model, without gradients, in eval mode.

        The tensors are exchanged, not overwritten: what the student has computed before the block can be differentiated
        after it. Call `backward` outside the block, where the student is back. Within a block a second one changes
        nothing.

        Args:
            training: leave the modules in the modes in which they are, for a teacher with dropout.

        Raises:
            RuntimeError: at the end of the block, if something in it has written into the teacher's weights.
        """
        if self._inside:
            yield self.model
            return
        mode = nullcontext() if training else evaluating(self.model)
        own = selected(self.model, self._chosen)
        sharded = any(is_sharded(tensor) for tensor in own.values())
        change = _written(self.model, own, self.averager.mean()) if sharded else _exchanged(own, self._held())
        self._inside = True
        try:
            with torch.no_grad(), mode, change:
                yield self.model
        finally:
            self._inside = False

    def state_dict(self) -> dict[str, Any]:
        """Return the averager's state: copies. `lowland.save(teacher.averager, path)` writes it as a file."""
        return self.averager.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on bit for bit where a saved teacher stopped.

        Raises:
            ValueError: it is the state of another averager, or of other tensors; nothing is changed.
        """
        self.averager.load_state_dict(state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.averager!r}, {len(self._names)} tensors of {type(self.model).__name__})"

    # Private helpers.

    def _chosen(self, name: str, tensor: Tensor) -> bool:
        return bare_name(name) in self._names

    def _student(self) -> Weights:
        return weights_of(self.model, self._chosen)

    def _held(self) -> Weights:
        """The teacher's weights, without a copy where the averager holds them as they are."""
        slots: Mapping[str, Weights] = self.averager._views()["slots"]
        return slots["mean"] if "mean" in slots else self.averager.mean()


@contextmanager
def _written(model: nn.Module, own: Weights, weights: Weights) -> Iterator[None]:
    """Overwrite the model's shards for a block: they are gathered anew from the memory that they have.

    Buffers are left alone, since the student's graph may hold them.
    """
    before = {name: local(tensor.detach()).clone() for name, tensor in own.items()}
    copy_to(model, weights)
    try:
        yield
    finally:
        reshard(model.modules())  # else the root keeps the teacher's whole tensors for the student's backward pass
        for name, tensor in own.items():
            local(tensor.detach()).copy_(before[name])


@contextmanager
def _exchanged(own: Weights, weights: Weights) -> Iterator[None]:
    """Let the model's tensors have other memory for a block: no version counter moves, so graphs stay valid."""
    before = {name: (tensor.data, tensor._version) for name, tensor in own.items()}
    torch.clear_autocast_cache()  # it keeps parameters cast to a lower precision by their identity
    try:
        for name, tensor in own.items():
            tensor.data = weights[name].to(device=tensor.device, dtype=tensor.dtype)
        yield
    finally:
        written = [name for name, tensor in own.items() if tensor._version != before[name][1]]
        for name, tensor in own.items():
            tensor.data = before[name][0]
        torch.clear_autocast_cache()
    if written:
        raise RuntimeError(
            f"{written[:5]} ({len(written)} in all) were written into while they held the teacher's weights"
        )
