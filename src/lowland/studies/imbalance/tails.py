"""Long tails: how many examples each class keeps, and which classes are frequent and which rare.

    n_k = int(n_max / ratio^(k / (C - 1))),   k = 0 .. C - 1

as Cao et al. 2019 (LDAM, arXiv 1906.07413) make them of balanced sets.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def counts(largest: int, ratio: int, classes: int) -> list[int]:
    """Return the examples of each class, one at least.

    >>> counts(400, 10, 10)
    [400, 309, 239, 185, 143, 111, 86, 66, 51, 40]
    """
    return [max(1, int(largest * (1 / ratio) ** (k / max(1, classes - 1)))) for k in range(classes)]


def kept(labels: Tensor, wanted: list[int]) -> Tensor:
    """Return rows in their order, of class k the first `wanted[k]`.

    Raises:
        ValueError: a class has fewer.

    >>> kept(torch.tensor([0, 0, 1, 0, 1]), [2, 1])
    tensor([0, 1, 2])
    """
    rows = []
    for label, count in enumerate(wanted):
        own = (labels == label).nonzero().flatten()
        if len(own) < count:
            raise ValueError(
                f"class {label} has {len(own)} training examples, its tail wants {count}: lower data.counts"
            )
        rows.append(own[:count])
    return torch.cat(rows).sort().values


def thirds(sizes: list[int]) -> dict[str, NDArray[np.int64]]:
    """Return the frequent third of the classes, the rare third, and those between.

    >>> {name: found.tolist() for name, found in thirds([5, 40, 3, 9]).items()}
    {'many': [1], 'medium': [0, 3], 'few': [2]}
    """
    order = np.argsort(-np.asarray(sizes), kind="stable")
    third = max(1, len(sizes) // 3)
    return {"many": order[:third], "medium": np.sort(order[third:-third]), "few": np.sort(order[-third:])}
