"""Lanczos with full reorthogonalisation: what products with a symmetric matrix tell of its eigenvalues.

    beta_j q_(j+1) = A q_j - alpha_j q_j - beta_(j-1) q_(j-1),    alpha_j = <q_j, A q_j>

Lanczos 1950. Every new vector is made orthogonal to all before it, twice: without that, eigenvalues that were found
come again as ghosts. The eigenvalues of the tridiagonal matrix (Ritz values) with the squared first entries of its
eigenvectors are nodes and weights of a quadrature of the spectral density seen from the start (Golub, Welsch 1969).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ritz:
    """What Lanczos found from one start.

    Attributes:
        alpha, beta: the tridiagonal matrix: its diagonal, and beside it. The last beta is what was left.
        values: the Ritz values, ascending.
        weights: of the density seen from the start; they sum to 1.
        errors: a bound for each value: an eigenvalue lies within so much of it.
        basis: (steps, d), orthonormal.
        vectors: (steps, steps): column k times the basis is the Ritz vector of value k.
    """

    alpha: Tensor
    beta: Tensor
    values: Tensor
    weights: Tensor
    errors: Tensor
    basis: Tensor
    vectors: Tensor

    def vector(self, number: int) -> Tensor:
        """Return the Ritz vector (d,) of a value, of length 1."""
        return self.vectors[:, number].to(self.basis.dtype) @ self.basis


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Ritz:
    """Run so many steps from a vector (d,), fewer where the space that it spans is exhausted.

    Raises:
        ValueError: steps is below 1, or the start or a product is not finite or the start is 0.

    >>> diagonal = torch.tensor([1.0, 2.0, 10.0], dtype=torch.float64)
    >>> found = lanczos(lambda v: diagonal * v, torch.ones(3, dtype=torch.float64), 3)
    >>> [round(value, 6) for value in found.values.tolist()]
    [1.0, 2.0, 10.0]
    """
    length = float(torch.linalg.vector_norm(start.double()))
    if steps < 1 or not 0 < length < float("inf"):
        raise ValueError(f"wanted at least 1 step and a finite start other than 0, got {steps} and |start| = {length}")
    steps = min(steps, start.numel())
    basis = torch.empty(steps, start.numel(), dtype=start.dtype, device=start.device)
    basis[0] = start / length
    alpha: list[float] = []
    beta: list[float] = []
    small = 10 * torch.finfo(start.dtype).eps
    largest = 0.0
    for j in range(steps):
        w = product(basis[j]).detach()
        if not bool(torch.isfinite(w).all()):
            raise ValueError(f"product {j + 1} is not finite: look for NaN or infinity in the weights or batches")
        alpha.append(_dot(basis[j], w))
        w = w.clone()
        for _ in range(2):
            w -= (basis[: j + 1] @ w) @ basis[: j + 1]
        left = float(torch.linalg.vector_norm(w.double()))
        beta.append(left)
        largest = max(largest, abs(alpha[-1]), left)
        if j + 1 == steps:
            break
        if left <= small * largest:
            basis = basis[: j + 1]
            break
        basis[j + 1] = w / left
    a, b = torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64)
    matrix = torch.diag(a) + torch.diag(b[:-1], 1) + torch.diag(b[:-1], -1)
    values, vectors = torch.linalg.eigh(matrix)
    return Ritz(a, b, values, vectors[0].square(), (b[-1] * vectors[-1]).abs(), basis, vectors)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))
