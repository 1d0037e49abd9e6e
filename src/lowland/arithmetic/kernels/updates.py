"""One pass over many tensors: mean, second moment and deviations of one update, and the check for finite values.

    mean += weight (w - mean)         dev = w - mean (new)         base += factor dev^2         column = dev

A kernel takes addresses and walks blocks of at most `BLOCK` elements, so that 192 small tensors and one of 1 GB are
both cut into parts of equal work. Each step is written on vectors of 16 elements: columns are stored past the cache
(nobody reads them before the next draw), which saves reading what is about to be overwritten, and compilers do not do
it by themselves. Multiply and add are fused as torch's own kernels fuse them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils as untyped_cgutils

from .addresses import intrinsic, pointer

cgutils: Any = untyped_cgutils

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
SIZES = (4, 2, 2)
LANES = 16

# What happens to the second moment and the column.
MODES = MEAN, SQUARES, COLUMN, EVICT, ROUNDED = range(5)
PAST_CACHE = (COLUMN, ROUNDED)
EXPONENTS = (0x7F800000, 0x7F80, 0x7C00)


def _vector(element: ir.Type, lanes: int) -> ir.Type:
    return ir.VectorType(element, lanes)


class _Emit:
    """Writes the steps of one vector into a function that is being compiled."""

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.floats = _vector(ir.FloatType(), lanes)
        self.words = _vector(ir.IntType(32), lanes)
        self.halves = _vector(ir.IntType(16), lanes)

    def pointer(self, address: ir.Value, kind: ir.Type) -> ir.Value:
        return self.builder.inttoptr(address, kind.as_pointer())

    def word(self, value: int) -> ir.Constant:
        return ir.Constant(self.words, [value] * self.lanes)

    def splat(self, value: ir.Value) -> ir.Value:
        empty = ir.Constant(_vector(value.type, self.lanes), ir.Undefined)
        one = self.builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(self.words, [0] * self.lanes)
        return self.builder.shuffle_vector(one, empty, zeros)

    def load(self, address: ir.Value, kind: int) -> ir.Value:
        """16 numbers of any of the three kinds as float32."""
        if kind == FLOAT32:
            return self.builder.load(self.pointer(address, self.floats), align=4)
        if kind == FLOAT16:
            small = self.builder.load(self.pointer(address, _vector(ir.HalfType(), self.lanes)), align=2)
            return self.builder.fpext(small, self.floats)
        bits = self.builder.load(self.pointer(address, self.halves), align=2)
        return self.builder.bitcast(self.builder.shl(self.builder.zext(bits, self.words), self.word(16)), self.floats)

    def store(self, value: ir.Value, address: ir.Value, past_cache: bool = False) -> None:
        size = value.type.element.width // 8 if isinstance(value.type.element, ir.IntType) else 4
        align = size * self.lanes if past_cache else size
        done = self.builder.store(value, self.pointer(address, value.type), align=align)
        if past_cache:
            one = self.builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            done.set_metadata("nontemporal", one)

    def bfloat16(self, value: ir.Value) -> ir.Value:
        """Round to nearest even; what is not a number stays so."""
        b = self.builder
        bits = b.bitcast(value, self.words)
        odd = b.and_(b.lshr(bits, self.word(16)), self.word(1))
        rounded = b.lshr(b.add(bits, b.add(odd, self.word(0x7FFF))), self.word(16))
        rounded = b.select(b.fcmp_unordered("uno", value, value), self.word(0x7FC0), rounded)
        return b.trunc(rounded, self.halves)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        kind = ir.FunctionType(self.floats, [self.floats] * 3)
        name = f"llvm.fma.v{self.lanes}f32"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [x, y, z])


def _step(emit: _Emit, mode: int, kind: int, at: list[ir.Value], numbers: list[ir.Value], past_cache: bool) -> None:
    """One vector of one update at the addresses of weights, mean, base and column."""
    b, (w, m, base, column), (rate, late, factor) = emit.builder, at, numbers
    weights = emit.load(w, kind)
    old = emit.load(m, FLOAT32)
    # As torch: mean + rate (w - mean), or w + (rate - 1)(w - mean) for a rate of at least a half.
    mean = emit.fma(emit.splat(rate), b.fsub(weights, old), b.select(late, weights, old))
    emit.store(mean, m)
    if mode == MEAN:
        return
    deviation = b.fsub(weights, mean)
    if mode in (SQUARES, EVICT, ROUNDED):
        moved = emit.load(column, FLOAT32) if mode == EVICT else deviation
        emit.store(emit.fma(b.fmul(emit.splat(factor), moved), moved, emit.load(base, FLOAT32)), base)
    if mode in (COLUMN, EVICT):
        emit.store(deviation, column, past_cache)
    elif mode == ROUNDED:
        emit.store(emit.bfloat16(deviation), column, past_cache)


def _loops(
    builder: ir.IRBuilder, mode: int, kind: int, n: ir.Value, at: list[ir.Value], numbers: list[ir.Value]
) -> None:
    """All steps of a block: single elements until the column is aligned, vectors, single elements."""
    word = n.type
    sizes = (SIZES[kind], 4, 4, 2 if mode == ROUNDED else 4)
    size = sizes[3]

    def constant(value: int) -> ir.Constant:
        return ir.Constant(word, value)

    def walk(start: ir.Value, stop: ir.Value, lanes: int, times: int, past_cache: bool) -> None:
        emit = _Emit(builder, lanes)
        with cgutils.for_range_slice(builder, start, stop, constant(lanes * times), word) as (index, _):
            for turn in range(times):
                place = builder.add(index, constant(turn * lanes))
                addresses = [builder.add(a, builder.mul(place, constant(s))) for a, s in zip(at, sizes, strict=True)]
                _step(emit, mode, kind, addresses, numbers, past_cache)

    head = constant(0)
    past_cache = mode in PAST_CACHE
    if past_cache:
        short = builder.and_(builder.neg(at[3]), constant(LANES * size - 1))
        head = builder.udiv(short, constant(size))
        head = builder.select(builder.icmp_signed("<", head, n), head, n)
        walk(constant(0), head, 1, 1, False)
    rest = builder.sub(n, head)
    four = builder.add(head, builder.and_(rest, constant(-4 * LANES)))
    one = builder.add(head, builder.and_(rest, constant(-LANES)))
    walk(head, four, LANES, 4, past_cache)
    walk(four, one, LANES, 1, past_cache)
    walk(one, n, 1, 1, False)


def _absorb_block(typing: Any, mode: Any, kind: Any, n: Any, w: Any, m: Any, b: Any, c: Any, x: Any, f: Any) -> Any:
    """One block of one update: choose the loop for this mode and this kind of weights."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        mode, kind, n, *at, rate, factor = args
        late = builder.fcmp_ordered(">=", rate, ir.Constant(rate.type, 0.5))
        shifted = builder.select(late, builder.fsub(rate, ir.Constant(rate.type, 1.0)), rate)
        which = builder.add(builder.mul(mode, ir.Constant(mode.type, len(SIZES))), kind)
        after = builder.append_basic_block("after")
        choice = builder.switch(which, after)
        for number in range(len(MODES) * len(SIZES)):
            block = builder.append_basic_block(f"case{number}")
            choice.add_case(ir.Constant(mode.type, number), block)
            builder.position_at_end(block)
            _loops(builder, number // len(SIZES), number % len(SIZES), n, at, [shifted, late, factor])
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(mode, kind, n, w, m, b, c, x, f), generate


_absorb = intrinsic(_absorb_block)


@njit(cache=True, nogil=True)
def largest(kind: int, n: int, address: int) -> int:
    """Return the largest exponent field of n numbers: all ones if and only if one of them is not finite."""
    if kind == FLOAT32:
        words = carray(pointer(address), (n,), np.uint32)
        word = np.uint32(0)
        for i in range(n):
            word = max(word, words[i] & np.uint32(EXPONENTS[FLOAT32]))
        return int(word)
    shorts, mask = carray(pointer(address), (n,), np.uint16), np.uint16(EXPONENTS[kind])
    one, two, half = np.uint16(0), np.uint16(0), n // 2
    others = shorts[half:]
    for i in range(half):  # from two places: one alone waits for itself
        one, two = max(one, np.uint16(shorts[i] & mask)), max(two, np.uint16(others[i] & mask))
    if n % 2:
        two = max(two, np.uint16(others[half] & mask))
    return int(max(one, two))


@njit(cache=True, nogil=True)
def absorb(
    first: int, last: int, blocks: Any, tensors: Any, mode: int, place: int, rate: np.float32, factor: np.float32
) -> None:
    """Absorb an iterate in blocks first..last-1, from the last: the check before has left the end in the cache.

    Args:
        blocks: (n, 3) int64: row of `tensors`, first element, elements.
        tensors: (m, 6) int64: kind of weight, addresses of weights, mean, base and ring, bytes between columns.
        mode: one of MODES.
        place: which column of the ring.
    """
    for number in range(last - 1, first - 1, -1):
        row, start, length = blocks[number]
        kind, weights, mean, base, ring, column = tensors[row]
        weights += start * (4 if kind == FLOAT32 else 2)
        ring += place * column + start * (2 if mode == ROUNDED else 4)
        _absorb(mode, kind, length, weights, mean + 4 * start, base + 4 * start, ring, rate, factor)


def field(kind: int, size: float) -> int:
    """Return the exponent field that numbers of `size`, a power of two or infinity, have in this kind of weights.

    >>> hex(field(FLOAT32, 1.0)), hex(field(BFLOAT16, float("inf")))
    ('0x3f800000', '0x7f80')
    """
    if math.isinf(size):
        return EXPONENTS[kind]
    bias, shift = ((127, 23), (127, 7), (15, 10))[kind]
    return min(EXPONENTS[kind], (math.frexp(size)[1] - 1 + bias) << shift)


@njit(cache=True, nogil=True)
def first_bad(first: int, last: int, blocks: Any, tensors: Any, fields: tuple[int, int, int]) -> int:
    """Return the row of the first tensor in blocks first..last-1 with a number of its kind's field or more, or -1."""
    for number in range(first, last):
        row, start, length = blocks[number]
        kind = tensors[row, 0]
        address = tensors[row, 1] + start * (4 if kind == FLOAT32 else 2)
        if largest(kind, length, address) >= fields[kind]:
            return int(row)
    return -1
