"""Standard normals that are a pure function of (key, tensor, draw, element): the stream of every draw.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a counter of four
32-bit words under a key of two into four random words, and Box-Muller (1958) turns two words into two normals.

    key      one 64-bit number from the user's generator: its low and its high word
    counter  (low word of the block, high word of the block, draw, tensor)
    element  e of a tensor is lane (e % 64) // 16 of the block 16 (e // 64) + e % 16

So 64 consecutive elements come from 16 consecutive blocks, lane after lane: vector code of any width up to 16 writes
them in order. Words 0 and 1 of a block give lanes 0 and 1, words 2 and 3 give lanes 2 and 3. With words a and b:

    u = float(a) 2^-32 + 2^-33 in [2^-33, 1]            t = float(signed 32-bit (b << 2)) 2^-32 in [-1/2, 1/2]
    r = sqrt(-2 log u) <= 6.77                          the angle is t quarter turns
    c = r cos(pi/2 t), negated if bit 31 of b is set    s = r sin(pi/2 t)
    the normals are (c, s), or (s, c) if bit 30 of b is set

This file is the specification. Every operation on floats is one IEEE float32 multiplication, addition or square root,
never fused, so torch on any device, the numba kernel and the Triton kernel agree bit for bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

GROUP = 64  # consecutive elements that share 16 blocks
BLOCKS = 16
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF

# Minimax fits, every number a float32. -2 log(1 + f) = -2 f + f^2 + f^3 Q(f) for 1 + f in [sqrt 1/2, sqrt 2];
# cos(pi/2 t) = 1 + t^2 C(t^2) and sin(pi/2 t) = t S(t^2) for |t| <= 1/2. Lowest power first.
LOG = (
    -0.6666781902313232,
    0.5000267624855042,
    -0.3992612361907959,
    0.331551730632782,
    -0.2982957363128662,
    0.2853495180606842,
    -0.17400719225406647,
)
COS = (-1.2336976528167725, 0.2536032199859619, -0.020417284220457077)
SIN = (1.5707963705062866, -0.6459634900093079, 0.07968004047870636, -0.004601669032126665)
MINUS_2_LOG_2 = -1.3862943649291992
ROOT_HALF_BITS = 0x3F3504F3  # the bits of the float32 nearest to sqrt(1/2)
RUN = 1 << 16  # elements made at a time by the twin: about 3 MB of 64-bit integers


def new_key(generator: torch.Generator | None = None) -> int:
    """Return a 64-bit key, drawn from `generator` on its device, or from torch's default generator.

    >>> new_key(torch.Generator().manual_seed(0)) == new_key(torch.Generator().manual_seed(0))
    True
    """
    device = torch.device("cpu") if generator is None else generator.device
    low, high = torch.randint(1 << 32, (2,), dtype=torch.int64, device=device, generator=generator).tolist()
    return int(low) | int(high) << 32


def tensor_ids(names: Iterable[str]) -> dict[str, int]:
    """Return the counter word of each tensor: the CRC-32 of its name, never 0, the next free number on a collision.

    The numbers depend on the set of names and not on their order.

    >>> tensor_ids(["weight", "bias"]) == tensor_ids(["bias", "weight"])
    True
    """
    taken: dict[int, str] = {}
    for name in sorted(set(names)):
        number = zlib.crc32(name.encode())
        while number == 0 or number in taken:
            number = (number + 1) & MASK
        taken[number] = name
    return {name: number for number, name in taken.items()}


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four words of Philox4x32-10 as int64 tensors that hold 32-bit numbers.

    Args:
        counter: four int64 tensors of 32-bit numbers, of shapes that broadcast.
        key: a 64-bit number; its low word is the first of Random123's key.

    >>> zero = torch.zeros((), dtype=torch.int64)
    >>> [hex(word.item()) for word in philox((zero, zero, zero, zero), 0)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & MASK, key >> 32 & MASK
    for _ in range(ROUNDS):
        # 64-bit products wrap to signed numbers; the masks take the words as they are.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (second >> 32 & MASK) ^ c1 ^ k0, second & MASK
        c2, c3 = (first >> 32 & MASK) ^ c3 ^ k1, first & MASK
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return c0, c1, c2, c3


def box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two float32 normals from two words (int64 tensors of 32-bit numbers), as the module's head defines them.

    >>> one, two = box_muller(torch.tensor([1 << 31]), torch.tensor([0]))  # u = 1/2, the angle 0
    >>> one, two
    (tensor([1.1774]), tensor([0.]))
    """
    u = a.to(torch.float32) * 2.0**-32 + 2.0**-33
    bits = u.view(torch.int32)
    exponent = bits - ROOT_HALF_BITS >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    square = f * f
    y = _horner(LOG, f)
    y = y * f * square + square
    y = y + f * -2.0
    y = y + exponent.to(torch.float32) * MINUS_2_LOG_2
    r = exact_sqrt(y)
    turned = (b << 2 & MASK ^ 1 << 31) - (1 << 31)  # b << 2 read as a signed 32-bit number
    t = turned.to(torch.float32) * 2.0**-32
    z = t * t
    cosine = r * (_horner(COS, z) * z + 1.0)
    sine = r * (_horner(SIN, z) * t)
    cosine = torch.where((b & 1 << 31) != 0, -cosine, cosine)
    swap = (b & 1 << 30) != 0
    return torch.where(swap, sine, cosine), torch.where(swap, cosine, sine)


