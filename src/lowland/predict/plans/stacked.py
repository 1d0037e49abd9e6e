"""Several draws in one pass: the batch stands there once for each draw, and each copy of a row meets its own weights.

    y[s] = x[s] W[s]^T + b[s],    s = 1 ... S, one batched product for what were S products

Rows are in the order of draws: all rows of the batch under draw 1, then under draw 2. Only modules that own sampled
tensors are replaced during the pass: linear, embedding and normalising layers by a batched form, any other by its own
forward on each draw's share of the rows. Everything else sees a larger batch.

While a pass runs, the model's own sampled tensors point at NaN. A model that reads them by another way than calling
their module gives NaN and the plan is given up, instead of giving another draw's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .nested import Opaque, mapped, tensors
from .places import Held, Places
from .prefix import Memo, repeated

ROWS = 512  # rows in one pass, about: from here on a larger matrix product is not faster per row


class Unstackable(Exception):
    """This model or batch cannot go through in one pass; the text says why."""


class Stack:
    """The modules of a model that own sampled tensors, and their forms for several draws.

    Raises:
        Unstackable: a module with hooks is there, or a sampled tensor belongs to a module around another such.
    """

    def __init__(self, places: Places, memo: Memo) -> None:
        self.places, self.memo = places, memo
        names = {id(tensor): name for name, tensor in places.tensors.items()}
        self.owners: dict[nn.Module, dict[str, str]] = {}
        for module in places.model.modules():
            if module._forward_hooks or module._forward_pre_hooks:
                raise Unstackable(f"a {type(module).__name__} has hooks, which would see several draws at once")
            own = (*module._parameters.items(), *module._buffers.items())
            found = {key: names[id(tensor)] for key, tensor in own if tensor is not None and id(tensor) in names}
            if found:
                self.owners[module] = found
        for module in self.owners:
            if "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule):
                raise Unstackable(f"a {type(module).__name__} has a forward of its own")
            if any(part in self.owners for part in module.modules() if part is not module):
                raise Unstackable(f"a {type(module).__name__} holds sampled tensors itself and in modules inside")
        if not any(type(module) in FORMS for module in self.owners):
            raise Unstackable("no sampled tensor belongs to a layer with a batched form")
        self.most = ROWS
        self.leading = 0  # rows that reach the sampled layers for one draw in the first batch
        self._elements = 0  # of the first batch's tensors
        self._layout: list[bool] | None = None
        self.nan = {
            name: torch.full((), torch.nan, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
            for name, tensor in places.tensors.items()
            if tensor.is_floating_point()
        }
        if len(self.nan) < len(places.tensors):
            raise Unstackable("a sampled tensor is not floating-point")

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Run a plain pass and note in `leading` how many rows reach the sampled layers."""

        def note(module: nn.Module) -> Callable[..., Any]:
            forward = type(module).forward.__get__(module)

            def noting(*args: Any, **kwargs: Any) -> Any:
                if args and isinstance(args[0], Tensor) and args[0].ndim > 0:
                    last = 1 if isinstance(module, nn.Embedding) else args[0].shape[-1]
                    self.leading = max(self.leading, args[0].numel() // max(last, 1))
                return forward(*args, **kwargs)

            return noting

        with _replaced({module: note(module) for module in self.owners if type(module) in FORMS}):
            yield

    def rows(self, batch: object, expected: int | None = None) -> int:
        """Return the rows of a batch, and in the first batch learn which of its tensors hold them.

        Args:
            expected: rows of the model's output for the first batch.

        Raises:
            Unstackable: the batch is no structure of tensors, or not one like the first.
        """
        try:
            parts = list(tensors(batch))
        except Opaque as error:
            raise Unstackable(f"a batch holds a {error}") from None
        if self._layout is None:
            self._layout = [part.ndim > 0 and len(part) == expected for part in parts]
            self._elements = max(1, sum(part.numel() for part in parts))
        following = [part for part, follows in zip(parts, self._layout, strict=False) if follows]
        counts = {len(part) if part.ndim > 0 else -1 for part in following}
        if len(parts) != len(self._layout) or len(counts) != 1 or not counts <= {expected or max(counts)}:
            raise Unstackable("the rows of a batch were not found in its tensors")
        return max(counts)

    @property
    def promising(self) -> bool:
        """Whether the draws share at least half of the model, and most of what is sampled has a batched form."""
        return shares_most(self.places) and self.formed

    @property
    def formed(self) -> bool:
        """Whether most of what is sampled belongs to layers with a batched form."""
        sizes = {name: tensor.numel() for name, tensor in self.places.tensors.items()}
        formed = {name for module, names in self.owners.items() if type(module) in FORMS for name in names.values()}
        return sum(sizes[name] for name in formed) >= 0.9 * sum(sizes.values())

    def together(self, batch: object, most: int) -> int:
        """How many draws make about `ROWS` rows of this batch, by its size beside the first's; 1 if it has more."""
        try:
            elements = sum(part.numel() for part in tensors(batch))
        except Opaque:
            return 1
        leading = max(self.leading, 1) * (elements / self._elements if self._elements else 1.0)
        return max(1, min(most, round(ROWS / max(leading, 1.0))))

    @contextmanager
    def several(self, held: Held, first: int, count: int, rows: int) -> Iterator[None]:
        """Run a pass under draws `first` to `first + count - 1` at once."""
        drawn = {name: stack[first : first + count] for name, stack in held.stacks.items()}
        forms = {
            module: _on_all_rows(
                FORMS.get(type(module), _sliced)(module, {key: drawn[name] for key, name in names.items()}, count),
                count * rows,
            )
            for module, names in self.owners.items()
        }
        self.memo.repeats, self.memo.rows = count, rows
        try:
            self.places.point_as_is(self.nan)
            with _replaced(forms):
                yield
        finally:
            self.memo.repeats = 1
            self.places.back()

    def repeat(self, batch: Any, count: int) -> Any:
        """Return the batch `count` times over; tensors that do not hold its rows stay as they are."""
        follows = iter(self._layout or ())
        return mapped(batch, lambda tensor: repeated(tensor, count) if next(follows) else tensor)


def _on_all_rows(form: Callable[..., Any], total: int) -> Callable[..., Any]:
    """Give a form all rows where the model gives one that it means for all, such as the positions of a text."""

    def spread(tensor: Tensor) -> Tensor:
        return tensor.expand(total, *tensor.shape[1:]) if tensor.ndim > 1 and len(tensor) == 1 else tensor

    def forward(*args: Any, **kwargs: Any) -> Any:
        given, named = mapped((args, kwargs), spread)
        return form(*given, **named)

    return forward


Drawn = dict[str, Tensor]  # a module's own sampled tensors, (S, *shape) each


def _linear(module: Any, drawn: Drawn, count: int) -> Callable[[Tensor], Tensor]:
    weight, bias = drawn.get("weight"), drawn.get("bias")
    own_bias = module.bias if bias is None else None

    def forward(x: Tensor) -> Tensor:
        if weight is None:
            return _per_draw(functional.linear(x, module.weight), bias, count)
        rows = _by_draw(x, count).reshape(count, -1, x.shape[-1])  # (S, rows, in)
        if bias is not None:
            y = torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))
        else:
            y = torch.bmm(rows, weight.transpose(1, 2))
        y = y.view(*x.shape[:-1], weight.shape[1])
        return y if own_bias is None else y + own_bias

    return forward


