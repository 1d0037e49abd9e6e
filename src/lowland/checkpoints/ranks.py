"""The processes of one merge: each does a share of the stretches and writes it into the files that the first made."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ranks:
    """This process's number, how many there are, and what waits until all are there.

    >>> Ranks().share([0, 1, 2])
    [0, 1, 2]
    """

    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = lambda: None

    def share(self, jobs: list[int]) -> list[int]:
        """Return this process's part of some jobs."""
        return jobs[self.rank :: self.world]


def of_torchrun() -> Ranks:
    """Return the ranks that torchrun started, joined by gloo; one process where it did not."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world <= 1 or "RANK" not in os.environ:
        return Ranks()
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
        atexit.register(dist.destroy_process_group)
    return Ranks(dist.get_rank(), dist.get_world_size(), _wait)


def _wait() -> None:
    # A sum and not a barrier: gloo's barrier asks for a device where several are there.
    torch.distributed.all_reduce(torch.zeros(1))
