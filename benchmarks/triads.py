"""The limit of work bound by memory: a = b + s c over floats, on as many threads as torch uses.

Three ways are tried and the fastest is kept: torch.add, a loop compiled by numba, and C compiled here with stores that
go around the cache (streaming), which spares the read of the lines that are overwritten anyway.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

SCALE = 0.5
BYTES = 12  # of an element: two reads and one write
C_SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#define WIDE 16
#define STORE(p, b, c, s) _mm512_stream_ps(p, _mm512_fmadd_ps(s, _mm512_loadu_ps(c), _mm512_loadu_ps(b)))
#define SPREAD(s) _mm512_set1_ps(s)
typedef __m512 wide;
#elif defined(__AVX2__)
#include <immintrin.h>
#define WIDE 8
#define STORE(p, b, c, s) _mm256_stream_ps(p, _mm256_add_ps(_mm256_mul_ps(s, _mm256_loadu_ps(c)), _mm256_loadu_ps(b)))
#define SPREAD(s) _mm256_set1_ps(s)
typedef __m256 wide;
#endif
void plain(float *a, const float *b, const float *c, float s, int64_t n, int threads) {
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) a[i] = b[i] + s * c[i];
}
void streaming(float *a, const float *b, const float *c, float s, int64_t n, int threads) {
#ifdef WIDE
    int64_t first = ((64 - (uintptr_t)a % 64) % 64) / 4;
    if (first > n) first = n;
    int64_t blocks = (n - first) / WIDE;
    for (int64_t i = 0; i < first; i++) a[i] = b[i] + s * c[i];
    #pragma omp parallel num_threads(threads)
    {
        wide spread = SPREAD(s);
        #pragma omp for schedule(static)
        for (int64_t k = 0; k < blocks; k++) {
            int64_t i = first + k * WIDE;
            STORE(a + i, b + i, c + i, spread);
        }
        _mm_sfence();
    }
    for (int64_t i = first + blocks * WIDE; i < n; i++) a[i] = b[i] + s * c[i];
#else
    plain(a, b, c, s, n, threads);
#endif
}
"""


class Triad:
    """A call runs the triad once.

    how: which code runs. gigabytes: its bandwidth in GB/s when it was chosen. tried: that of every code tried.
    """

    def __init__(
        self,
        numel: int,
        how: str,
        run: Callable[[], object],
        tried: dict[str, float],
        tensors: tuple[torch.Tensor, ...],
    ) -> None:
        self.numel, self.how, self.run, self.tried = numel, how, run, tried
        self.tensors = tensors  # the C code knows their addresses only: they live as long as the triad
        self.gigabytes = tried[how]

    def __call__(self) -> None:
        self.run()

    def __repr__(self) -> str:
        others = ", ".join(f"{name} {speed:.1f}" for name, speed in self.tried.items())
        return f"triad over {self.numel:,} floats by {self.how}: {self.gigabytes:.1f} GB/s (tried, in GB/s: {others})"


def ways(numel: int, device: str = "cpu") -> tuple[dict[str, Callable[[], object]], tuple[torch.Tensor, ...]]:
    """Return every way found to run the triad, and the tensors a, b, c that all of them use."""
    a, b, c = (torch.full((numel,), float(value), device=device) for value in (0, 1, 2))
    found: dict[str, Callable[[], object]] = {"torch": lambda: torch.add(b, c, alpha=SCALE, out=a)}
    if device != "cpu":
        return found, (a, b, c)
    threads = torch.get_num_threads()
    library = _compiled()
    if library is not None:
        addresses = [ctypes.c_void_p(t.data_ptr()) for t in (a, b, c)]
        rest = (ctypes.c_float(SCALE), ctypes.c_int64(numel), ctypes.c_int(threads))
        found["C"] = functools.partial(library.plain, *addresses, *rest)
        found["C, streaming stores"] = functools.partial(library.streaming, *addresses, *rest)
    kernel = _numba()
    if kernel is not None:
        arrays = [t.numpy() for t in (a, b, c)]
        scale = arrays[0].dtype.type(SCALE)  # a Python float would make the loop one of doubles
        pool = ThreadPoolExecutor(max(1, threads - 1))
        atexit.register(pool.shutdown)
        edges = [numel * part // threads for part in range(threads + 1)]
        shares = [[whole[low:high] for whole in arrays] for low, high in zip(edges, edges[1:], strict=False)]

        def by_numba() -> None:
            others = [pool.submit(kernel, *share, scale) for share in shares[1:]]
            kernel(*shares[0], scale)
            for other in others:
                other.result()

        found["numba"] = by_numba
    return found, (a, b, c)


def fastest(numel: int, device: str = "cpu", rounds: int = 7) -> Triad:
    """Measure every way and return the one with the smallest median."""
    if numel < 1:
        raise ValueError(f"a triad needs at least one element, got {numel}")
    found, tensors = ways(numel, device)
    times: dict[str, list[float]] = {name: [] for name in found}
    for run in found.values():
        run()
    calls = max(1, min(200, 4_000_000 // numel))
    for _ in range(rounds):
        for name, run in found.items():
            times[name].append(_seconds(run, calls, device))
            time.sleep(0.01)
    tried = {name: BYTES * numel / statistics.median(own) / 1e9 for name, own in times.items()}
    how = max(tried, key=lambda name: tried[name])
    return Triad(numel, how, found[how], tried, tensors)


def _seconds(run: Callable[[], object], calls: int, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


@functools.cache
def _compiled() -> Any:
    """The C code as a library, or None without a compiler."""
    compiler = next((path for name in ("gcc", "cc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        return None
    folder = tempfile.mkdtemp(prefix="triad")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source, library = Path(folder, "triad.c"), Path(folder, "triad.so")
    source.write_text(C_SOURCE)
    command = [compiler, "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    return ctypes.CDLL(str(library))


@functools.cache
def _numba() -> Any:
    try:
        import numba
    except ImportError:
        return None

    @numba.njit(nogil=True, cache=True)
    def kernel(a, b, c, s):  # type: ignore[no-untyped-def]
        for i in range(a.size):
            a[i] = b[i] + s * c[i]

    return kernel
