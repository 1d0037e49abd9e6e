"""The draw of a low-rank Gaussian on the CPU, as numba kernels: normals and sums in one pass over the statistics.

The arithmetic is that of `lowland.arithmetic.philox`, bit for bit. The inner block of 64 normals is written as LLVM
vectors of 16 (`_words`, `_normal`): numba's own loops leave the 32-bit by 32-bit products of Philox in slower forms.
LLVM splits the vectors where the machine's are shorter, and fuses no multiplication with an addition, as none is marked
for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils as _untyped

from ..philox import BLOCKS, COS, GROUP, LOG, MASK, MINUS_2_LOG_2, MULTIPLIERS, ROOT_HALF_BITS, ROUNDS, SIN, WEYL
from .addresses import intrinsic, pointer
from .updates import BFLOAT16, EXPONENTS, FLOAT32, largest

cgutils: Any = _untyped

CHUNK = 256  # elements whose statistics, at rank 20, lie in a first cache of 32 KB while all draws are made
FIELDS = 9  # mean, base, columns, bytes to the next column, target, bytes to the next draw, tensor, start, length

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_WIDE = ir.VectorType(_I64, 8)  # a 32-bit number in the low half of each: the products need no shuffles
_INTS = ir.VectorType(_I32, BLOCKS)
_FLOATS = ir.VectorType(_F32, BLOCKS)
_SHORTS = ir.VectorType(_I16, BLOCKS)


def _all(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _splat(builder: Any, scalar: Any, vector: ir.VectorType) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), _all(ir.VectorType(_I32, vector.count), 0))


def _number(value: Any, number: int) -> ir.Constant:
    return _all(value.type, number) if isinstance(value.type, ir.VectorType) else ir.Constant(value.type, number)


def _xor(builder: Any, a: Any, b: Any) -> Any:
    if a.type != b.type:  # what is equal in all blocks stays a scalar until it meets what is not
        a = a if isinstance(a.type, ir.VectorType) else _splat(builder, a, _WIDE)
        b = b if isinstance(b.type, ir.VectorType) else _splat(builder, b, _WIDE)
    return builder.xor(a, b)


def _words(builder: Any, key: tuple[Any, Any], counter: tuple[Any, Any, Any, Any]) -> list[Any]:
    """The four words of 8 blocks, in the low halves of 64-bit lanes; a counter word is a vector or a scalar (i64)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first = builder.mul(builder.and_(c0, _number(c0, MASK)), _number(c0, MULTIPLIERS[0]))
        second = builder.mul(builder.and_(c2, _number(c2, MASK)), _number(c2, MULTIPLIERS[1]))
        c0 = _xor(builder, _xor(builder, builder.lshr(second, _number(second, 32)), c1), k0)
        c2 = _xor(builder, _xor(builder, builder.lshr(first, _number(first, 32)), c3), k1)
        # The high halves hold rubbish from here on: the masks above and the truncation at the end remove it.
        c1, c3 = second, first
        k0 = builder.add(k0, ir.Constant(_I64, WEYL[0]))
        k1 = builder.add(k1, ir.Constant(_I64, WEYL[1]))
    return [c0, c1, c2, c3]


def _horner(builder: Any, coefficients: tuple[float, ...], x: Any) -> Any:
    result = builder.fadd(builder.fmul(x, _all(_FLOATS, coefficients[-1])), _all(_FLOATS, coefficients[-2]))
    for coefficient in coefficients[-3::-1]:
        result = builder.fadd(builder.fmul(result, x), _all(_FLOATS, coefficient))
    return result


