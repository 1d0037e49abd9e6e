"""The Triton kernel in Triton's interpreter, against the torch path; where Triton is not installed it is skipped."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from lowland import philox
from lowland.arithmetic.gaussian import Gaussian, draw
from lowland import kernels
from lowland.arithmetic.kernels import draws_triton

key, draws = 0xFEDCBA9876543210, range(2, 5)
generator = torch.Generator().manual_seed(0)
for k in (0, 2):
    for columns in (torch.float32, torch.bfloat16):
        for out in (torch.float32, torch.float16):
            for size in (63, 300):
                one = Gaussian(
                    {"w": torch.randn(size, generator=generator)},
                    {"w": torch.rand(size, generator=generator)},
                    {"w": torch.randn(k, size, generator=generator).to(columns)} if k else None,
                    tuple(0.5 * c for c in range(k)),
                    0.37,
                    0.11,
                )
                wanted = {"w": torch.zeros(3, size, dtype=out)}
                with kernels.disabled():
                    draw(one, key, draws, wanted)
                z2 = philox.normals(key, 0, draws, 0, k) * 0.11
                number = philox.tensor_ids(["w"])["w"]
                for runs in ([(0, 0, size)], [(0, 0, size // 3), (size // 3, size // 3, size - size // 3)]):
                    got = torch.zeros(3, size, dtype=out)
                    draws_triton.draw(
                        one.mean["w"], one.base["w"], one.columns["w"] if k else None, got, torch.tensor(one.terms), z2,
                        diagonal=0.37, key=key, draws=draws, number=number, runs=[run for run in runs if run[2]],
                    )
                    assert torch.equal(got, wanted["w"]), (k, columns, out, size)
print("equal")
"""


@pytest.mark.slow
def test_the_interpreted_kernel_equals_the_torch_path() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600, env=environment)
    assert run.stdout.strip() == "equal", run.stderr
