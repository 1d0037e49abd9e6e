"""The limit of one update of many tensors: C loops over a table of addresses that is ready, with nothing around them.

What lies between this and an update is what it costs to read a model, to see that nothing changed, and to refuse what
is not finite. The loops do what the averagers do, on the same tensors, on as many threads as torch uses:

    mean        m += rate (w - m)                                          3 vectors
    column      m += rate (w - m),  c = w - m past the cache               4 vectors, a SWAG whose columns are free
    evict       base += factor c c as well, before c is overwritten        7 vectors, a SWAG whose columns are full
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 14  # elements of a block: 192 tensors and one of 1 GB are shared alike
C_SOURCE = r"""
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
typedef struct { float *w, *m, *base, *column; int64_t length; } block;
void mean(const block *blocks, int64_t n, float rate, float factor, int threads) {
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < n; k++) {
        float *restrict m = blocks[k].m; const float *restrict w = blocks[k].w; const int64_t length = blocks[k].length;
        for (int64_t i = 0; i < length; i++) m[i] += rate * (w[i] - m[i]);
    }
}
void column(const block *blocks, int64_t n, float rate, float factor, int threads) {
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < n; k++) {
        float *restrict m = blocks[k].m; const float *restrict w = blocks[k].w; const int64_t length = blocks[k].length;
        float *restrict c = blocks[k].column;
        int64_t i = 0;
#if defined(__AVX512F__)
        const __m512 spread = _mm512_set1_ps(rate);
        if ((uintptr_t)c % 64 == 0)
            for (; i + 16 <= length; i += 16) {
                const __m512 x = _mm512_loadu_ps(w + i), old = _mm512_loadu_ps(m + i);
                const __m512 now = _mm512_fmadd_ps(spread, _mm512_sub_ps(x, old), old);
                _mm512_storeu_ps(m + i, now);
                _mm512_stream_ps(c + i, _mm512_sub_ps(x, now));
            }
#endif
        for (; i < length; i++) { m[i] += rate * (w[i] - m[i]); c[i] = w[i] - m[i]; }
    }
}
void evict(const block *blocks, int64_t n, float rate, float factor, int threads) {
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < n; k++) {
        float *restrict m = blocks[k].m; const float *restrict w = blocks[k].w; const int64_t length = blocks[k].length;
        float *restrict c = blocks[k].column, *restrict base = blocks[k].base;
        for (int64_t i = 0; i < length; i++) {
            m[i] += rate * (w[i] - m[i]);
            base[i] += factor * c[i] * c[i];
            c[i] = w[i] - m[i];
        }
    }
}
"""


def loops(weights: Mapping[str, Tensor], rank: int) -> dict[str, Callable[[], object]]:
    """Return the loops over these float32 weights and state of their own; nothing where there is no compiler.

    The columns of the two loops of a SWAG turn, as they do in an averager.
    """
    library = _compiled()
    if library is None:
        return {}
    tensors = list(weights.values())
    mean, base = ([tensor.detach().clone() for tensor in tensors] for _ in range(2))
    ring = [torch.zeros(rank, *tensor.shape) for tensor in tensors]
    tables = [_table(tensors, mean, base, [columns[place] for columns in ring]) for place in range(rank)]
    threads = ctypes.c_int(torch.get_num_threads())
    numbers = (ctypes.c_int64(len(tables[0])), ctypes.c_float(1 / 64), ctypes.c_float(1.25), threads)
    found: dict[str, Callable[[], object]] = {}
    for name in ("mean", "column", "evict"):
        calls = [functools.partial(library[name], ctypes.c_void_p(table.ctypes.data), *numbers) for table in tables]
        found[name] = _Turning(calls, (tables, tensors, mean, base, ring))
    return found


class _Turning:
    """Calls one after the other, round and round; what they know the addresses of lives as long."""

    def __init__(self, calls: list[Callable[[], object]], held: object) -> None:
        self.calls, self.held, self.at = calls, held, 0

    def __call__(self) -> None:
        self.at = (self.at + 1) % len(self.calls)
        self.calls[self.at]()


def _table(*slots: list[Tensor]) -> np.ndarray[Any, Any]:
    rows = [
        (*(4 * start + tensor.data_ptr() for tensor in own), min(BLOCK, own[0].numel() - start))
        for own in zip(*slots, strict=True)
        for start in range(0, own[0].numel(), BLOCK)
    ]
    return np.array(rows, dtype=np.int64)


@functools.cache
def _compiled() -> Any:
    """The loops as a library, or None without a compiler."""
    compiler = next((path for name in ("gcc", "cc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        return None
    folder = tempfile.mkdtemp(prefix="pointers")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source, library = Path(folder, "pointers.c"), Path(folder, "pointers.so")
    source.write_text(C_SOURCE)
    command = [compiler, "-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    if subprocess.run([*command, str(source), "-o", str(library)], capture_output=True).returncode:
        return None
    return ctypes.CDLL(str(library))
