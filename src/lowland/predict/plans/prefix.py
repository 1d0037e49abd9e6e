"""What does not depend on the draw runs once per batch: outputs of modules are kept and given again.

A module qualifies if no sampled tensor is in it; the largest such modules are taken. Its output is given again only if
the call's inputs equal the recorded ones bit for bit and nothing has written into what was recorded, so that the
result is that of the plain pass, bit for bit, whatever the order in which a model calls its modules. In the first batch
it is learnt which calls see the same inputs under two draws; only these are recorded afterwards. They are what lies
before the first sampled tensor, and side branches that no sampled tensor reaches.

Left out: modules with hooks, with a `forward` of the instance's own, scripted or in training mode; calls that draw
random numbers, write into a parameter, a buffer or their input, read a sampled tensor by another way, return a view of
their input, or take or return anything that is neither tensor nor plain data; calls under autograd; what exceeds the
budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .nested import Opaque, alike, mapped, tensors
from .places import Places

BUDGET = 2**28  # bytes of inputs and outputs that are kept of one batch
Key = tuple[int, int]  # a module's number, and which of its calls in the pass


def free_modules(model: nn.Module, sampled: set[int]) -> list[nn.Module]:
    """Return the largest modules of `model` that hold no tensor whose id is in `sampled`.

    >>> model = nn.Sequential(nn.Sequential(nn.Linear(1, 2), nn.ReLU()), nn.Linear(2, 1))
    >>> free_modules(model, {id(model[1].weight)}) == [model[0]]
    True
    """
    found: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> None:
        own = {id(t) for t in (*module.parameters(), *module.buffers())}
        if module is model or own & sampled or isinstance(module, nn.ModuleList | nn.ModuleDict):
            for child in module.children():
                visit(child)
        elif all(_plain(part) for part in module.modules()):
            found[id(module)] = module

    visit(model)
    return list(found.values())


class Memo:
    """Recorded calls of modules that no draw changes.

    Attributes:
        independent: the calls that saw the same inputs under two draws; None until `learn` has run.
    """

    def __init__(self, places: Places, *, budget: int = BUDGET) -> None:
        self.places = places
        self.modules = free_modules(places.model, places.ids)
        self.independent: set[Key] | None = None
        self.budget = budget
        self.repeats = 1  # how often each row of a batch stands in the pass
        self.rows = 0  # rows of the batch; only read where `repeats` is above 1
        self._parts = [list(module.modules()) for module in self.modules]
        self._banned: set[Key] = set()
        self._clone_inputs: set[Key] = set()
        self._clone_outputs: set[Key] = set()
        self._grows: dict[Key, list[bool]] = {}  # which outputs have the batch's rows
        self._calls: Counter[int] = Counter()
        self._entries: dict[Key, _Entry] = {}
        self._running: list[Key] = []
        self._memory: dict[int, set[int]] = {}
        self._bytes = 0

    def forget(self) -> None:
        """Drop what was recorded: the next pass sees another batch."""
        self._entries.clear()
        self._bytes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record one pass under one draw and look at every operation inside the modules."""
        self.forget()
        sampled = {t.untyped_storage().data_ptr() for t in self.places.tensors.values()}
        own = (*self.places.model.parameters(), *self.places.model.buffers())
        fixed = {t.untyped_storage().data_ptr() for t in own}
        with _Watch(self, sampled, fixed), self.replaying():
            yield

    def learn(self) -> None:
        """Keep the calls whose inputs were the same in the pass since `watching`, under another draw."""
        self.independent = {key for key in self._entries if key not in self._banned}

    def ban(self) -> None:
        """Called by the watch: what is running now may not be given again."""
        self._banned.update(self._running)

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Run one pass in which recorded calls are answered and new ones recorded."""
        self._calls.clear()
        try:
            for number, module in enumerate(self.modules):
                module.__dict__["forward"] = self._stand_in(number, module)
            yield
        finally:
            for module in self.modules:
                module.__dict__.pop("forward", None)
            self._running.clear()

    def _stand_in(self, number: int, module: nn.Module) -> Callable[..., Any]:
        forward = type(module).forward.__get__(module)

        def answer(*args: Any, **kwargs: Any) -> Any:
            key = (number, self._calls[number])
            self._calls[number] += 1
            if not self._wanted(key) or torch.is_grad_enabled() or any(part.training for part in self._parts[number]):
                return forward(*args, **kwargs)
            self._running.append(key)
            try:
                return self._answer(key, forward, args, kwargs)
            finally:
                self._running.pop()

        return answer

    def _wanted(self, key: Key) -> bool:
        return key not in self._banned and (self.independent is None or key in self.independent)

    def _answer(self, key: Key, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.repeats == 1:
            return self._single(key, forward, args, kwargs)
        try:
            small = mapped((args, kwargs), self._one_of_each)
        except (Opaque, _Differs):
            return forward(*args, **kwargs)
        output = self._single(key, forward, *small)
        if key not in self._grows:
            # Only the first time: run the module on all rows too, to see which outputs follow the batch.
            whole = forward(*args, **kwargs)
            try:
                pairs = list(zip(tensors(output), tensors(whole), strict=True))
            except (Opaque, ValueError):
                self._banned.add(key)
                return whole
            self._grows[key] = [one.shape != all_.shape for one, all_ in pairs]
            return whole
        grows = iter(self._grows[key])
        return mapped(output, lambda t: repeated(t, self.repeats) if next(grows) else t)

    def _one_of_each(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != self.rows * self.repeats:
            return tensor
        first = tensor[: self.rows]
        if not torch.equal(tensor.view(self.repeats, *first.shape), first.expand(self.repeats, *first.shape)):
            raise _Differs
        return first

    def _single(self, key: Key, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        entry = self._entries.get(key)
        if entry is not None:
            if not entry.outputs_intact():
                self._clone_outputs.add(key)
            elif not entry.inputs_intact():
                self._clone_inputs.add(key)
            elif entry.matches(args, kwargs):
                return entry.give(key in self._clone_outputs)
            elif self.independent is None:
                self._banned.add(key)  # it saw other inputs under another draw
                del self._entries[key]
                return forward(*args, **kwargs)
            else:
                return forward(*args, **kwargs)
        return self._record(key, forward, args, kwargs)

    def _record(self, key: Key, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            given = list(tensors((args, kwargs)))
            if any(t.is_inference() or type(t) not in (Tensor, nn.Parameter) for t in given):
                raise Opaque("inference tensor")
        except Opaque:
            self._banned.add(key)
            return forward(*args, **kwargs)
        before = [t._version for t in given]
        held = mapped((args, kwargs), Tensor.clone) if key in self._clone_inputs else (args, kwargs)
        output = forward(*args, **kwargs)
        try:
            made = list(tensors(output))
        except Opaque:
            self._banned.add(key)
            return output
        known = {t.untyped_storage().data_ptr() for t in given} | self._own(key[0])
        written = any(t._version != version for t, version in zip(given, before, strict=True))
        if written or any(type(t) is not Tensor or t.untyped_storage().data_ptr() in known for t in made):
            self._banned.add(key)
            return output
        size = sum(t.numel() * t.element_size() for t in (*given, *made))
        if key not in self._entries:
            if self._bytes + size > self.budget:
                return output
            self._bytes += size
        kept = mapped(output, Tensor.clone if key in self._clone_outputs else _same)
        self._entries[key] = _Entry(held, kept)
        return output

    def _own(self, number: int) -> set[int]:
        """Where the memory of a module's own tensors begins; no draw moves them."""
        if number not in self._memory:
            module = self.modules[number]
            own = (*module.parameters(), *module.buffers())
            self._memory[number] = {t.untyped_storage().data_ptr() for t in own}
        return self._memory[number]


