"""Shards: files of rows that are read one at a time, where a step runs, and never all at once.

    *.svm *.svmlight *.libsvm (also .gz .bz2)   one row a line, `label place:value ...`, places from 1
    *.parquet   columns `label`, `indices` and `values` (lists of one length), or `tokens` (a list of words); `weight`
    *.npz       as scipy.sparse.save_npz, with `y` beside it; `weight`

Words become features by a vocabulary or by hashing (Weinberger et al. 2009, arXiv 0902.2206). A worker holds one shard:
about 12 bytes for a number that is not zero as it is read, and 40 more while it is fitted.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

_SVMLIGHT = (".svm", ".svmlight", ".libsvm")
_PACKED = (".gz", ".bz2")
_FEATURES = b"lowland.features"  # in the metadata of a Parquet file


@dataclass(frozen=True)
class Shard:
    """A file of rows; calling it reads it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_shard(Path(folder) / "a.parquet", csr_matrix([[0.0, 2.0]]), ["spam"])
    ...     X, y, weights = Shard(Path(folder) / "a.parquet")()
    >>> X.toarray(), y.tolist(), weights
    (array([[0., 2.]]), ['spam'], None)
    """

    path: str | Path
    features: int | None = None  # columns; None: as the file says
    zero_based: bool = False  # svmlight: places from 0
    vocabulary: Sequence[str] | None = field(default=None, repr=False)  # words of the columns; None: hashed

    def __call__(self) -> tuple[csr_matrix, NDArray[Any], NDArray[Any] | None]:
        """Return rows, labels and weights.

        Raises:
            ValueError: an unknown kind of file, or one that does not hold what it should; the message names the file.
            OSError: it cannot be read.
        """
        path = Path(self.path)
        kind = _kind(path)
        if kind is None:
            known = ", ".join([*_SVMLIGHT, ".parquet", ".npz"])
            raise ValueError(f"{path.name} is no shard: its name must end in {known}")
        try:
            X, y, weights = kind(self, path)
        except (ValueError, KeyError, TypeError, EOFError) as error:
            raise ValueError(f"{path.name}: {error}") from error
        if self.features is not None and X.shape[1] != self.features:
            raise ValueError(f"{path.name}: X has {X.shape[1]} features, but {self.features} are expected")
        return X, y, weights


def shards_in(
    folder: str | Path,
    *,
    features: int | None = None,
    zero_based: bool = False,
    vocabulary: Sequence[str] | None = None,
) -> list[Shard]:
    """Return the shards of a folder in the order of their names; only names are read.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
    """
    found = [path for path in sorted(Path(folder).iterdir()) if _kind(path) is not None and path.name[0] != "."]
    if not found:
        raise FileNotFoundError(f"no shard in {folder}: wanted *.parquet, *.npz or *.svm files")
    return [Shard(path, features, zero_based, vocabulary) for path in found]


def write_shard(path: str | Path, X: csr_matrix, y: ArrayLike, weights: ArrayLike | None = None) -> None:
    """Write rows as a shard of the kind that the name says; the old file or the new one is there, never a half."""
    path, X, labels = Path(path), csr_matrix(X), np.asarray(y)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix="".join(path.suffixes[-2:]))
    os.close(handle)
    try:
        _write(Path(name), X, labels, None if weights is None else np.asarray(weights, dtype=float))
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _write(path: Path, X: csr_matrix, y: NDArray[Any], weights: NDArray[Any] | None) -> None:
    kind = _kind(path)
    if kind is _parquet:
        import pyarrow as pa
        from pyarrow import parquet

        ends = pa.array(X.indptr.astype(np.int32))
        columns = {
            "label": pa.array(y),
            "indices": pa.ListArray.from_arrays(ends, pa.array(X.indices.astype(np.int32))),
            "values": pa.ListArray.from_arrays(ends, pa.array(X.data)),
        }
        if weights is not None:
            columns["weight"] = pa.array(weights)
        table = pa.table(columns).replace_schema_metadata({_FEATURES: str(X.shape[1]).encode()})
        parquet.write_table(table, path)
    elif kind is _npz:
        more = {} if weights is None else {"weight": weights}
        shape, form = np.array(X.shape), np.array(b"csr")
        rows = {"data": X.data, "indices": X.indices, "indptr": X.indptr, "shape": shape, "format": form, "y": y}
        np.savez(path, **rows, **more)  # type: ignore[arg-type]
    elif kind is _svmlight and weights is None and path.suffix not in _PACKED:
        from sklearn.datasets import dump_svmlight_file

        dump_svmlight_file(X, y, str(path), zero_based=False)
    else:
        raise ValueError(f"cannot write {path.name}: wanted .parquet or .npz, or .svm without weights")


def _svmlight(shard: Shard, path: Path) -> tuple[csr_matrix, NDArray[Any], None]:
    from sklearn.datasets import load_svmlight_file

    X, y = load_svmlight_file(str(path), n_features=shard.features, zero_based=shard.zero_based)
    if X.nnz and X.indices.min() < 0:
        raise ValueError("a place is 0: places begin at 1, or say zero_based=True")
    return csr_matrix(X), y, None


def _npz(shard: Shard, path: Path) -> tuple[csr_matrix, NDArray[Any], NDArray[Any] | None]:
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in ("data", "indices", "indptr", "shape", "y") if name not in file]
        if missing:
            raise ValueError(f"has no {', '.join(missing)}: wanted what scipy.sparse.save_npz writes, and y")
        X = csr_matrix((file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"]))
        return X, file["y"], file["weight"] if "weight" in file else None


def _parquet(shard: Shard, path: Path) -> tuple[csr_matrix, NDArray[Any], NDArray[Any] | None]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names, told = set(file.schema_arrow.names), (file.schema_arrow.metadata or {}).get(_FEATURES)
        wanted = {"label", "tokens"} if "tokens" in names else {"label", "indices", "values"}
        if wanted - names:
            only = [name[:60] for name in sorted(names)[:12]]
            raise ValueError(f"has no column {sorted(wanted - names)}, only {only}{' ...' if len(names) > 12 else ''}")
        table = file.read(columns=sorted(wanted | (names & {"weight"})))
    y = table["label"].to_numpy()
    y = y if y.dtype.kind != "O" else np.array(y.tolist())
    weights = table["weight"].to_numpy() if "weight" in names else None
    if "tokens" in names:
        return _counted(table["tokens"].to_pylist(), shard), y, weights
    places, values = table["indices"].combine_chunks(), table["values"].combine_chunks()
    ends = places.offsets.to_numpy()
    if not np.array_equal(ends, values.offsets.to_numpy()):
        raise ValueError("a row has lists `indices` and `values` of different lengths")
    features = shard.features if shard.features is not None else None if told is None else int(told)
    if features is None:
        raise ValueError("does not say how many features there are: give n_features")
    flat = places.values.to_numpy(), values.values.to_numpy()
    if len(flat[0]) and not 0 <= flat[0].min() <= flat[0].max() < features:
        raise ValueError(f"a place lies outside 0 .. {features - 1}")
    return csr_matrix((flat[1].astype(float), flat[0], ends), shape=(len(y), features)), y, weights


def _counted(rows: list[list[str]], shard: Shard) -> csr_matrix:
    """Counts of words, (rows, features)."""
    if shard.vocabulary is None:
        from sklearn.feature_extraction import FeatureHasher

        if shard.features is None:
            raise ValueError("words are hashed to n_features columns: say how many, or give a vocabulary")
        return csr_matrix(FeatureHasher(shard.features, input_type="string").transform(rows))
    places = {word: place for place, word in enumerate(shard.vocabulary)}
    known = [[places[word] for word in row if word in places] for row in rows]
    ends = np.cumsum([0, *(len(row) for row in known)])
    flat = np.fromiter((place for row in known for place in row), dtype=np.int64, count=int(ends[-1]))
    X = csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(rows), len(places)))
    X.sum_duplicates()
    return X


def _kind(path: Path) -> Callable[[Shard, Path], tuple[csr_matrix, NDArray[Any], NDArray[Any] | None]] | None:
    suffix = Path(path.stem).suffix if path.suffix in _PACKED else path.suffix
    if suffix in _SVMLIGHT:
        return _svmlight
    return {".parquet": _parquet, ".npz": _npz}.get(path.suffix)
