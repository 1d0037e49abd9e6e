"""Shards: what is written is read, what is broken is refused by name; and models as files."""

import gzip

import numpy as np
import pytest
from scipy.sparse import csr_matrix, save_npz

from lowland.linear import (
    ACOWALogisticRegression,
    OWALogisticRegression,
    Shard,
    from_bytes,
    shards_in,
    to_bytes,
    write_shard,
)
from tests.linear.toy import ALL, drawn, parts_of

X, Y = drawn(rows=90, columns=30)


@pytest.mark.parametrize("ending", ["parquet", "npz", "svm"])
def test_a_shard_comes_back(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    write_shard(path, X, Y)
    rows, labels, weights = Shard(path, features=30)()
    np.testing.assert_allclose(rows.toarray(), X.toarray(), rtol=1e-12)
    np.testing.assert_array_equal(labels, Y)
    assert weights is None
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_weights_and_words_as_labels_come_back(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    write_shard(path, X[:3], ["no", "yes", "no"], [1.0, 2.0, 0.5])
    rows, labels, weights = Shard(path)()
    assert rows.shape == (3, 30) and labels.tolist() == ["no", "yes", "no"]
    np.testing.assert_array_equal(weights, [1.0, 2.0, 0.5])


@pytest.mark.parametrize("ending", ["parquet", "npz", "svm"])
def test_a_fit_on_shards_is_the_fit_on_their_rows(ending, tmp_path):
    parts = parts_of(X, Y, 3)
    for k, (rows, labels) in enumerate(parts):
        write_shard(tmp_path / f"{k}.{ending}", rows, labels)
    # Text has fewer digits than the rows: the folds, which go by all of them, are left out of the comparison.
    settings = {"lambda_": 0.02, "random_state": 0, "merge_rows": 1.0, "merge_lambda": 0.1}
    found = ACOWALogisticRegression(**settings).fit_partitions(shards_in(tmp_path, features=30))
    direct = ACOWALogisticRegression(**settings).fit_partitions(parts)
    np.testing.assert_allclose(found.coef_, direct.coef_, atol=1e-9)
    paths = sorted(tmp_path.iterdir())
    if ending != "svm":
        again = ACOWALogisticRegression(**settings).fit_partitions(paths)
        np.testing.assert_array_equal(again.coef_, found.coef_)


def test_words_by_vocabulary_and_by_hashing(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [["cheap", "pills", "cheap"], ["dear", "friend"], [], ["pills", "unknown"]]
    parquet.write_table(pa.table({"tokens": rows, "label": [1, 0, 0, 1]}), tmp_path / "a.parquet")
    (shard,) = shards_in(tmp_path, vocabulary=["cheap", "dear", "friend", "pills"])
    np.testing.assert_array_equal(shard()[0].toarray(), [[2, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    hashed = Shard(tmp_path / "a.parquet", features=64)()[0]
    assert hashed.shape == (4, 64)
    np.testing.assert_array_equal(np.abs(hashed).sum(axis=1).ravel(), [[3, 2, 0, 2]])
    with pytest.raises(ValueError, match=r"a\.parquet: words are hashed to n_features columns"):
        Shard(tmp_path / "a.parquet")()


def test_packed_lines(tmp_path):
    with gzip.open(tmp_path / "a.svm.gz", "wt") as file:
        file.write("1 1:2.5 3:1\n-1 2:1\n")
    rows, labels, _ = shards_in(tmp_path, features=3)[0]()
    np.testing.assert_array_equal(rows.toarray(), [[2.5, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(labels, [1, -1])


def test_bad_shards(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    with pytest.raises(FileNotFoundError, match="no shard in"):
        shards_in(tmp_path)
    (tmp_path / "zero.svm").write_text("1 0:1\n")
    with pytest.raises(ValueError, match=r"zero\.svm: "):
        Shard(tmp_path / "zero.svm")()
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"half\.parquet: "):
        Shard(tmp_path / "half.parquet")()
    (tmp_path / "half.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"half\.npz: "):
        Shard(tmp_path / "half.npz")()
    save_npz(tmp_path / "no_y.npz", X)
    with pytest.raises(ValueError, match=r"no_y\.npz: has no y"):
        Shard(tmp_path / "no_y.npz")()
    columns = {"label": [1], "indices": [[0, 5]], "values": [[1.0, 1.0]]}
    for name, changed, says in [
        ("nameless", {"values": [[1.0]]}, "of different lengths"),
        ("far", {}, r"a place lies outside 0 \.\. 3"),
    ]:
        parquet.write_table(pa.table({**columns, **changed}), tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=rf"{name}\.parquet: .*{says}"):
            Shard(tmp_path / f"{name}.parquet", features=4)()
    parquet.write_table(pa.table({"label": [1]}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty\.parquet: has no column \['indices', 'values'\]"):
        Shard(tmp_path / "empty.parquet")()
    with pytest.raises(ValueError, match="b.txt is no shard"):
        Shard(tmp_path / "b.txt")()
    with pytest.raises(ValueError, match="cannot write"):
        write_shard(tmp_path / "c.svm", X, Y, np.ones(90))
    assert not (tmp_path / "c.svm").exists()


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_comes_back(cls, classes):
    rows, labels = drawn(rows=150, columns=30, classes=classes)
    model = cls(0.05, n_partitions=2, random_state=0).fit(rows, np.array(["a", "b", "c"])[labels])
    names = [f"word {k}" for k in range(30)]
    again, known = from_bytes(to_bytes(model, names))
    assert type(again) is cls and known == {int(k): f"word {k}" for k in model.support_}
    np.testing.assert_array_equal(again.predict_proba(rows), model.predict_proba(rows))
    np.testing.assert_array_equal(again.predict(rows), model.predict(rows))
    assert again.duality_gap_ == model.duality_gap_


def test_bad_models():
    model = OWALogisticRegression(0.05, n_partitions=2, random_state=0).fit(X, Y)
    with pytest.raises(ValueError, match="a name for each of 30 features, got 2"):
        to_bytes(model, ["a", "b"])
    for content in (b"", b"no tensors here", to_bytes(model)[:40]):
        with pytest.raises(ValueError, match=r"no model of lowland\.linear"):
            from_bytes(content)
    # Nothing but zeros, and nothing that is named.
    empty = OWALogisticRegression(5.0, n_partitions=2, random_state=0).fit(csr_matrix(X), Y)
    assert from_bytes(to_bytes(empty, [str(k) for k in range(30)]))[1] == {}
