"""Rules of populations as they are told, one number after the other: rows are members, columns coordinates."""

from __future__ import annotations

import zlib
from fractions import Fraction

import torch
from torch import Tensor

MASK, WORD = 0xFFFFFFFF, 1 << 32


def papa(rows: Tensor, alpha: float) -> Tensor:
    mean = rows.mean(0)
    return torch.stack([alpha * row + (1 - alpha) * mean for row in rows])


def wash(rows: Tensor, mask: list[bool], permutations: list[tuple[int, ...] | None]) -> Tensor:
    """w_n[i] <- w_{pi(n)}[i] wherever the mask says so."""
    out = rows.clone()
    for i, (shuffled, pi) in enumerate(zip(mask, permutations, strict=True)):
        if shuffled and pi is not None:
            for n in range(len(rows)):
                out[n, i] = rows[pi[n], i]
    return out


def wash_by_randperm(rows: list[Tensor], p: float) -> None:
    """One tensor of all members, in place: a random mask, and torch.randperm for each coordinate of it."""
    flat = [row.view(-1) for row in rows]
    for i in torch.nonzero(torch.rand(len(flat[0])) < p).flatten().tolist():
        order = torch.randperm(len(rows))
        for row, value in zip(flat, torch.stack([row[i] for row in flat])[order], strict=True):
            row[i] = value


def pairs(rows: Tensor, chosen: list[tuple[int, int]]) -> Tensor:
    return torch.stack([0.5 * rows[a] + 0.5 * rows[b] for a, b in chosen])


def diloco(theta: Tensor, rows: Tensor, v: Tensor, rate: float, momentum: float) -> tuple[Tensor, Tensor]:
    """By torch's own SGD: the movement of the average is the gradient."""
    p = torch.nn.Parameter(theta.clone())
    outer = torch.optim.SGD([p], lr=rate, momentum=momentum, nesterov=True)
    if bool(v.any()):
        outer.state[p]["momentum_buffer"] = v.clone()
    p.grad = theta - rows.mean(0)
    outer.step()
    return p.detach(), outer.state[p]["momentum_buffer"]


def philox_words(counter: tuple[int, int, int, int], key: int) -> list[int]:
    """Philox4x32-10 in whole numbers."""
    c, k = list(counter), [key & MASK, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & MASK, a >> 32 ^ c[3] ^ k[1], a & MASK]
        k = [k[0] + 0x9E3779B9 & MASK, k[1] + 0xBB67AE85 & MASK]
    return c


def shuffle(key: int, step: int, name: str, size: int, p: float, members: int) -> list[tuple[int, list[int]]]:
    """The walk over one tensor: each coordinate chosen, and its permutation."""
    table, tensor, place, event, found = 1 << 12, zlib.crc32(name.encode()), -1, 0, []
    stays = (1 << 64) - int(Fraction(p) * (1 << 64))
    thresholds, left = [], 1 << 64
    for _ in range(table):
        left = left * stays >> 64
        thresholds.append((1 << 64) - left >> 32)
    while place < size - 1:
        words = philox_words((event, 0, step, tensor), key)
        gap = next((g for g, threshold in enumerate(thresholds) if words[0] < threshold), table)
        place += gap + 1 if gap < table else table
        if gap < table and place < size:
            more = words[1:]
            for block in range(1, members):
                more += philox_words((event, block, step, tensor), key)
            order = list(range(members))
            for last in range(members - 1, 0, -1):
                other = more[members - 1 - last] * (last + 1) >> 32
                order[last], order[other] = order[other], order[last]
            found.append((place, order))
        event += 1
    return found