def _embedding(module: Any, drawn: Drawn, count: int) -> Callable[[Tensor], Tensor]:
    if module.max_norm is not None:
        return _sliced(module, drawn, count)
    weight = drawn["weight"]  # (S, V, d)
    table = weight.reshape(-1, weight.shape[-1])

    def forward(x: Tensor) -> Tensor:
        starts = torch.arange(count, device=x.device) * weight.shape[1]
        numbers = _by_draw(x, count).reshape(count, -1) + starts[:, None]
        return functional.embedding(numbers, table).view(*x.shape, weight.shape[-1])

    return forward


def _layer_norm(module: Any, drawn: Drawn, count: int) -> Callable[[Tensor], Tensor]:
    weight, bias = drawn.get("weight"), drawn.get("bias")

    def forward(x: Tensor) -> Tensor:
        y = functional.layer_norm(x, module.normalized_shape, None, None, module.eps)
        y = y * module.weight if weight is None and module.weight is not None else _per_draw(y, weight, count, True)
        return y + module.bias if bias is None and module.bias is not None else _per_draw(y, bias, count)

    return forward


def _rms_norm(module: Any, drawn: Drawn, count: int) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return _per_draw(
            functional.rms_norm(x, module.normalized_shape, None, module.eps), drawn["weight"], count, True
        )

    return forward


def _sliced(module: Any, drawn: Drawn, count: int) -> Callable[..., Any]:
    """The module's own forward, draw by draw, each on its share of the rows."""
    plain = type(module).forward.__get__(module)
    own = {key: module._parameters.get(key, module._buffers.get(key)) for key in drawn}

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = list(tensors((args, kwargs)))
        rows = max((len(tensor) for tensor in given if tensor.ndim > 0), default=0)
        if rows == 0 or rows % count:
            raise Unstackable(f"{type(module).__name__} takes no tensor with the rows of all draws")
        share = rows // count
        outputs = []
        for s in range(count):
            mine = mapped((args, kwargs), partial(_share, rows, slice(s * share, (s + 1) * share)))
            for key, tensor in own.items():
                tensor.data = drawn[key][s]
            outputs.append(plain(*mine[0], **mine[1]))
        columns = iter([torch.cat(each) for each in zip(*(tensors(out) for out in outputs), strict=True)])
        return mapped(outputs[0], lambda _: next(columns))

    return forward


def _share(rows: int, part: slice, tensor: Tensor) -> Tensor:
    return tensor[part] if tensor.ndim > 0 and len(tensor) == rows else tensor


FORMS: dict[type[nn.Module], Callable[[Any, Drawn, int], Callable[..., Any]]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
}


def _by_draw(x: Tensor, count: int) -> Tensor:
    if x.ndim == 0 or len(x) % count:
        raise Unstackable(f"a layer got {tuple(x.shape)}, which is not {count} times the rows of a batch")
    return x.reshape(count, len(x) // count, *x.shape[1:])


def _per_draw(x: Tensor, value: Tensor | None, count: int, multiply: bool = False) -> Tensor:
    """Add to (or multiply) each draw's rows its own value, (S, *last axes)."""
    if value is None:
        return x
    split = _by_draw(x, count)
    value = value.reshape(count, *(1,) * (split.ndim - value.ndim), *value.shape[1:])
    return (split * value if multiply else split + value).view(x.shape)


def shares_most(places: Places) -> bool:
    """Say whether the model's parameters are at least twice what one draw names: passes over shared weights are saved.

    >>> model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 1))
    >>> shares_most(Places(model, {"1.weight": torch.zeros(1, 9)})), shares_most(Places(model, model.state_dict()))
    (True, False)
    """
    return sum(p.numel() * p.element_size() for p in places.model.parameters()) > 2 * places.bytes


@contextmanager
def _replaced(forms: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    try:
        for module, form in forms.items():
            module.__dict__["forward"] = form
        yield
    finally:
        for module in forms:
            module.__dict__.pop("forward", None)
