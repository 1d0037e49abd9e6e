"""The naive twin of `lowland.arithmetic.gaussian`: the formula in float64, all of a tensor at once."""

from __future__ import annotations

import torch
from torch import Tensor

from lowland.arithmetic.gaussian import Gaussian
from lowland.arithmetic.philox import normals, tensor_ids


def reference_draw(gaussian: Gaussian, key: int, draws: range) -> dict[str, Tensor]:
    """mean + sqrt(diagonal (base + sum_c terms_c columns_c^2)) z1 + sum_c columns_c low_rank z2_c."""
    result = {}
    for name, number in tensor_ids(gaussian.mean).items():
        mean, base = gaussian.mean[name].double(), gaussian.base[name].double()
        terms = torch.tensor(gaussian.terms, dtype=torch.float64)
        k = len(terms)
        columns = torch.zeros(0, *mean.shape, dtype=torch.float64)
        if gaussian.columns is not None:
            columns = gaussian.columns[name][:k].double()
        std = torch.sqrt(gaussian.diagonal * (base + torch.tensordot(terms, columns**2, 1)))
        z1 = normals(key, number, draws, 0, mean.numel()).double().view(len(draws), *mean.shape)
        block = number << 32 if gaussian.block else 0
        z2 = normals(key, 0, draws, 0, k, first_block=block).double() * gaussian.low_rank
        result[name] = mean + std * z1 + torch.tensordot(z2, columns, 1)
    return result
