"""OWA and ACOWA as their equations stand: dense loops, and a minimiser that knows nothing but the objective."""

import numpy as np
from scipy.optimize import minimize


def local(X, y, penalties, weights, total):
    """argmin (1 / l) sum c_i log(1 + exp(-y_i x_i w)) + sum m_j |w_j|, with w = u - v, u and v not negative."""
    d = X.shape[1]

    def value(parts):
        w = parts[:d] - parts[d:]
        margins = y * (X @ w)
        slopes = X.T @ (-weights * y / (1 + np.exp(margins))) / total
        loss = weights @ np.logaddexp(0, -margins) / total
        return loss + np.concatenate([penalties, penalties]) @ parts, np.concatenate([slopes, -slopes]) + np.tile(
            penalties, 2
        )

    options = {"ftol": 0.0, "gtol": 1e-13, "maxiter": 20000, "maxfun": 40000}
    found = minimize(value, np.zeros(2 * d), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 2 * d, options=options)
    return found.x[:d] - found.x[d:]


def ridge(Z, y, lambda_):
    def value(v):
        margins = y * (Z @ v)
        return np.logaddexp(0, -margins).mean() + lambda_ / 2 * v @ v, Z.T @ (-y / (1 + np.exp(margins))) / len(
            y
        ) + lambda_ * v

    return minimize(value, np.zeros(Z.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-10}).x


def owa(parts, lambda_, merge_lambda):
    """Merge on all rows."""
    d = parts[0][0].shape[1]
    models = [local(X, y, np.full(d, lambda_), np.ones(len(y)), len(y)) for X, y in parts]
    return _merge(parts, models, merge_lambda)


def acowa(parts, lambda_, merge_lambda, boost=10.0):
    d = parts[0][0].shape[1]
    centroids = []
    for X, y in parts:
        for side in (1, -1):
            if (y == side).any():
                centroids.append((X[y == side].mean(axis=0), side, (y == side).sum()))
    rows, sides, counts = (np.array(column) for column in zip(*centroids, strict=True))
    more = [(np.vstack([X, rows]), np.concatenate([y, sides]), len(y)) for X, y in parts]
    first = [local(X, y, np.full(d, lambda_), np.concatenate([np.ones(n), counts]), len(y)) for X, y, n in more]
    share = np.mean([w != 0 for w in first], axis=0)
    weight = 1 + boost * share
    penalties = lambda_ * d / (1 / weight).sum() / weight
    second = [local(X, y, penalties, np.ones(len(y)), len(y)) for X, y, _ in more]
    return _merge(parts, second, merge_lambda)


def _merge(parts, models, merge_lambda):
    X, y = np.vstack([X for X, _ in parts]), np.concatenate([y for _, y in parts])
    kept = [w for w in models if w.any()]
    if not kept:
        return np.zeros(X.shape[1])
    W = np.array(kept).T  # (d, machines)
    return W @ ridge(X @ W, y, merge_lambda)
