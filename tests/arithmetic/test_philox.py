"""The stream of normals: known answers, accuracy, independence, and what it does not depend on."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from torch import Tensor

from lowland.arithmetic import kernels
from lowland.arithmetic.philox import box_muller, exact_sqrt, new_key, normals, philox, tensor_ids

needs_numba = pytest.mark.skipif(not kernels.available(), reason="numba is not installed")


def by_kernel(key: int, tensor: int, draws: range, start: int, length: int, first_block: int = 0) -> Tensor:
    from lowland.arithmetic.kernels import draws as fast

    out = torch.full((len(draws), length), math.nan)
    low, high = key & 0xFFFFFFFF, key >> 32
    first_block -= first_block >> 63 << 64
    fast.normals(out.data_ptr(), 4 * length, low, high, tensor, draws.start, len(draws), start, length, first_block)
    return out


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = tuple(torch.tensor(word) for word in counter)
    got = philox(words, key[0] | key[1] << 32)  # type: ignore[arg-type]
    assert tuple(word.item() for word in got) == expected


def test_normals_against_box_muller_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(1 << 32, (1 << 18,), generator=generator) for _ in range(2))
    edge = torch.arange(2048)
    a[:2048], a[2048:4096] = edge, (1 << 32) - 1 - edge  # both ends of the uniform
    b[4096:6144] = edge << 20  # all around the circle
    got = box_muller(a, b)
    u = (a.float() * 2.0**-32 + 2.0**-33).double()
    t = (((b << 2) & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)).double() * (math.pi / 2 * 2.0**-32)
    r = torch.sqrt(-2 * torch.log(u))
    c = torch.where(b & 1 << 31 != 0, -1, 1) * r * torch.cos(t)
    s = r * torch.sin(t)
    swap = b & 1 << 30 != 0
    for ours, exact in zip(got, (torch.where(swap, s, c), torch.where(swap, c, s)), strict=True):
        # The spacing of float32 numbers near the exact value.
        ulp = torch.exp2(torch.floor(torch.log2(exact.abs().clamp_min(2.0**-126))) - 23)
        assert ((ours.double() - exact).abs() / ulp).max() < 5
    assert max(z.abs().max().item() for z in got) > 6.4  # sqrt(2 * 33 log 2) = 6.76 is the end of the tail
    zero = torch.zeros((), dtype=torch.int64)
    assert box_muller(zero, zero)[0] == pytest.approx(math.sqrt(66 * math.log(2)))


def test_the_law_is_the_normal() -> None:
    n = 1_000_000
    z = (by_kernel if kernels.available() else normals)(123, 5, range(1), 0, n)[0].double()
    # Five standard errors of the first four moments.
    assert z.mean().abs() < 5 / math.sqrt(n)
    assert (z.square().mean() - 1).abs() < 5 * math.sqrt(2 / n)
    assert z.pow(3).mean().abs() < 5 * math.sqrt(15 / n)
    assert (z.pow(4).mean() - 3).abs() < 5 * math.sqrt(96 / n)
    phi = torch.special.ndtr(z.sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((steps[1:] - phi).max().item(), (phi - steps[:-1]).max().item())
    assert distance * math.sqrt(n) < 1.95  # Kolmogorov's 0.1 % point
    # Squares of neighbours and of the lanes of a block as uncorrelated as the numbers are.
    for values in (z, z.square() - 1):
        for lag in (1, 2, 15, 16, 17, 32, 48, 64):
            product = values[:-lag] * values[lag:]
            assert product.mean().abs() < 5 * product.std() / math.sqrt(n)


def test_streams_are_independent() -> None:
    n = 100_000
    one = normals(7, 5, range(1), 0, n)[0].double()
    for key, tensor, draw in ((8, 5, 0), (7 | 1 << 32, 5, 0), (7, 6, 0), (7, 5, 1)):
        other = normals(key, tensor, range(draw, draw + 1), 0, n)[0].double()
        assert not torch.equal(one, other)
        for a, b in ((one, other), (one.square() - 1, other.square() - 1)):
            assert (a * b).mean().abs() < 5 * (a * b).std() / math.sqrt(n)


def test_a_part_is_a_part_of_the_whole() -> None:
    whole = normals(9, 3, range(5), 0, 1000)
    for start, length in ((0, 1), (1, 62), (63, 2), (64, 64), (100, 900), (999, 1)):
        assert torch.equal(normals(9, 3, range(2, 4), start, length), whole[2:4, start : start + length])
    far = 1 << 35  # beyond 2^32 blocks
    assert torch.equal(normals(9, 3, range(1), far + 64, 10), normals(9, 3, range(1), far, 100)[:, 64:74])
    assert not torch.equal(normals(9, 3, range(1), far, 100), whole[:1, :100])


@needs_numba
@pytest.mark.parametrize("start", [0, 1, 63, 64, 777, (1 << 34) - 100])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_the_kernel_makes_the_same_bits(start: int, length: int) -> None:
    key, tensor = 0xFEDCBA9876543210, 0xFFFFFFFF
    assert torch.equal(
        by_kernel(key, tensor, range(3, 6), start, length), normals(key, tensor, range(3, 6), start, length)
    )
    block = 0xF0000001 << 32
    assert torch.equal(
        by_kernel(key, 0, range(2), start, length, block), normals(key, 0, range(2), start, length, first_block=block)
    )


@needs_numba
def test_the_kernel_makes_the_same_bits_a_million_times() -> None:
    assert torch.equal(by_kernel(1, 2, range(2), 0, 500_000), normals(1, 2, range(2), 0, 500_000))


def test_keys_come_from_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, two = (new_key(torch.Generator().manual_seed(3)) for _ in range(2))
    assert one == two != new_key(torch.Generator().manual_seed(4))
    assert torch.equal(torch.random.get_rng_state(), state)
    generator = torch.Generator().manual_seed(3)
    assert new_key(generator) == one != new_key(generator)
    assert 0 <= one < 1 << 64


def test_tensor_numbers() -> None:
    # "plumless" and "buckeroo" have the same CRC-32.
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    numbers = tensor_ids(["plumless", "weight", "buckeroo"])
    assert numbers["plumless"] == numbers["buckeroo"] + 1
    assert numbers == tensor_ids(["buckeroo", "plumless", "weight"])
    assert 0 not in tensor_ids([""]).values()  # its CRC-32 is 0, which belongs to the shared coefficients


def test_roots_are_rounded_as_ieee_says() -> None:
    import numpy as np

    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 50
    assert torch.equal(exact_sqrt(x), torch.from_numpy(np.sqrt(x.numpy())))
