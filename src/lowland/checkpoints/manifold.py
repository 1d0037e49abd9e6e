"""Weights that are stored as a function of others: their averages are made of the weights themselves.

    weight norm     w = g v / ||v||        the average of w is stored: v = mean(w), g = ||v||
    spectral norm   w = W / (u' W v)       W is averaged; u, v are W's own leading singular vectors, found anew

Tim Salimans, Diederik Kingma 2016, arXiv 1602.07868; Takeru Miyato, Toshiki Kataoka, Masanori Koyama, Yuichi Yoshida
2018, arXiv 1802.05957. Other parametrisations (torch.nn.utils.parametrize) are not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..weights.named import Weights
from .layout import Stored

_ITERATIONS = 2000  # of power iteration, until the singular value stands still


@dataclass(frozen=True)
class Group:
    """Tensors that are averaged together: a weight in its stored form, and what is derived from it."""

    kind: str  # "weight norm" or "spectral norm"
    names: tuple[str, ...]  # (g, v), or (W, u, v)
    shapes: tuple[tuple[int, ...], ...]


def groups_of(tensors: Mapping[str, Stored]) -> list[Group]:
    """Return the groups that are known, by the names that torch gives them in both of its forms."""
    found = []
    for name in tensors:
        _, inside, leaf = f".{name}".rpartition(".parametrizations.")
        own = leaf.split(".") if inside else []
        if own[1:] == ["original0"]:
            found += _norm(tensors, name, f"{name[: -len('original0')]}original1")
        elif own[1:] == ["original"]:
            stem = name[: -len("original")]
            vectors = [n for n in tensors if n.startswith(stem) and n != name]
            if len(vectors) == 2 and {n.rpartition(".")[2] for n in vectors} == {"_u", "_v"}:
                found.append(_group("spectral norm", tensors, name, *sorted(vectors)))
        elif name.endswith("_g") and f"{name[:-2]}_orig" not in tensors:
            found += _norm(tensors, name, f"{name[:-2]}_v")
        elif name.endswith("_orig") and f"{name[:-5]}_u" in tensors:
            stem = name[:-5]
            if f"{stem}_v" in tensors:
                found.append(_group("spectral norm", tensors, name, f"{stem}_u", f"{stem}_v"))
    return found


def strange_groups(tensors: Mapping[str, Stored], *, posterior: bool) -> list[str]:
    """Return the names of parametrised weights that cannot be averaged; in a posterior, all of them."""
    known = groups_of(tensors)
    held = {name for group in known for name in group.names}
    strange = [name for name in tensors if ".parametrizations." in f".{name}" and name not in held]
    strange += [n for n in tensors if n.endswith("_orig") and f"{n[:-5]}_u" in tensors and n not in held]
    return [*(group.names[0] for group in known), *strange] if posterior else strange


def _norm(tensors: Mapping[str, Stored], g: str, v: str) -> list[Group]:
    if v not in tensors or not tensors[g].dtype.is_floating_point:
        return []
    one, two = tensors[g].shape, tensors[v].shape
    fits = len(one) in (0, len(two)) and all(n in (1, m) for n, m in zip(one, two, strict=False))
    fits = fits and len(two) > 1 and one != two
    return [_group("weight norm", tensors, g, v)] if fits else []


def _group(kind: str, tensors: Mapping[str, Stored], *names: str) -> Group:
    return Group(kind, names, tuple(tensors[name].shape for name in names))


def ingredients_of(ingredients: Iterator[Weights], groups: Iterable[Group]) -> Iterator[Weights]:
    """Yield stretches with the weights of weight-norm groups in the place of their directions, and no unit vectors."""
    known = list(groups)
    for weights in ingredients:
        made = dict(weights)
        for group in known:
            if group.names[0] not in made:
                continue
            if group.kind == "spectral norm":
                del made[group.names[1]], made[group.names[2]]
            else:
                g, v = (made[name].view(shape) for name, shape in zip(group.names, group.shapes, strict=True))
                made[group.names[1]] = (v * (g / _size(v, g.shape))).flatten()
        yield made


def derived(mean: Mapping[str, Tensor], groups: Iterable[Group]) -> dict[str, Tensor]:
    """Return averages with what is derived from them in its place."""
    made = dict(mean)
    for group in groups:
        if group.names[0] not in made:
            continue
        if group.kind == "weight norm":
            weight = made[group.names[1]].view(group.shapes[1])
            made[group.names[0]] = _size(weight, group.shapes[0]).flatten()
        else:
            weight = made[group.names[0]].view(group.shapes[0])
            u, v = singular(_matrix(weight, *group.shapes[1:]))
            made[group.names[1]], made[group.names[2]] = u.to(weight.dtype), v.to(weight.dtype)
    return made


def _size(weight: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The norm over all axes along which `shape` has one element."""
    axes = [axis for axis in range(weight.dim()) if len(shape) != weight.dim() or shape[axis] == 1]
    size = weight.double().square().sum(axes, keepdim=True).sqrt() if axes else weight.double().abs()
    return size.to(weight.dtype).reshape(shape)


def _matrix(weight: Tensor, u: tuple[int, ...], v: tuple[int, ...]) -> Tensor:
    """The matrix whose singular vectors have these lengths: one axis stays, the others are joined."""
    for axis in range(weight.dim()):
        turned = weight.movedim(axis, 0).flatten(1)
        if turned.shape == (*u, *v):
            return turned
    raise ValueError(
        f"spectral norm of a weight {tuple(weight.shape)} with vectors {u} and {v}: remove it before saving"
    )


def singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the leading singular vectors of a matrix, by power iteration.

    >>> u, v = singular(torch.diag(torch.tensor([3.0, 1.0])))
    >>> u.abs().round().tolist(), v.abs().round().tolist()
    ([1.0, 0.0], [1.0, 0.0])
    """
    wide = matrix.double()
    # Of no special direction: one that is orthogonal to the leading vector would find another.
    u = torch.linspace(1.0, 2.0, len(wide), dtype=torch.float64).sin() + 1e-3 * torch.arange(len(wide)).cos()
    before = -1.0
    v = wide.T @ u
    for _ in range(_ITERATIONS):
        v = torch.nn.functional.normalize(wide.T @ u, dim=0, eps=1e-300)
        u = wide @ v
        size = float(u.norm())
        u = torch.nn.functional.normalize(u, dim=0, eps=1e-300)
        if abs(size - before) <= 1e-14 * size:
            break
        before = size
    return u, v