def _box_muller(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """`philox.box_muller` on vectors of 16."""

    def times(x: Any, number: float) -> Any:
        return builder.fmul(x, _all(_FLOATS, number))

    u = builder.fadd(times(builder.uitofp(a, _FLOATS), 2.0**-32), _all(_FLOATS, 2.0**-33))
    bits = builder.bitcast(u, _INTS)
    exponent = builder.ashr(builder.sub(bits, _all(_INTS, ROOT_HALF_BITS)), _all(_INTS, 23))
    mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, _all(_INTS, 23))), _FLOATS)
    f = builder.fsub(mantissa, _all(_FLOATS, 1.0))
    square = builder.fmul(f, f)
    y = builder.fadd(builder.fmul(builder.fmul(_horner(builder, LOG, f), f), square), square)
    y = builder.fadd(y, times(f, -2.0))
    y = builder.fadd(y, times(builder.sitofp(exponent, _FLOATS), MINUS_2_LOG_2))
    kind = ir.FunctionType(_FLOATS, [_FLOATS])
    r = builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.sqrt.v16f32"), [y])
    t = times(builder.sitofp(builder.shl(b, _all(_INTS, 2)), _FLOATS), 2.0**-32)
    z = builder.fmul(t, t)
    cosine = builder.fmul(r, builder.fadd(builder.fmul(_horner(builder, COS, z), z), _all(_FLOATS, 1.0)))
    sine = builder.fmul(r, builder.fmul(_horner(builder, SIN, z), t))
    sign = builder.and_(b, _all(_INTS, 1 << 31))
    cosine = builder.bitcast(builder.xor(builder.bitcast(cosine, _INTS), sign), _FLOATS)
    swap = builder.icmp_signed("<", builder.shl(b, _all(_INTS, 1)), _all(_INTS, 0))
    return builder.select(swap, sine, cosine), builder.select(swap, cosine, sine)


def _group(builder: Any, key: tuple[Any, Any], block: Any, draw: Any, tensor: Any) -> list[Any]:
    """64 normals, as four vectors of 16 in the order of the elements; `block` is a multiple of 16."""
    mask = ir.Constant(_I64, MASK)
    low, high = builder.and_(block, mask), builder.lshr(block, ir.Constant(_I64, 32))
    halves = []
    for offset in (0, 8):
        blocks = builder.add(_splat(builder, low, _WIDE), ir.Constant(_WIDE, list(range(offset, offset + 8))))
        halves.append(_words(builder, key, (blocks, high, draw, tensor)))
    narrow = ir.VectorType(_I32, 8)
    both = ir.Constant(_INTS, list(range(16)))
    words = [
        builder.shuffle_vector(builder.trunc(one, narrow), builder.trunc(two, narrow), both)
        for one, two in zip(*halves, strict=True)
    ]
    return [*_box_muller(builder, words[0], words[1]), *_box_muller(builder, words[2], words[3])]


def _at(builder: Any, address: Any, kind: Any, offset: int = 0) -> Any:
    """A pointer to a vector `offset` bytes after an integer address."""
    return builder.inttoptr(builder.add(address, ir.Constant(_I64, offset)), kind.as_pointer())


def _load(builder: Any, address: Any, offset: int) -> Any:
    return builder.load(_at(builder, address, _FLOATS, offset), align=4)


def _store_bfloat16(builder: Any, value: Any, address: Any, offset: int) -> None:
    bits = builder.bitcast(value, _INTS)
    odd = builder.and_(builder.lshr(bits, _all(_INTS, 16)), _all(_INTS, 1))
    rounded = builder.lshr(builder.add(builder.add(bits, odd), _all(_INTS, 0x7FFF)), _all(_INTS, 16))
    rounded = builder.select(builder.fcmp_unordered("uno", value, value), _all(_INTS, 0x7FC0), rounded)
    builder.store(builder.trunc(rounded, _SHORTS), _at(builder, address, _SHORTS, offset), align=2)