class _Differs(Exception):
    """The rows of the batch differ between the draws of one pass."""


class _Entry:
    def __init__(self, inputs: Any, output: Any) -> None:
        self.inputs = inputs
        self.output = output
        self._inputs = [(t, t._version) for t in tensors(inputs)]
        self._outputs = [(t, t._version) for t in tensors(output)]

    def inputs_intact(self) -> bool:
        return all(t._version == version for t, version in self._inputs)

    def outputs_intact(self) -> bool:
        return all(t._version == version for t, version in self._outputs)

    def matches(self, args: Any, kwargs: Any) -> bool:
        try:
            return alike(self.inputs, (args, kwargs), _equal)
        except Opaque:
            return False

    def give(self, cloned: bool) -> Any:
        # Containers are always new: a model may take entries out of what a module returns.
        return mapped(self.output, Tensor.clone if cloned else _same)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a pass and bans calls that are more than a function of their inputs."""

    def __init__(self, memo: Memo, sampled: set[int], fixed: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memo, self.sampled, self.fixed = memo, sampled, fixed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.memo._running:
            pointers = set(_pointers((*args, *kwargs.values())))
            # torch's own generator shows by its state; operations are tagged as random also where their rate is 0.
            random = any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))
            writes = func._schema.is_mutable and bool(pointers & self.fixed)
            if random or writes or pointers & self.sampled:
                self.memo.ban()
        return func(*args, **kwargs)


def repeated(tensor: Tensor, count: int) -> Tensor:
    """Return the tensor `count` times over along its first axis, one copy after the other.

    >>> repeated(torch.tensor([1, 2]), 2).tolist()
    [1, 2, 1, 2]
    """
    return tensor.expand(count, *tensor.shape).reshape(count * len(tensor), *tensor.shape[1:])


def _pointers(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, Tensor):
            if type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided:
                yield value.untyped_storage().data_ptr()
        elif isinstance(value, list | tuple):
            yield from _pointers(value)


def _equal(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    form = (one.shape, one.dtype, one.device, one.stride()) == (other.shape, other.dtype, other.device, other.stride())
    return form and torch.equal(one, other)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _plain(module: nn.Module) -> bool:
    """Whether a module's call does what its class says and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or "forward" in module.__dict__ or "__call__" in module.__dict__:
        return False
    return not isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "_orig_mod")
