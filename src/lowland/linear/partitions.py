"""What `fit_partitions` takes as the rows of a machine, and how it is opened: always to the same checked form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.utils import check_array, check_consistent_length, column_or_1d
from sklearn.utils.validation import _check_sample_weight

from .rows import Part


def open_part(holder: Any, number: int) -> Part:
    """Return the rows of a machine.

    Args:
        holder: a `Part`; (X, y) or (X, y, weights); a function without arguments that returns one; a path of a shard.
        number: of the machine, for errors.

    Raises:
        ValueError: rows that scikit-learn refuses too; the message begins with the number of the partition.

    >>> open_part((np.eye(2), [0, 1]), 0).y
    array([0, 1])
    """
    if isinstance(holder, Part):
        return holder
    if isinstance(holder, str | Path):
        from .shards import Shard

        holder = Shard(holder)
    try:
        content = holder() if callable(holder) else holder
        if not isinstance(content, tuple | list) or len(content) not in (2, 3):
            raise ValueError(f"rows must come as (X, y) or (X, y, weights), got {type(content).__name__}")
        X, y = content[0], content[1]
        X = check_array(X, accept_sparse="csr", dtype=np.float64, input_name="X")
        X = csr_matrix(X)
        if not X.has_canonical_format:
            X = X.copy()  # it is the caller's
            X.sum_duplicates()
        y = column_or_1d(np.asarray(y), warn=False)
        check_consistent_length(X, y)
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise ValueError("Input y contains NaN or infinity.")
        given = content[2] if len(content) == 3 else None
        weights = _check_sample_weight(given, X, dtype=np.float64, ensure_non_negative=True)
    except ValueError as error:
        raise ValueError(f"partition {number}: {error}") from error
    kept = weights > 0
    if not kept.any():
        raise ValueError(f"partition {number}: all sample weights are zero")
    return Part(X, y, weights) if kept.all() else Part(X[kept], y[kept], weights[kept])


def holders_of(parts: Any, client: Any) -> list[Any]:
    """Return what each machine opens.

    Args:
        parts: a sequence of what `open_part` takes, of Dask's delayed objects or futures of it, or of pairs of such;
            or one pair of Dask arrays, whose blocks of rows become the machines.
        client: of a Dask cluster, or None.

    Raises:
        ValueError: no partition, or blocks of rows that do not match.
    """
    if isinstance(parts, tuple) and len(parts) in (2, 3) and all(_is_dask_array(one) for one in parts):
        parts = _blocks(parts)
    holders = [parts] if isinstance(parts, str | Path) else list(parts) if isinstance(parts, Iterable) else [parts]
    if not holders:
        raise ValueError("Found array with 0 partition(s) while a minimum of 1 is required.")
    return [_placed(holder, client) for holder in holders]


def _placed(holder: Any, client: Any) -> Any:
    """A holder with its delayed content computed: where a cluster keeps it, or here."""
    if isinstance(holder, tuple | list) and any(_is_dask(one) for one in holder):
        from dask.delayed import delayed

        holder = delayed(tuple)([_one_block(one) for one in holder])
    if _is_delayed(holder):
        return holder.compute() if client is None else client.compute(holder)
    if _is_future(holder) and client is None:
        return holder.result()
    if client is not None and isinstance(holder, tuple | list | Part):
        # As the argument of a task rows can be sent again when a worker is lost; scattered rows cannot.
        return client.submit(_kept, holder, pure=False)
    return holder


def _kept(rows: Any) -> Any:
    return rows


def _blocks(arrays: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Blocks of rows of Dask arrays with the same chunks."""
    chunks = {array.chunks[0] for array in arrays}
    if len(chunks) != 1:
        raise ValueError(f"X and y must have the same chunks of rows, got {sorted(chunks)}: rechunk one of them")
    X = arrays[0].rechunk({1: -1}) if arrays[0].numblocks[1] > 1 else arrays[0]
    return list(zip(X.to_delayed().ravel(), *(array.to_delayed().ravel() for array in arrays[1:]), strict=True))


def _one_block(one: Any) -> Any:
    if not _is_dask_array(one):
        return one
    return one.rechunk(one.shape).to_delayed().ravel()[0] if one.npartitions > 1 else one.to_delayed().ravel()[0]


def _is_dask_array(one: Any) -> bool:
    return type(one).__module__.startswith("dask.array.")


def _is_delayed(one: Any) -> bool:
    return type(one).__module__ == "dask.delayed"


def _is_future(one: Any) -> bool:
    return type(one).__module__.startswith("distributed.") and hasattr(one, "key")


def _is_dask(one: Any) -> bool:
    return _is_dask_array(one) or _is_delayed(one) or _is_future(one)
