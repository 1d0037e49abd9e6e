"""Results in one file that holds all that is needed to draw them again: safetensors, written whole, never unpickled.

The numbers are tensors; what is text stands as JSON in the header under the key `lowland.landscape`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor

from ..files import tensorfile
from .estimate import Estimate
from .grid import Grid
from .hessian import Spectrum
from .rays import Rays
from .walk import Walk

KEY = "lowland.landscape"
FORMAT = 1
Result = Grid | Walk | Rays | Spectrum


def save_result(result: Result, path: str | os.PathLike[str], about: dict[str, str] | None = None) -> None:
    """Write what was measured to one file, in place of an older one in one step.

    Args:
        about: what a caption says besides the result's own: data, model, refresh.

    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "line.safetensors")
    >>> save_result(Walk((0.0, 1.0), {"loss": (1.0, 2.0)}, (3.0,)), path, {"model": "toy"})
    >>> load_result(path)
    (Walk(places 2, length 3, loss 1 to 2), {'model': 'toy'})
    """
    tensors, text = _parts(result)
    said = {**text.pop("about", {}), **(about or {})}
    header = {"format": FORMAT, "kind": type(result).__name__, "about": said, **text}
    tensorfile.write(path, tensors, {KEY: json.dumps(header)})


def load_result(path: str | os.PathLike[str]) -> tuple[Any, dict[str, str]]:
    """Read what `save_result` wrote: a grid, a walk, rays or a spectrum, and what a caption says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole file of that kind.
    """
    with tensorfile.File(path) as file:
        try:
            header = json.loads(file.metadata[KEY])
            if header["format"] != FORMAT:
                raise ValueError(f"it has format {header['format']}, wanted {FORMAT}")
            tensors = {name: file.read(name) for name in file.names}
            return _result(header, tensors), dict(header["about"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no result of a landscape ({error}): give a file of save_result") from None


def _parts(result: Result) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(result, Grid):
        tensors = {"x": _line(result.x), "y": _line(result.y), "measured": result.measured.to(torch.uint8)}
        text = {"points": result.points, "path": result.path, "about": result.about}
        if result.draws:
            tensors["draws"] = torch.tensor(result.draws, dtype=torch.float64)
        return tensors | _values(result.values), text
    if isinstance(result, Walk):
        tensors = {"t": _line(result.t), "pieces": _line(result.pieces)}
        return tensors | _values({name: _line(v) for name, v in result.values.items()}), {"names": list(result.values)}
    if isinstance(result, Rays):
        return {"t": _line(result.t), **_values(result.values)}, {"about": result.about}
    tensors = {"eigenvalues": result.eigenvalues, "errors": result.errors}
    tensors |= {"nodes": result.nodes, "weights": result.weights, "trace": _line(result.trace.values)}
    return tensors, {"dimension": result.dimension, "about": result.about}


def _result(header: dict[str, Any], tensors: dict[str, Tensor]) -> Result:
    kind = header["kind"]
    values = {name.removeprefix("value/"): t for name, t in tensors.items() if name.startswith("value/")}
    if kind == "Grid":
        points = {name: (float(x), float(y)) for name, (x, y) in header["points"].items()}
        x, y = _tuple(tensors["x"]), _tuple(tensors["y"])
        draws = tuple((float(a), float(b)) for a, b in tensors["draws"].tolist()) if "draws" in tensors else ()
        measured, path = tensors["measured"].bool(), bool(header["path"])
        return Grid(x, y, values, measured, points, path, dict(header["about"]), draws)
    if kind == "Walk":
        named = {name: _tuple(values[name]) for name in header["names"]}
        return Walk(_tuple(tensors["t"]), named, _tuple(tensors["pieces"]))
    if kind == "Rays":
        return Rays(_tuple(tensors["t"]), values, dict(header["about"]))
    if kind == "Spectrum":
        return Spectrum(
            eigenvalues=tensors["eigenvalues"],
            errors=tensors["errors"],
            trace=Estimate.of(_tuple(tensors["trace"])),
            nodes=tensors["nodes"],
            weights=tensors["weights"],
            dimension=int(header["dimension"]),
            about=dict(header["about"]),
        )
    raise ValueError(f"its kind is {kind!r}")


def _values(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"value/{name}": tensor.double() for name, tensor in values.items()}


def _line(numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _tuple(tensor: Tensor) -> tuple[float, ...]:
    return tuple(tensor.tolist())