def exact_sqrt(x: Tensor) -> Tensor:
    """Return the square root, for float32 rounded as IEEE 754 says on every device.

    >>> exact_sqrt(torch.tensor([2.0, 0.0]))
    tensor([1.4142, 0.0000])
    """
    # torch's own float32 root on the CPU is off in the last place for about one number in six. A root in float64 has
    # more than twice the digits and two, so that rounding it again gives what one rounding would.
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.sqrt(x.double()).float()
    return torch.sqrt(x)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    result = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        result = result * x + coefficient
    return result


@torch.no_grad()
def normals(
    key: int,
    tensor: int,
    draws: range,
    start: int,
    length: int,
    *,
    first_block: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return float32 normals (len(draws), length): the elements `start` to `start + length` of each draw of a tensor.

    Args:
        key: from `new_key`.
        tensor: the counter word of the tensor, from `tensor_ids`.
        draws: which draws, in steps of one, below 2^32.
        start: the first element, in the flattened whole tensor.
        length: how many.
        first_block: a multiple of 16 that is added to every block's number, for a separate range of the same tensor.
        device: where they are made; it changes no bit.

    >>> whole = normals(7, 1, range(3), 0, 200)
    >>> torch.equal(normals(7, 1, range(1, 2), 50, 100), whole[1:2, 50:150])
    True
    """
    out = torch.empty((len(draws), length), dtype=torch.float32, device=device)
    step = max(GROUP, RUN // GROUP * GROUP // max(1, min(len(draws), RUN // GROUP)) // GROUP * GROUP)
    rows = max(1, RUN // step)
    stop = start + length
    for low in range(start // GROUP * GROUP, stop, step):
        a, b = max(low, start), min(low + step, stop)
        for row in range(0, len(draws), rows):
            part = draws[row : row + rows]
            made = _groups(key, tensor, part, first_block + low // GROUP * BLOCKS, -(-(b - low) // GROUP), out.device)
            out[row : row + len(part), a - start : b - start] = made[:, a - low : b - low]
    return out


def _groups(key: int, tensor: int, draws: range, block: int, groups: int, device: torch.device) -> Tensor:
    """Whole groups of 64 normals: (len(draws), 64 groups)."""
    blocks = torch.arange(groups * BLOCKS, dtype=torch.int64, device=device) + (block & MASK)
    words = philox(
        (
            blocks & MASK,
            (blocks >> 32) + (block >> 32) & MASK,
            torch.arange(draws.start, draws.stop, dtype=torch.int64, device=device)[:, None],
            torch.tensor(tensor, dtype=torch.int64, device=device),
        ),
        key,
    )
    lanes = [*box_muller(words[0], words[1]), *box_muller(words[2], words[3])]  # four of (draws, 16 groups)
    return torch.stack([lane.view(len(draws), groups, BLOCKS) for lane in lanes], 2).view(len(draws), -1)
