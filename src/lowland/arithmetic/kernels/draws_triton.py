"""The draw of a low-rank Gaussian on a GPU, one Triton kernel a tensor: the arithmetic of `lowland.arithmetic.philox`.

Products and sums are not fused (`enable_fp_fusion=False`) and roots are rounded, so that the bits are those of the
other paths. A program holds the statistics of its elements while it makes all draws, and reads the columns again.

Run so far: in Triton's interpreter (TRITON_INTERPRET=1) on a CPU, where it equals the torch path bit for bit
(`tests/test_draws_triton.py`). Not run: on a GPU, neither for its bits nor for its speed.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.random import philox_impl

from ..philox import BLOCKS, COS, GROUP, LOG, MASK, MINUS_2_LOG_2, ROOT_HALF_BITS, SIN

_L0, _L1, _L2, _L3, _L4, _L5, _L6 = (tl.constexpr(number) for number in LOG)
_C0, _C1, _C2 = (tl.constexpr(number) for number in COS)
_S0, _S1, _S2, _S3 = (tl.constexpr(number) for number in SIN)
_LOG_2 = tl.constexpr(MINUS_2_LOG_2)
_ROOT = tl.constexpr(ROOT_HALF_BITS)
_GROUP, _BLOCKS = tl.constexpr(GROUP), tl.constexpr(BLOCKS)
_FINE, _HALF = tl.constexpr(2.0**-32), tl.constexpr(2.0**-33)
PROGRAM = 64  # Philox blocks of a program: 256 elements

_jit: Any = triton.jit


@_jit
def _box_muller(a, b):  # type: ignore[no-untyped-def]
    u = a.to(tl.float32) * _FINE + _HALF
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - _ROOT) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    y = f * _L6 + _L5
    y = y * f + _L4
    y = y * f + _L3
    y = y * f + _L2
    y = y * f + _L1
    y = y * f + _L0
    y = y * f * square + square
    y = y + f * -2.0
    y = y + exponent.to(tl.float32) * _LOG_2
    r = tl.sqrt_rn(y)
    t = (b << 2).to(tl.int32, bitcast=True).to(tl.float32) * _FINE
    z = t * t
    cosine = r * (((z * _C2 + _C1) * z + _C0) * z + 1.0)
    sine = r * ((((z * _S3 + _S2) * z + _S1) * z + _S0) * t)
    cosine = tl.where((b >> 31) != 0, -cosine, cosine)
    swap = ((b >> 30) & 1) != 0
    return tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)


@_jit  # type: ignore[untyped-decorator]
def _spread(base, columns, terms, at, inside, pitch, diagonal, held: tl.constexpr):  # type: ignore[no-untyped-def]
    """The standard deviations of the elements at `at`."""
    total = tl.load(base + at, mask=inside, other=0.0)
    for c in range(held):
        column = tl.load(columns + c * pitch + at, mask=inside, other=0.0).to(tl.float32)
        term = tl.load(terms + c)
        total = tl.where(term != 0.0, total + column * column * term, total)
    return tl.sqrt_rn(total * diagonal)


@_jit  # type: ignore[untyped-decorator]
def _finish(  # type: ignore[no-untyped-def]
    z1, mean, std, columns, z2, target, at, inside, pitch, held: tl.constexpr
):
    """One lane of one draw: the sum, and its store."""
    total = mean + std * z1
    for c in range(held):
        column = tl.load(columns + c * pitch + at, mask=inside, other=0.0).to(tl.float32)
        total = total + column * tl.load(z2 + c)
    tl.store(target + at, total.to(target.dtype.element_ty), mask=inside)


@_jit  # type: ignore[untyped-decorator]
def _draw(  # type: ignore[no-untyped-def]
    mean,
    base,
    columns,
    target,
    terms,
    z2,
    diagonal,
    pitch,
    stride,
    key_low,
    key_high,
    first_draw,
    draws,
    number,
    start,
    local,
    length,
    held: tl.constexpr,
    program: tl.constexpr,
):
    far = tl.program_id(0).to(tl.int64) * 0  # 64 bits: thirty draws of a large tensor do not fit in 32
    pitch, stride = far + pitch, far + stride
    wide = tl.full([program], 0, tl.int64)
    block = (start // _GROUP * _BLOCKS + wide) + tl.program_id(0) * program + tl.arange(0, program)
    element = block // _BLOCKS * _GROUP + block % _BLOCKS  # of lane 0; the next lanes are 16 elements apart
    last = start + wide + length
    in0 = (element >= start) & (element < last)
    in1 = (element + 16 >= start) & (element + 16 < last)
    in2 = (element + 32 >= start) & (element + 32 < last)
    in3 = (element + 48 >= start) & (element + 48 < last)
    at0 = element - start + local
    at1, at2, at3 = at0 + 16, at0 + 32, at0 + 48
    std0 = _spread(base, columns, terms, at0, in0, pitch, diagonal, held)
    std1 = _spread(base, columns, terms, at1, in1, pitch, diagonal, held)
    std2 = _spread(base, columns, terms, at2, in2, pitch, diagonal, held)
    std3 = _spread(base, columns, terms, at3, in3, pitch, diagonal, held)
    mean0 = tl.load(mean + at0, mask=in0, other=0.0)
    mean1 = tl.load(mean + at1, mask=in1, other=0.0)
    mean2 = tl.load(mean + at2, mask=in2, other=0.0)
    mean3 = tl.load(mean + at3, mask=in3, other=0.0)
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = ((block >> 32) & 0xFFFFFFFF).to(tl.uint32)
    tensor = (wide + number).to(tl.uint32)
    k0, k1 = (wide + key_low).to(tl.uint32), (wide + key_high).to(tl.uint32)
    for i in range(draws):
        draw = (wide + first_draw + i).to(tl.uint32)
        a, b, c, d = philox_impl(low, high, draw, tensor, k0, k1)
        z0, z1 = _box_muller(a, b)
        z2_, z3 = _box_muller(c, d)
        row, factors = target + i * stride, z2 + i * held
        _finish(z0, mean0, std0, columns, factors, row, at0, in0, pitch, held)
        _finish(z1, mean1, std1, columns, factors, row, at1, in1, pitch, held)
        _finish(z2_, mean2, std2, columns, factors, row, at2, in2, pitch, held)
        _finish(z3, mean3, std3, columns, factors, row, at3, in3, pitch, held)


def draw(
    mean: Tensor,
    base: Tensor,
    columns: Tensor | None,
    target: Tensor,
    terms: Tensor,
    z2: Tensor,
    *,
    diagonal: float,
    key: int,
    draws: range,
    number: int,
    runs: list[tuple[int, int, int]],
) -> None:
    """Make the draws of one tensor, all on one device.

    Args:
        mean: (*shape), float32, contiguous; base likewise.
        columns: (k, *shape) of any floating dtype, each contiguous, or None.
        target: (len(draws), *shape) of any floating dtype, each contiguous.
        terms: (k,) float32, what each column's square adds to the second moment.
        z2: (len(draws), k) float32, contiguous, already scaled.
        diagonal: multiplies the second moment.
        key: of `philox`; so are `draws` and the tensor's number.
        runs: what `shards.runs` gives.
    """
    held = 0 if columns is None else len(columns)
    per = PROGRAM // BLOCKS * GROUP
    for start, local, length in runs:
        covered = start + length - start // GROUP * GROUP
        _draw[(-(-covered // per),)](
            mean,
            base,
            mean if columns is None else columns,
            target,
            terms,
            z2,
            diagonal,
            0 if columns is None else columns.stride(0),
            target.stride(0),
            key & MASK,
            key >> 32,
            draws.start,
            len(draws),
            number,
            start,
            local,
            length,
            held=held,
            program=PROGRAM,
            enable_fp_fusion=False,
        )
