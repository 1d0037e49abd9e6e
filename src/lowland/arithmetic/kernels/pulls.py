"""One pass over the same tensors of several members: the mean, and each member moved towards it.

    mean = (w_1 + ... + w_N) / N        w_n += weight (mean - w_n), or for a weight of 1/2 or more from the other end

A block of all members stays in a core's first cache from the sum to the writing, so that each number is read from
memory once and written once. Sums are in the members' order, and multiply and add are fused as in torch's `lerp`.
Entries say what is done: (tensor, first, stop) in elements of float32; addresses are (tensors, members).
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]

from .addresses import pointer

BLOCK = 1024  # elements: of a handful of members in float32 they fit in a first cache


@njit(cache=True, nogil=True, fastmath={"contract"})
def pull(addresses, entries, weight):  # type: ignore[no-untyped-def]
    """Move the elements of some entries."""
    mean = np.empty(BLOCK, np.float32)
    members = addresses.shape[1]
    count = np.float32(members)
    forth, back = np.float32(weight), np.float32(1.0) - np.float32(weight)
    for entry in range(len(entries)):
        tensor, first, stop = entries[entry]
        for begin in range(first, stop, BLOCK):
            size = min(BLOCK, stop - begin)
            own = carray(pointer(addresses[tensor, 0] + 4 * begin), size, np.float32)
            for i in range(size):
                mean[i] = own[i]
            for place in range(1, members):
                own = carray(pointer(addresses[tensor, place] + 4 * begin), size, np.float32)
                for i in range(size):
                    mean[i] += own[i]
            for i in range(size):
                mean[i] /= count
            for place in range(members):
                own = carray(pointer(addresses[tensor, place] + 4 * begin), size, np.float32)
                if weight == 1.0:
                    for i in range(size):
                        own[i] = mean[i]
                elif weight < 0.5:
                    for i in range(size):
                        own[i] = own[i] + forth * (mean[i] - own[i])
                else:
                    for i in range(size):
                        own[i] = mean[i] - (mean[i] - own[i]) * back


@njit(cache=True, nogil=True)
def finite(addresses, entries):  # type: ignore[no-untyped-def]
    """Say whether no element of some entries is NaN or infinite."""
    for entry in range(len(entries)):
        tensor, first, stop = entries[entry]
        for place in range(addresses.shape[1]):
            own = carray(pointer(addresses[tensor, place] + 4 * first), stop - first, np.int32)
            largest = np.int32(0)
            for i in range(stop - first):
                largest = max(largest, own[i] & np.int32(0x7FFFFFFF))
            if largest >= np.int32(0x7F800000):
                return False
    return True
