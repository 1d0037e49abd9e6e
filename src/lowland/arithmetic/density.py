"""Densities, marginal variances and dense distributions of the Gaussians that `gaussian` draws from.

    N(mean, diag(v) + U U^T)        v = diagonal (base + sum_c terms_c columns_c^2),  U = low_rank columns^T  (d, k)

    log N(w) = -1/2 (r^T S^-1 r + log |S| + d log 2 pi),   r = w - mean

By Woodbury's identity and the determinant lemma, with C = I + U^T V^-1 U:

    r^T S^-1 r = r^T V^-1 r - |C^-1/2 U^T V^-1 r|^2,    log |S| = log |V| + log |C|

O(k^2 d) in float64, without a d x d matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from ..weights.named import Weights, check_same
from .gaussian import Gaussian
from .moments import second_moment


@torch.no_grad()
def diagonal(gaussian: Gaussian, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return the diagonal part v by name, (*shape), as new tensors.

    >>> diagonal(Gaussian({"w": torch.zeros(2)}, {"w": torch.ones(2)}, diagonal=4.0))["w"]
    tensor([4., 4.])
    """
    columns = gaussian.columns
    return {
        name: second_moment(gaussian.base[name], None if columns is None else columns[name], gaussian.terms).mul_(
            gaussian.diagonal
        )
        for name in (gaussian.mean if names is None else names)
    }


@torch.no_grad()
def variance(gaussian: Gaussian) -> dict[str, Tensor]:
    """Return the marginal variance of each weight by name, (*shape): the diagonal of the covariance.

    >>> variance(Gaussian({"w": torch.zeros(2)}, {"w": torch.ones(2)}, diagonal=4.0))["w"]
    tensor([4., 4.])
    """
    result = diagonal(gaussian)
    for name, v in result.items():
        columns = _columns(gaussian, name)
        if columns is not None:
            result[name] = second_moment(v, columns, [gaussian.low_rank**2] * len(columns))
    return result


@torch.no_grad()
def log_prob(gaussian: Gaussian, weights: Weights) -> float:
    """Return the log-density of `weights` in nats.

    Raises:
        ValueError: names or shapes differ, or a weight's variance is zero.

    >>> unit = Gaussian({"w": torch.zeros(1)}, {"w": torch.ones(1)})
    >>> round(log_prob(unit, {"w": torch.zeros(1)}), 6)
    -0.918939
    """
    check_same(gaussian.mean, weights, what="log_prob")
    if not gaussian.block:
        return _log_prob(gaussian, weights, gaussian.mean)
    return sum(_log_prob(gaussian, weights, [name]) for name in gaussian.mean)


@torch.no_grad()
def distribution(gaussian: Gaussian) -> LowRankMultivariateNormal:
    """Return the Gaussian over all weights as one flat vector, tensors in the order of their sorted names.

    For small models: it holds d (k + 2) numbers more.

    Raises:
        ValueError: a weight's variance is zero.

    >>> distribution(Gaussian({"w": torch.zeros(2)}, {"w": torch.ones(2)})).covariance_matrix.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    parts_of_v, names = diagonal(gaussian), sorted(gaussian.mean)
    for name in names:
        _check_positive(name, parts_of_v[name])
    mean = torch.cat([gaussian.mean[name].flatten() for name in names])
    held = [_columns(gaussian, name) for name in names]
    parts = [c.to(mean.dtype).reshape(len(c), -1).T * gaussian.low_rank for c in held if c is not None]  # (p, k) each
    if not parts:
        factors = mean.new_zeros(len(mean), 1)
    else:
        # (d, k), or (d, k tensors)
        factors = torch.block_diag(*parts) if gaussian.block else torch.cat(parts)  # type: ignore[no-untyped-call]
    return LowRankMultivariateNormal(mean, factors, torch.cat([parts_of_v[name].flatten() for name in names]))


def _log_prob(gaussian: Gaussian, weights: Weights, names: Iterable[str]) -> float:
    held = len(gaussian.terms) if gaussian.columns is not None else 0
    gram, projection = torch.eye(held, dtype=torch.float64), torch.zeros(held, dtype=torch.float64)
    total, size = 0.0, 0
    for name, v in diagonal(gaussian, names).items():
        _check_positive(name, v)
        v = v.double().flatten().cpu()  # (p,)
        residual = weights[name].double().flatten().cpu() - gaussian.mean[name].double().flatten().cpu()
        total += float((residual.square() / v + v.log()).sum())
        size += residual.numel()
        columns = _columns(gaussian, name)
        if columns is not None:
            u = columns.double().reshape(held, -1).cpu() * gaussian.low_rank  # (k, p)
            gram += (u / v) @ u.T
            projection += (u / v) @ residual
    root = torch.linalg.cholesky(gram)
    solved = torch.linalg.solve_triangular(root, projection[:, None], upper=False)
    total += 2 * float(root.diagonal().log().sum()) - float(solved.square().sum())
    return -0.5 * (total + size * math.log(2 * math.pi))


def _columns(gaussian: Gaussian, name: str) -> Tensor | None:
    """The (k, *shape) columns of one tensor; None for a diagonal Gaussian."""
    if gaussian.columns is None or not gaussian.terms:
        return None
    return gaussian.columns[name][: len(gaussian.terms)]


def _check_positive(name: str, v: Tensor) -> None:
    if not bool((v > 0).all()):
        raise ValueError(
            f"{name} holds a weight whose variance is zero, so the Gaussian has no density: leave tensors that never "
            "move out with select="
        )
