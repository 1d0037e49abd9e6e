"""Draws of a low-rank plus diagonal Gaussian over named tensors, in one pass over its statistics.

    w = mean + std z1 + sum_c columns_c z2_c          std^2 = diagonal (base + sum_c terms_c columns_c^2)

z1 and z2 are normals of `lowland.arithmetic.philox`: z1 under each tensor's own number, z2 (already scaled) under the
number 0. A draw is a pure function of the key, its index and the statistics: chunks, threads, shards and devices do not
enter. Sums run in the order written, as separate multiplications and additions.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..weights import shards
from ..weights.layout import Run
from . import kernels, philox
from .moments import first_nonfinite

WORK = 1 << 16  # elements of a temporary on the torch path
HUGE = 1 << 21  # elements from which a result is worth pages of 2 MB
PIECE = 1 << 17  # elements that one thread takes at a time on the kernel path
NATIVE = (torch.float32, torch.bfloat16)  # what the kernels read as columns and write as targets


@dataclass(frozen=True)
class Gaussian:
    """The statistics of a Gaussian over named tensors, held by reference.

    Args:
        mean: by name, (*shape), float32 or wider; DTensors are drawn shard by shard.
        base: by name, (*shape), the part of the second moment that is kept as a sum.
        columns: by name, (k, *shape), of any floating dtype, or None for a diagonal Gaussian.
        terms: k numbers, what the square of each column adds to the second moment.
        diagonal: multiplies the second moment.
        low_rank: multiplies z2, so that the columns' covariance is its square times the sum of outer products.
        block: draw z2 anew for each tensor.
    """

    mean: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    columns: Mapping[str, Tensor] | None = None
    terms: tuple[float, ...] = ()
    diagonal: float = 1.0
    low_rank: float = 1.0
    block: bool = False


class _Part(NamedTuple):
    """One tensor on this rank: local parts, row-major, with no elements elsewhere."""

    mean: Tensor  # (*shape)
    base: Tensor  # (*shape)
    columns: Tensor | None  # (k, *shape)
    target: Tensor  # (n, *shape), every draw row-major
    number: int
    runs: list[Run]
    name: str
    copied: bool  # whether the mean's memory was not row-major


@torch.no_grad()
def draw(
    gaussian: Gaussian, key: int, draws: range, out: Mapping[str, Tensor] | None = None, *, finite: bool = False
) -> dict[str, Tensor]:
    """Return the draws of these indices by name, (len(draws), *shape).

    Beside the result, at most 16 MB are held, and the copy of a tensor whose memory is not row-major.

    Args:
        gaussian: what is drawn from.
        key: from `philox.new_key`; on all ranks the same.
        draws: which draws, in steps of one.
        out: where to write, by name: (len(draws), *shape), any floating dtype, each draw contiguous; None makes
            tensors of the means' dtypes.
        finite: refuse draws that are not; a variance that overflows shows in each, so that the first is looked at.

    Raises:
        ValueError: a target is missing or has another shape, device or layout; with `finite`, a draw is not.

    >>> unit = Gaussian({"w": torch.zeros(4)}, {"w": torch.ones(4)})
    >>> five, last = draw(unit, 3, range(5)), draw(unit, 3, range(4, 5))
    >>> torch.equal(five["w"][4], last["w"][0])
    True
    """
    n = len(draws)
    if out is None:
        result = {name: _empty(mean, n) for name, mean in gaussian.mean.items()}
    else:
        result = {name: out[name] for name in gaussian.mean if name in out}
        _check(gaussian.mean, result, n)
    numbers = philox.tensor_ids(gaussian.mean)
    fast: list[_Part] = []
    for name in gaussian.mean:
        part = _part(gaussian, name, result[name], numbers[name])
        if _suits_triton(part):
            _by_triton(gaussian, key, draws, part)
        elif not _suits_kernel(part):
            _by_torch(gaussian, key, draws, part)
        elif part.copied:
            _by_kernel(gaussian, key, draws, [part], finite)  # at once, so that one copy is held at a time
            continue
        else:
            fast.append(part)
            continue
        if finite and first_nonfinite({name: part.target[:1]}) is not None:
            raise _overflowing(part)
    if fast:
        _by_kernel(gaussian, key, draws, fast, finite)
    return result


def _overflowing(part: _Part) -> ValueError:
    return ValueError(
        f"draws of {part.name} are not finite: its variance overflows {part.mean.dtype}, as after one update with very "
        "large weights. Collect anew without it, or lower the scale"
    )


def stream(
    gaussian: Gaussian, key: int, n: int, most: int = 1 << 26, *, finite: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Yield the draws 0 to n - 1 one at a time, made in groups of at most `most` bytes, or of one.

    They are the draws of `draw(gaussian, key, range(n))`, bit for bit. The tensors of a group share memory.

    >>> unit = Gaussian({"w": torch.zeros(4)}, {"w": torch.ones(4)})
    >>> torch.equal(torch.stack([w["w"] for w in stream(unit, 3, 2)]), draw(unit, 3, range(2))["w"])
    True
    """
    size = sum(shards.local(mean).numel() * mean.element_size() for mean in gaussian.mean.values())
    group = max(1, most // max(1, size))
    for first in range(0, n, group):
        made = draw(gaussian, key, range(first, min(first + group, n)), finite=finite)
        for place in range(min(group, n - first)):
            yield {name: tensor[place] for name, tensor in made.items()}


def _empty(mean: Tensor, n: int) -> Tensor:
    own = mean if type(mean) is Tensor else shards.local(mean)
    target = torch.empty((n, *own.shape), dtype=own.dtype, device=own.device)
    if target.numel() >= HUGE:
        _ask_for_huge_pages(target)
    return target if own is mean else shards.like(target, mean, leading=(n,))


def _ask_for_huge_pages(tensor: Tensor) -> None:
    """On Linux, let fresh memory come in pages of 2 MB: writing first to small ones costs more than the draw."""
    page, size = 1 << 21, tensor.numel() * tensor.element_size()
    if sys.platform != "linux" or tensor.device.type != "cpu" or size < 4 * page:
        return
    begin = -(-tensor.data_ptr() // page) * page
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    madvise(begin, (tensor.data_ptr() + size - begin) // page * page, 14)  # MADV_HUGEPAGE; a refusal changes nothing


def _check(means: Mapping[str, Tensor], targets: Mapping[str, Tensor], n: int) -> None:
    missing = [name for name in means if name not in targets]
    if missing:
        raise ValueError(f"out has no target for {missing[:5]}: pass a tensor for every name that is drawn")
    for name, mean in means.items():
        own, target = shards.local(mean), shards.local(targets[name])
        if target.shape != (n, *own.shape) or not target.is_floating_point():
            raise ValueError(
                f"out[{name!r}] must be a floating-point tensor of shape {(n, *own.shape)}, "
                f"got {target.dtype} of shape {tuple(target.shape)}"
            )
        if target.device != own.device:
            raise ValueError(f"out[{name!r}] must be on {own.device}, where the statistics are, got {target.device}")
        if not target[0].is_contiguous():
            raise ValueError(f"every draw in out[{name!r}] must be contiguous: pass torch.empty({(n, *own.shape)})")


def _part(gaussian: Gaussian, name: str, target: Tensor, number: int) -> _Part:
    mean, base, columns = gaussian.mean[name], gaussian.base[name], None
    if gaussian.columns is not None and gaussian.terms:
        columns = gaussian.columns[name]
    if type(mean) is Tensor:  # what plain tensors are spared adds up over hundreds of them
        own, runs = mean, [(0, 0, mean.numel())]
    else:
        own, base, target, runs = shards.local(mean), shards.local(base), shards.local(target), shards.runs(mean)
        columns = None if columns is None else shards.local(columns)
    if columns is not None and len(columns) != len(gaussian.terms):
        columns = columns[: len(gaussian.terms)]
    # What follows walks all of them by address.
    if base.shape != own.shape or base.device != own.device or own.is_meta:
        raise ValueError(f"the base of {name} must be like its mean, {_said(own)}, got {_said(base)}")
    if columns is not None:
        if columns.shape != (len(gaussian.terms), *own.shape) or columns.device != own.device:
            raise ValueError(
                f"{name} needs {len(gaussian.terms)} columns like its mean, {_said(own)}, got {_said(columns)}"
            )
        if not columns.is_contiguous() and columns.numel() and not columns[0].is_contiguous():
            columns = columns.contiguous()
    plain = own.contiguous()
    return _Part(plain, base.contiguous(), columns, target, number, runs, name, plain is not own)


def _said(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"


def _suits_kernel(part: _Part) -> bool:
    return (
        part.mean.is_cpu
        and part.mean.dtype == part.base.dtype == torch.float32
        and (part.columns is None or part.columns.dtype in NATIVE)
        and part.target.dtype in NATIVE
        and kernels.available()
    )


def _z2(gaussian: Gaussian, key: int, draws: range, number: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The scaled coefficients of the columns, (len(draws), k)."""
    first_block = number << 32 if gaussian.block else 0
    made = _normals(key, 0, draws, 0, len(gaussian.terms), device, first_block)
    return made.to(dtype) * gaussian.low_rank


# The torch path: any device, any floating dtype.


def _by_torch(gaussian: Gaussian, key: int, draws: range, part: _Part) -> None:
    mean, base, target = part.mean.view(-1), part.base.view(-1), part.target.reshape(len(draws), -1)
    columns = None if part.columns is None else part.columns.reshape(len(part.columns), -1)
    rows = max(1, min(len(draws), WORK // 1024))
    size = WORK // rows // philox.GROUP * philox.GROUP
    for begin, local, length in part.runs:
        for low in range(begin // size * size, begin + length, size):
            a, b = max(low, begin), min(low + size, begin + length)
            here = slice(local + a - begin, local + b - begin)
            held = None if columns is None else columns[:, here].to(mean.dtype)  # (k, b - a)
            spread = base[here].clone()
            for c, term in enumerate(gaussian.terms if held is not None else ()):
                if term and held is not None:
                    spread += held[c] * held[c] * term
            spread = philox.exact_sqrt(spread * gaussian.diagonal)
            for row in range(0, len(draws), rows):
                some = draws[row : row + rows]
                made = _normals(key, part.number, some, a, b - a, mean.device).to(mean.dtype)
                made *= spread
                made += mean[here]
                if held is not None:
                    z2 = _z2(gaussian, key, some, part.number, mean.dtype, mean.device)
                    for c in range(len(held)):
                        made += z2[:, c, None] * held[c]
                target[row : row + len(some), here] = made


def _normals(
    key: int, number: int, draws: range, start: int, length: int, device: torch.device, first_block: int = 0
) -> Tensor:
    """`philox.normals`, by the kernel where there is one."""
    if device.type != "cpu" or not kernels.available():
        return philox.normals(key, number, draws, start, length, first_block=first_block, device=device)
    from .kernels import draws as fast

    made = torch.empty((len(draws), length), dtype=torch.float32, device="cpu")
    low, high = key & philox.MASK, key >> 32
    first_block -= first_block >> 63 << 64  # the kernel's numbers are signed
    fast.normals(made.data_ptr(), 4 * length, low, high, number, draws.start, len(draws), start, length, first_block)
    return made


# The Triton path: float32 arithmetic on a GPU.


def _suits_triton(part: _Part) -> bool:
    return (
        part.mean.is_cuda
        and part.mean.dtype == part.base.dtype == torch.float32
        and importlib.util.find_spec("triton") is not None
    )


def _by_triton(gaussian: Gaussian, key: int, draws: range, part: _Part) -> None:
    from .kernels.draws_triton import draw as launch

    device = part.mean.device
    launch(
        part.mean,
        part.base,
        part.columns,
        part.target,
        torch.tensor(gaussian.terms, dtype=torch.float32, device=device),
        _z2(gaussian, key, draws, part.number, torch.float32, device).contiguous(),
        diagonal=gaussian.diagonal,
        key=key,
        draws=draws,
        number=part.number,
        runs=part.runs,
    )


# The kernel path: float32 arithmetic on the CPU.


def _by_kernel(gaussian: Gaussian, key: int, draws: range, parts: list[_Part], finite: bool) -> None:
    """All parts in as few calls as there are kinds of dtypes, shared between threads in pieces."""
    import numpy as np

    from .kernels import draws as fast

    k = len(gaussian.terms)
    terms = np.asarray(gaussian.terms, dtype=np.float32)
    if gaussian.block:
        z2 = np.empty((0, k), dtype=np.float32)
    else:
        z2 = _z2(gaussian, key, draws, 0, torch.float32, torch.device("cpu")).numpy()
    kinds: dict[tuple[bool, bool], tuple[list[tuple[int, ...]], list[_Part]]] = {}
    for part in parts:
        narrow = part.columns is not None and part.columns.dtype == torch.bfloat16
        pieces, owners = kinds.setdefault((narrow, part.target.dtype == torch.bfloat16), ([], []))
        pieces += _pieces(part)
        owners += [part] * (len(pieces) - len(owners))
    for (narrow_columns, narrow_targets), (pieces, owners) in kinds.items():
        table = np.asarray(pieces, dtype=np.int64).reshape(-1, fast.FIELDS)
        common = (
            key & philox.MASK,
            key >> 32,
            draws.start,
            len(draws),
            terms,
            np.float32(gaussian.diagonal),
            z2,
            np.float32(gaussian.low_rank),
            narrow_columns,
            narrow_targets,
            finite,
        )
        shares = _shares([piece[-1] for piece in pieces])
        bad = [row for row in kernels.run(fast.draw, [(table, *share, *common) for share in shares]) if row >= 0]
        if bad:
            raise _overflowing(owners[min(bad)])


def _pieces(part: _Part) -> Iterator[tuple[int, ...]]:
    """Rows of the kernel's table: at most PIECE elements each, cut where the whole tensor's groups end."""
    mean, base, target = part.mean.data_ptr(), part.base.data_ptr(), part.target.data_ptr()
    columns, pitch, wide = 0, 0, 0
    if part.columns is not None:
        wide = part.columns.element_size()
        columns, pitch = part.columns.data_ptr(), part.columns.stride(0) * wide
    out = part.target.element_size()
    stride = part.target.stride(0) * out
    for begin, local, length in part.runs:
        for low in range(begin // PIECE * PIECE, begin + length, PIECE):
            a, b = max(low, begin), min(low + PIECE, begin + length)
            c, d = 4 * (local + a - begin), out * (local + a - begin)
            at = columns + wide * (local + a - begin)
            yield mean + c, base + c, at, pitch, target + d, stride, part.number, a, b - a


def _shares(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring rows of about PIECE elements together, as `(first, last)`."""
    first, held = 0, 0
    for place, length in enumerate(lengths):
        if held and held + length > PIECE:
            yield first, place
            first, held = place, 0
        held += length
    if lengths:
        yield first, len(lengths)