@intrinsic  # type: ignore[untyped-decorator]
def _normals64(typingctx: Any, target: Any, k0: Any, k1: Any, block: Any, draw: Any, tensor: Any) -> Any:
    """Write the 64 normals of 16 blocks to the float32 address `target`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, k0, k1, block, draw, tensor = args
        for lane, value in enumerate(_group(builder, (k0, k1), block, draw, tensor)):
            builder.store(value, _at(builder, target, _FLOATS, 64 * lane), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _draw64(
    typingctx: Any,
    target: Any,
    bfloat16: Any,
    mean: Any,
    std: Any,
    columns: Any,
    pitch: Any,
    z2: Any,
    held: Any,
    k0: Any,
    k1: Any,
    block: Any,
    draw: Any,
    tensor: Any,
) -> Any:
    """Write `mean + std z1 + sum_c columns_c z2_c` of 64 elements; all but the numbers at the end are addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, bfloat16, mean, std, columns, pitch, z2, held, k0, k1, block, draw, tensor = args
        sums = []
        for lane, z1 in enumerate(_group(builder, (k0, k1), block, draw, tensor)):
            spread = builder.fmul(_load(builder, std, 64 * lane), z1)
            total = builder.fadd(_load(builder, mean, 64 * lane), spread)
            sums.append(cgutils.alloca_once_value(builder, total))
        with cgutils.for_range(builder, held) as loop:
            column = builder.add(columns, builder.mul(loop.index, pitch))
            place = builder.add(z2, builder.mul(loop.index, ir.Constant(_I64, 4)))
            factor = _splat(builder, builder.load(builder.inttoptr(place, _F32.as_pointer()), align=4), _FLOATS)
            for lane, total in enumerate(sums):
                part = builder.fmul(_load(builder, column, 64 * lane), factor)
                builder.store(builder.fadd(builder.load(total), part), total)
        with builder.if_else(builder.icmp_signed("!=", bfloat16, ir.Constant(_I64, 0))) as (short, full):
            with short:
                for lane, total in enumerate(sums):
                    _store_bfloat16(builder, builder.load(total), target, 32 * lane)
            with full:
                for lane, total in enumerate(sums):
                    builder.store(builder.load(total), _at(builder, target, _FLOATS, 64 * lane), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 13), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the line at an address, which need not be one of ours."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(_I32, hint) for hint in (0, 2, 1)]  # to read, second level, data
        builder.call(ask, [builder.inttoptr(args[0], cgutils.voidptr_t), *hints])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit(nogil=True, cache=True)
def normals(
    target: int,
    stride: int,
    k0: int,
    k1: int,
    tensor: int,
    first_draw: int,
    draws: int,
    start: int,
    length: int,
    block: int,
) -> None:
    """`philox.normals` into float32 memory: `stride` bytes lie between draws, `block` is added to every block."""
    aside = np.empty(GROUP, np.float32)
    low = start // GROUP * GROUP
    stop = start + length
    for draw in range(draws):
        row = target + draw * stride
        for position in range(low, stop, GROUP):
            number = block + position // GROUP * BLOCKS
            if position >= start and position + GROUP <= stop:
                _normals64(row + 4 * (position - start), k0, k1, number, first_draw + draw, tensor)
            else:
                _normals64(aside.ctypes.data, k0, k1, number, first_draw + draw, tensor)
                a, b = max(position, start), min(position + GROUP, stop)
                whole = carray(pointer(row), (length,), np.float32)
                for element in range(a, b):
                    whole[element - start] = aside[element - position]


@njit(nogil=True, cache=True)
def _statistics(
    mean: int,
    base: int,
    columns: int,
    pitch: int,
    narrow: bool,
    terms: Any,
    ratio: float,
    local: int,
    count: int,
    scratch: int,
    place: int,
) -> None:
    """Bring `count` elements from `local` on into the scratch: means, standard deviations, columns in float32."""
    held = len(terms)
    means = carray(pointer(scratch + 4 * place), (count,), np.float32)
    spread = carray(pointer(scratch + 4 * (CHUNK + place)), (count,), np.float32)
    source = carray(pointer(mean + 4 * local), (count,), np.float32)
    squares = carray(pointer(base + 4 * local), (count,), np.float32)
    for j in range(count):
        means[j] = source[j]
        spread[j] = squares[j]
    for c in range(held):
        at = scratch + 4 * ((c + 2) * CHUNK + place)
        size = 2 if narrow else 4
        ahead = columns + c * pitch + size * (local + count)
        for line in range(0, size * CHUNK, 64):
            _prefetch(ahead + line)
        column = carray(pointer(at), (count,), np.float32)
        if narrow:
            bits = carray(pointer(at), (count,), np.uint32)
            short = carray(pointer(columns + c * pitch + 2 * local), (count,), np.uint16)
            for j in range(count):
                bits[j] = np.uint32(short[j]) << np.uint32(16)
        else:
            full = carray(pointer(columns + c * pitch + 4 * local), (count,), np.float32)
            for j in range(count):
                column[j] = full[j]
        term = terms[c]
        if term != np.float32(0.0):
            for j in range(count):
                spread[j] += term * (column[j] * column[j])
    for j in range(count):
        spread[j] = np.sqrt(spread[j] * ratio)


