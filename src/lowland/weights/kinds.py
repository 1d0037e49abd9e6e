"""What kind of tensor a weight is: whether it has values here, whether they can be averaged, where they can be written.

Everything that takes weights asks here first, so that a stranger is refused by its name, before anything is changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .selection import Weights, constrained
from .shards import check_placements, is_sharded, local

FEW = 16  # integers: counters are fewer than that, codes of a quantised weight are more
CODES = {torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32}
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def check_tensors(weights: Weights, what: str = "") -> None:
    """Refuse what is no mapping from texts to dense tensors with values.

    Raises:
        ValueError: so it is; the message begins with `what` and names the tensors and their kind.

    >>> check_tensors({"w": torch.zeros(2)})
    >>> check_tensors({"w": [1.0]}, "the weights")
    Traceback (most recent call last):
    ...
    ValueError: the weights: ['w'] are no tensors but list: pass torch.as_tensor of them
    """
    lead = f"{what}: " if what else ""
    given: object = weights
    if not isinstance(given, Mapping):
        raise ValueError(f"{lead}wanted a mapping from names to tensors, got {type(given).__name__}")
    unnamed = [name for name in weights if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f"{lead}names of tensors must be texts, got {unnamed[:5]}")
    _refuse({name: _absent(tensor) for name, tensor in weights.items()}, lead, "")


def check_kinds(
    weights: Weights, what: str = "", way_out: str = ", or leave them out with select=", *, vectors: bool = True
) -> None:
    """Refuse tensors that cannot be averaged or moved along a line, and shards that are partial sums.

    Args:
        vectors: whether the unit vectors of spectral norm are among those that cannot.

    Raises:
        ValueError: there are some; the message begins with `what` and names them, their kind, and what to do.

    >>> check_kinds({"w": torch.zeros(2)})
    >>> check_kinds({"w": torch.zeros(2, dtype=torch.complex64)})
    Traceback (most recent call last):
    ...
    ValueError: ['w'] are complex: pass torch.view_as_real of them, or leave them out with select=
    """
    check_tensors(weights, what)
    lead = f"{what}: " if what else ""
    _refuse({name: unfit(tensor) for name, tensor in weights.items()}, lead, way_out)
    units = constrained(weights) if vectors else []
    if units:
        raise ValueError(
            f"{lead}{units[:5]} are unit vectors that spectral norm keeps, whose average is none: leave them out "
            "with select=, and run a forward pass in train mode with the average in the model, which estimates them "
            "anew"
        )
    check_placements(weights)


def check_same_kinds(expected: Weights, got: Weights, what: str) -> None:
    """Refuse whole numbers where floating-point ones were expected, and the other way round.

    Raises:
        ValueError: there are some; the message begins with `what` and names the tensor.

    >>> check_same_kinds({"w": torch.zeros(2)}, {"w": torch.ones(2)}, "update")
    """
    for name, tensor in expected.items():
        one, two = tensor.dtype, got[name].dtype
        if one != two and (one.is_floating_point, one.is_complex) != (two.is_floating_point, two.is_complex):
            raise ValueError(f"{what}: {name} is of {two} where {one} was expected: give numbers of one kind")


def check_same_codes(expected: Weights, got: Weights, what: str) -> None:
    """Refuse many small integers that are not those expected: codes of a quantised weight have no mean and no middle.

    Raises:
        ValueError: some differ; the message begins with `what` and names them.

    >>> check_same_codes({"w": torch.zeros(64, dtype=torch.int8)}, {"w": torch.zeros(64, dtype=torch.int8)}, "soup")
    """
    both = {name: (tensor, got[name]) for name, tensor in expected.items() if is_table(tensor) and is_table(got[name])}
    differ = [
        name for name, (one, two) in both.items() if not torch.equal(local(one), local(two).to(local(one).device))
    ]
    if differ:
        raise ValueError(
            f"{what}: {differ[:5]} hold other integers: codes of a quantised weight have no average; dequantise them "
            "first, or leave them out"
        )


def is_table(tensor: Tensor) -> bool:
    """Say whether a tensor is many small integers, which may be codes of a quantised weight.

    >>> is_table(torch.zeros(64, dtype=torch.int8)), is_table(torch.tensor(3))
    (True, False)
    """
    return tensor.dtype in CODES and tensor.numel() > FEW and not tensor.is_meta


def check_writable(targets: Weights, weights: Weights, what: str) -> None:
    """Refuse weights that cannot be written into the tensors of the same names without becoming other numbers.

    Raises:
        ValueError: a kind that has no cast to the target's, a value beyond its range, or a target that cannot be
            written into; the message begins with `what` and names the tensor.

    >>> check_writable({"w": torch.zeros(2)}, {"w": torch.ones(2)}, "writing")
    >>> check_writable({"w": torch.zeros(2).half()}, {"w": torch.full((2,), 1e6)}, "writing")
    Traceback (most recent call last):
    ...
    ValueError: writing: w holds numbers beyond the range of torch.float16, in which they would be infinite
    """
    check_tensors(targets, what)
    check_tensors(weights, what)
    for name, target in targets.items():
        weight = weights[name]
        reason = _misfit(weight.dtype, target.dtype) or _unwritable(target)
        if reason is not None:
            raise ValueError(f"{what}: {name} {reason}")
    beyond = _beyond(targets, weights)
    if beyond is not None:
        raise ValueError(
            f"{what}: {beyond} holds numbers beyond the range of {targets[beyond].dtype}, in which they would be "
            "infinite"
        )


def unfit(tensor: Tensor) -> str | None:
    """Return why a tensor cannot be averaged and what to do, or None.

    >>> unfit(torch.zeros(2)), unfit(torch.zeros(2, dtype=torch.complex64))
    (None, 'complex: pass torch.view_as_real of them')
    """
    absent = _absent(tensor)
    if absent is not None:
        return absent
    if tensor.is_complex():
        return "complex: pass torch.view_as_real of them"
    if tensor.is_floating_point() and tensor.dtype not in FLOATS:
        return f"of {tensor.dtype}, which means nothing without its scales: pass tensor.float() of what is dequantised"
    if hasattr(type(tensor), "__tensor_flatten__") and not is_sharded(tensor):
        return f"of the type {type(tensor).__name__}, whose values lie in parts: pass tensor.dequantize() of them"
    if isinstance(tensor, nn.Parameter) and tensor.dtype in CODES and tensor.numel() > FEW:
        return f"parameters of {tensor.dtype}, codes of a quantised weight: dequantise them"
    return None


def _absent(tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"no tensors but {type(tensor).__name__}: pass torch.as_tensor of them"
    if tensor.is_nested:
        return "nested tensors: pass dense ones"
    if tensor.is_meta:
        return "on the meta device, without values: load them first"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype}): pass tensor.dequantize()"
    if tensor.layout != torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.')} tensors: pass dense ones"
    return None


def _refuse(kinds: Mapping[str, str | None], lead: str, way_out: str) -> None:
    found: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        if kind is not None:
            found.setdefault(kind, []).append(name)
    for kind, names in found.items():
        raise ValueError(f"{lead}{names[:5]} are {kind}{way_out}")


def _misfit(given: torch.dtype, wanted: torch.dtype) -> str | None:
    """Why numbers of one dtype are not those of another after a cast."""
    if given == wanted:
        return None
    if given.is_complex and not wanted.is_complex:
        return f"is complex, the model's is {wanted}, which holds no imaginary parts"
    for kind, side in ((given, "is"), (wanted, "is in the model")):
        if kind.is_floating_point and kind not in FLOATS:
            return f"{side} of {kind}, which means nothing without its scales: dequantise it"
    if given.is_floating_point and not wanted.is_floating_point and not wanted.is_complex:
        return f"is of {given}, the model's of {wanted}, which holds no fractions"
    if given in CODES and wanted.is_floating_point:
        return f"is of {given}, the model's of {wanted}: codes of a quantised weight are not its numbers"
    return None


def _unwritable(target: Tensor) -> str | None:
    if is_sharded(target):
        return None
    if target.is_inference() and not torch.is_inference_mode_enabled():
        return "was made in inference mode and cannot be written outside it: make the model without inference_mode"
    if not target.is_contiguous() and _overlaps(target):
        return "is expanded in the model, several places of it one memory: give the model a .clone() of it"
    return None


def _overlaps(tensor: Tensor) -> bool:
    """Whether two places of a tensor may be one place of memory."""
    room = 0
    for stride, size in sorted((step, n) for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride <= room:
            return True
        room += (size - 1) * stride
    return False


def _beyond(targets: Weights, weights: Weights) -> str | None:
    """The first tensor with a finite number that its target's dtype would make infinite."""
    narrow = [
        name
        for name, target in targets.items()
        if (target.dtype == torch.float16 or weights[name].dtype == torch.float64)
        and target.dtype in FLOATS - {weights[name].dtype}
        and weights[name].is_floating_point()
        and weights[name].numel()
        and not is_sharded(weights[name])
    ]
    if not narrow:
        return None
    sizes = [(weights[name].detach().abs(), _largest(targets[name].dtype)) for name in narrow]
    found = [((size >= most) & size.isfinite()).any().cpu() for size, most in sizes]  # one wait for all
    return next((name for name, beyond in zip(narrow, torch.stack(found).tolist(), strict=True) if beyond), None)


def _largest(dtype: torch.dtype) -> float:
    """The smallest number that rounds to infinity."""
    info = torch.finfo(dtype)
    return info.max * (1 + info.eps / 4)
