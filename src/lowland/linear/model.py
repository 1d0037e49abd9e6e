"""A fitted model as the bytes of one safetensors file: what is not zero, and the names of those features.

indices int64 (nonzero,)   values float64 (problems, nonzero)   intercept float64 (problems,)
names uint8: the names of the features, in the order of `indices`, one a line; metadata: what is no tensor, as JSON
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.sparse import csr_matrix
from sklearn.utils.validation import check_is_fitted

from .acowa import ACOWALogisticRegression
from .averages import DebiasedAverageLogisticRegression, NaiveAverageLogisticRegression
from .classifier import PartitionedClassifier
from .csl import CSLLogisticRegression
from .owa import OWALogisticRegression
from .proxcsl import ProxCSLLogisticRegression

_CLASSES: dict[str, type[PartitionedClassifier]] = {
    cls.__name__: cls
    for cls in (
        ACOWALogisticRegression,
        CSLLogisticRegression,
        DebiasedAverageLogisticRegression,
        NaiveAverageLogisticRegression,
        OWALogisticRegression,
        ProxCSLLogisticRegression,
    )
}
_FORMAT = "lowland.linear/1"


def to_bytes(model: PartitionedClassifier, names: Sequence[str] | None = None) -> bytes:
    """Return the model as a safetensors file.

    Args:
        names: of all features; of those that have a coefficient they are kept. None: the model's own, if it has any.

    Raises:
        NotFittedError: the model is not fitted.
        ValueError: the number of names is not that of the features, or a name holds a line break.

    >>> X, y = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]] * 5), [1, 1, 0, 0] * 5
    >>> model = OWALogisticRegression(lambda_=0.01, n_partitions=2, random_state=0).fit(X, y)
    >>> again, names = from_bytes(to_bytes(model, ["left", "right"]))
    >>> bool((again.coef_ == model.coef_).all()), names
    (True, {0: 'left', 1: 'right'})
    """
    check_is_fitted(model)
    names = getattr(model, "feature_names_in_", None) if names is None else names
    tensors = {
        "indices": model.support_.astype(np.int64),
        "values": np.ascontiguousarray(model.coef_[:, model.support_]),
        "intercept": np.asarray(model.intercept_, dtype=np.float64),
    }
    if names is not None:
        if len(names) != model.n_features_in_:
            raise ValueError(f"there must be a name for each of {model.n_features_in_} features, got {len(names)}")
        kept = [str(names[int(place)]) for place in model.support_]
        if any("\n" in name for name in kept):
            raise ValueError("a feature's name holds a line break")
        tensors["names"] = np.frombuffer("\n".join(kept).encode(), dtype=np.uint8)
    told = {
        "format": _FORMAT,
        "estimator": type(model).__name__,
        "lambda": float(np.atleast_1d(model.lambda_)[-1]),
        "classes": model.classes_.tolist(),
        "classes_dtype": model.classes_.dtype.str,
        "features": int(model.n_features_in_),
        "gap": float(model.duality_gap_),
        "bytes_sent": model.bytes_sent_,
        "rounds": int(model.n_rounds_),
    }
    return bytes(save(tensors, {"lowland": json.dumps(told, sort_keys=True)}))


def from_bytes(content: bytes) -> tuple[PartitionedClassifier, dict[int, str]]:
    """Return the fitted model, and the names of the features that have a coefficient, by place.

    Raises:
        ValueError: these are not the bytes of such a model.
    """
    try:
        tensors = load(content)
        told = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["lowland"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"this is no model of lowland.linear: {error}") from error
    if told.get("format") != _FORMAT:
        raise ValueError(f"this is no model of lowland.linear: its format is {told.get('format')!r}, not {_FORMAT!r}")
    model = _CLASSES[told["estimator"]](lambda_=told["lambda"])
    fitted: Any = model
    fitted.classes_ = np.array(told["classes"], dtype=told["classes_dtype"])
    fitted.n_features_in_ = told["features"]
    coef = np.zeros((len(tensors["values"]), told["features"]))
    coef[:, tensors["indices"]] = tensors["values"]
    fitted.lambdas_ = np.array([told["lambda"]])
    fitted.coef_path_, fitted.intercept_path_ = [csr_matrix(coef)], tensors["intercept"][None]
    fitted.duality_gap_, fitted.bytes_sent_, fitted.n_rounds_ = told["gap"], told["bytes_sent"], told["rounds"]
    model._show(0)
    names = bytes(tensors["names"]).decode().split("\n") if len(tensors.get("names", ())) else []
    return model, dict(zip(tensors["indices"].tolist(), names, strict=False))