@njit(nogil=True, cache=True)
def draw(
    rows: Any,
    first: int,
    last: int,
    k0: int,
    k1: int,
    first_draw: int,
    draws: int,
    terms: Any,
    ratio: float,
    z2: Any,
    block_scale: float,
    narrow_columns: bool,
    narrow_targets: bool,
    finite: bool,
) -> int:
    """Make the draws of the pieces `first` to `last`; return the first whose first draw is not finite, or -1.

    Args:
        rows: (pieces, FIELDS) addresses, pitches in bytes, the tensor's number, the first element in the whole tensor
            and the length. Addresses are those of the piece's first element.
        terms: (k,) float32, what each column's square adds to the second moment; k is the number of columns.
        ratio: float32, multiplies the second moment.
        z2: (draws, k) float32, already scaled; (0, k) draws it anew for each tensor.
        block_scale: float32, scales those.
        finite: look whether the first draw is finite, while it is in a core's own cache.
    """
    bad = -1
    kind = BFLOAT16 if narrow_targets else FLOAT32
    held = len(terms)
    block = len(z2) < draws
    memory = np.empty((held + 2) * CHUNK + GROUP + 16, np.float32)
    scratch = (memory.ctypes.data + 63) // 64 * 64
    aside = scratch + 4 * (held + 2) * CHUNK
    own = np.empty((draws if block else 1, max(1, held)), np.float32)
    size = 2 if narrow_targets else 4
    for piece in range(first, last):
        mean, base, columns, pitch = rows[piece, 0], rows[piece, 1], rows[piece, 2], rows[piece, 3]
        target, stride, tensor = rows[piece, 4], rows[piece, 5], rows[piece, 6]
        start, length = rows[piece, 7], rows[piece, 8]
        stop = start + length
        factors, step = z2.ctypes.data, 4 * held
        if block and held:
            factors = own.ctypes.data
            normals(factors, step, k0, k1, 0, first_draw, draws, 0, held, tensor << 32)
            for i in range(draws):
                for c in range(held):
                    own[i, c] *= block_scale
        for low in range(start // CHUNK * CHUNK, stop, CHUNK):
            a, b = max(low, start), min(low + CHUNK, stop)
            _statistics(mean, base, columns, pitch, narrow_columns, terms, ratio, a - start, b - a, scratch, a - low)
            for i in range(draws):
                for position in range(a // GROUP * GROUP, b, GROUP):
                    place = scratch + 4 * (position - low)
                    whole = position >= a and position + GROUP <= b
                    to = target + i * stride + size * (position - start) if whole else aside
                    _draw64(
                        to,
                        narrow_targets,
                        place,
                        place + 4 * CHUNK,
                        place + 8 * CHUNK,
                        4 * CHUNK,
                        factors + i * step,
                        held,
                        k0,
                        k1,
                        position // GROUP * BLOCKS,
                        first_draw + i,
                        tensor,
                    )
                    if not whole:
                        c, d = max(position, a), min(position + GROUP, b)
                        if narrow_targets:
                            shorts = carray(pointer(target + i * stride), (length,), np.uint16)
                            made = carray(pointer(aside), (GROUP,), np.uint16)
                            for element in range(c, d):
                                shorts[element - start] = made[element - position]
                        else:
                            floats = carray(pointer(target + i * stride), (length,), np.float32)
                            values = carray(pointer(aside), (GROUP,), np.float32)
                            for element in range(c, d):
                                floats[element - start] = values[element - position]
            if finite and bad < 0 and largest(kind, b - a, target + size * (a - start)) >= EXPONENTS[kind]:
                bad = piece
    memory[0] = 0.0  # numba frees an array after its last use, and the addresses above are no use of it
    return bad
