"""A user's model, data and loss for `lowland landscape`: named on the command line, made where they are measured."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..landscape.measures import Draws, Measured
    from ..weights.named import Weights


def called(spec: str, option: str) -> Callable[..., Any]:
    """Return the function that `FILE:FUNCTION` names.

    Raises:
        ValueError: it is not of that form, or the file defines no such function.
        FileNotFoundError: there is no such file.
    """
    file, _, name = spec.rpartition(":")
    if not file or not name:
        raise ValueError(f"{option} wants FILE:FUNCTION, such as my.py:build, got {spec!r}")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, which {option} names")
    found = importlib.util.spec_from_file_location(f"lowland_landscape_{path.stem}", path)
    if found is None or found.loader is None:
        raise ValueError(f"{path} is no Python file: {option} wants FILE:FUNCTION")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path} defines no function {name}, which {option} names")
    return function  # type: ignore[no-any-return]


def weights_in(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint: a folder or file of safetensors or torch, or a state file, by its mean."""
    import torch

    from .. import load
    from ..checkpoints import open_checkpoint
    from ..checkpoints.streaming import Reader

    checkpoint = open_checkpoint(path)
    if checkpoint.state is not None:
        state = load(path)
        if isinstance(state, dict):
            return state
        if not hasattr(state, "mean"):
            raise ValueError(f"{path} is a {type(state).__name__}, which has no mean: give one set of weights")
        return dict(state.mean())
    found = {}
    with Reader() as reader:
        for name, stored in checkpoint.tensors.items():
            flat = torch.empty(stored.numel, dtype=stored.dtype)
            reader.read(stored, 0, stored.numel, flat)
            found[name] = flat.view(stored.shape)
    return found


def posterior_in(path: Path) -> Any:
    """Return the SWAG that a state file holds, or None: what has deviations has a subspace."""
    from .. import load
    from ..checkpoints import open_checkpoint

    if open_checkpoint(path).state is None:
        return None
    state = load(path)
    return state if hasattr(state, "draws") and deviations_of(state) else None


def deviations_of(state: Any) -> dict[str, Tensor]:
    """Return the deviations of a SWAG from its mean by name, (rank, *shape) each; none of what has none."""
    slots = state.state_dict()["slots"] if hasattr(state, "state_dict") else {}
    return dict(slots.get("deviations", {}))


def supervised(model: nn.Module, batch: Any) -> Any:
    """Return loss and error of a batch: a mapping with `labels` as Transformers takes it, or inputs and labels."""
    from ..landscape.measures import classification

    if not isinstance(batch, Mapping):
        return classification(model, batch)
    output: Any = model(**batch)
    found = {"loss": output.loss}
    logits, labels = output.logits, batch["labels"]
    if logits.ndim == labels.ndim + 1 and not labels.is_floating_point():
        if logits.ndim == 3:  # a causal model: position k answers for the token behind it
            logits, labels = logits[:, :-1], labels[:, 1:]
        asked = labels != -100
        found["error"] = (logits.detach().argmax(-1) != labels)[asked].float().mean()
    return found


@dataclass
class FromFiles:
    """A measure that is made from what was named: other processes are sent the names, and make their own.

    Args:
        model: FILE:FUNCTION, or a folder that Transformers reads.
        data, loss: FILE:FUNCTION; loss may be "".
        bn: "exact", "fast" or "frozen".
        reference: the checkpoint at which "fast" runs all batches.
    """

    model: str
    data: str
    loss: str = ""
    bn: str = "exact"
    reference: str = ""
    _made: Any = field(default=None, repr=False, compare=False)

    def __call__(self, weights: Weights) -> dict[str, float]:
        """Return what is measured at these weights."""
        return self.measure(weights)

    def many(self, draws: Draws) -> Iterator[dict[str, float]]:
        """Yield what is measured at several places."""
        return self.measure.many(draws)

    def __reduce__(self) -> tuple[Any, ...]:
        return FromFiles, (self.model, self.data, self.loss, self.bn, self.reference)

    @property
    def measure(self) -> Measured[Any]:
        """The measure; made at the first call."""
        made: Measured[Any] = self._parts[0]
        return made

    @property
    def parts(self) -> tuple[nn.Module, dict[str, list[Any]], Callable[..., Any], Callable[[nn.Module], object] | None]:
        """Model, batches by name, loss, and what refreshes BatchNorm."""
        _, model, sets, loss, refresh = self._parts
        return model, sets, loss, refresh

    @property
    def _parts(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> tuple[Any, ...]:
        from ..batchnorm.statistics import layers_of
        from ..landscape import exact, fast, frozen, measured

        model = _model(self.model)
        given = called(self.data, "--data")()
        sets = {k: list(v) for k, v in given.items()} if isinstance(given, Mapping) else {"": list(given)}
        if not sets or not all(sets.values()):
            raise ValueError(f"{self.data} gave no batch: return a list of batches, or several lists by name")
        loss = called(self.loss, "--loss") if self.loss else supervised
        training = sets.get("train", next(iter(sets.values())))
        refresh: Any = frozen()
        if layers_of(model) and self.bn == "exact":
            refresh = exact(training)
        elif layers_of(model) and self.bn == "fast":
            refresh = fast(model, self.fitted(weights_in(Path(self.reference)), model), training)
        return measured(model, sets, loss, refresh=refresh), model, sets, loss, refresh

    def fitted(self, weights: Weights, model: nn.Module | None = None) -> dict[str, Tensor]:
        """Return those of the weights that are parameters of the model, each tied one once.

        Raises:
            ValueError: none is, or one is missing.
        """
        from ..weights import weights_of

        model = self.parts[0] if model is None else model
        own = weights_of(model)
        missing = [name for name in own if name not in weights]
        if missing:
            raise ValueError(
                f"the checkpoint lacks {missing[:5]} of the {type(model).__name__} that --model builds: give "
                "checkpoints of this model"
            )
        return {name: weights[name] for name in own}

    def about(self) -> dict[str, str]:
        """Return what a caption says."""
        model, sets, _, refresh = self.parts
        from ..landscape.measures import examples

        counts = ", ".join(f"{sum(map(examples, s))} {n or 'examples'}".strip() for n, s in sets.items())
        size = sum(p.numel() for p in model.parameters())
        from ..batchnorm.statistics import layers_of

        return {
            "data": f"{Path(self.data.rpartition(':')[0]).name} ({counts})",
            "model": f"{type(model).__name__}, {size:,} weights",
            "refresh": str(refresh) if layers_of(model) else "no BatchNorm",
        }

    def at(self, reference: str) -> FromFiles:
        """The same with another reference."""
        return replace(self, reference=reference, _made=None)


def _model(spec: str) -> nn.Module:
    from torch import nn

    folder = Path(spec)
    if folder.is_dir():
        return _of_transformers(folder)
    model = called(spec, "--model")()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec} returned {type(model).__name__}, wanted a torch module")
    return model


def _of_transformers(folder: Path) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{folder} is read by Transformers: pip install 'lowland[text]'") from error
    file = folder / "config.json"
    names = json.loads(file.read_text()).get("architectures") if file.is_file() else None
    if not names or not hasattr(transformers, names[0]):
        raise ValueError(
            f"{folder} names no architecture of Transformers in its config.json: give --model FILE:FUNCTION"
        )
    model: nn.Module = getattr(transformers, names[0])(transformers.AutoConfig.from_pretrained(folder))
    return model
