"""The command `lowland doctor`: can these checkpoints be averaged, and if not, why?"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from . import screen
from .remote import local
from .scoring import ask, words_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..doctor import Diagnosis
    from ..weights.named import Weights

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


def doctor(
    inputs: Annotated[list[str], typer.Argument(help="Checkpoints, state files of lowland, patterns, or a run.")],
    score: Annotated[
        str | None,
        typer.Option(help="Command to run on a candidate, such as 'python eval.py {}'; its last number counts."),
    ] = None,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="The score is a loss.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Python file with model(), losses(model) and, for BatchNorm, batches().")
    ] = None,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="They are iterates of one run: autocorrelation and effective number.")
    ] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="Score that does not matter \\[default: 2 % of what training gained].")
    ] = None,
    points: Annotated[int, typer.Option(help="Scored between the ends of each line.")] = 3,
    as_given: Annotated[
        bool, typer.Option("--as-given", help="Keep the order \\[default: by number in the name].")
    ] = False,
    as_json: screen.Json = False,
) -> None:
    """Say whether checkpoints can be averaged; exit code 0 yes, 1 doubtful, 3 no, 2 a wrong command."""
    from ..checkpoints import expand
    from ..doctor import diagnose

    if score is not None and data is not None:
        raise ValueError("--score and --data exclude each other: give one")
    if lower_is_better and score is None:
        raise ValueError("--lower-is-better belongs to --score: losses of --data are lower for the better anyway")
    paths = expand(local(inputs), keep_order=as_given)
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    options: dict[str, Any] = {} if data is None else _from_file(data)
    if score is not None:
        options["mixture"] = _command(words_of(score), paths, -1.0 if lower_is_better else 1.0)
    ingredients = dict(zip(names, paths, strict=True))
    found = diagnose(ingredients, trajectory=trajectory, tolerance=tolerance, points=points, **options)
    if as_json:
        screen.print_json(found.as_dict())
    else:
        screen.show(_table(found))
        screen.say(_sentence(found, score is not None or data is not None))
    raise typer.Exit(found.exit_code)


def _table(found: Diagnosis) -> Table:
    table = Table(title=escape(f"{len(found.names)} ingredients"), show_lines=True)
    for heading in ("", "check", "finding", "what to do"):
        table.add_column(heading)
    for one in found.findings:
        table.add_row(f"[{_COLOURS[one.level]}]{one.level}[/]", one.check, escape(one.says), escape(one.do))
    return table


def _sentence(found: Diagnosis, scored: bool) -> str:
    proof = "" if scored else " That is what weights alone tell: --score or --data finds barriers and the gain."
    if found.verdict == "averageable":
        return f"Averageable: go on with `lowland average` or `lowland soup`.{proof}"
    if found.verdict == "doubtful":
        return f"Doubtful: an average can be made; see the warnings first.{proof}"
    group = found.groups[0] if found.groups and 1 < len(found.groups[0]) < len(found.names) else ()
    but = f" These can: {', '.join(group)}." if group else ""
    return f"Not averageable: see the errors.{but}{proof}"


def _command(words: Sequence[str], paths: Sequence[Path], sign: float) -> Callable[..., float]:
    """The score of mixtures: each is written as a checkpoint like the first of its ingredients, scored and removed."""

    def mixture(places: Sequence[int], shares: Sequence[float]) -> float:
        from ..checkpoints import average

        chosen = [paths[place] for place in places]
        if len(chosen) == 1 and shares[0] == 1.0:
            value = ask(words, chosen[0])
        else:
            with TemporaryDirectory(prefix="lowland-doctor-") as folder:
                merge = partial(_mixed, shares=tuple(shares))
                # Under the input's own name: evaluation code may look at the suffix.
                value = ask(words, average(chosen, Path(folder) / chosen[0].name, merge))
        told = " + ".join(f"{share:g} {path.name}" for share, path in zip(shares, chosen, strict=True))
        screen.err.print(f"{value:.6g}  {told}", highlight=False, markup=False)
        return sign * value

    return mixture


def _mixed(ingredients: Iterator[Weights], shares: Sequence[float]) -> dict[str, Tensor]:
    """The sum of ingredients times their shares, which may be a single share of zero."""
    import torch

    total: dict[str, Tensor] = {}
    for share, weights in zip(shares, ingredients, strict=True):
        for name, tensor in weights.items():
            wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            total[name] = share * wide + total[name] if name in total else share * wide
    return total


def _from_file(path: Path) -> dict[str, Any]:
    """Run a user's file and make a score, a model and batches of what it defines."""
    from torch import nn

    from ..weights.named import applied

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    found = importlib.util.spec_from_file_location("lowland_doctor_data", path)
    if found is None or found.loader is None:
        raise ValueError(f"{path} is no Python file: --data wants one that defines model() and losses(model)")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    missing = [name for name in ("model", "losses") if not callable(getattr(module, name, None))]
    if missing:
        raise ValueError(
            f"{path} does not define {' and '.join(f'{name}()' for name in missing)}: --data wants model(), which "
            "returns a torch module, and losses(model), which returns a loss for each validation example"
        )
    model = module.model()
    if not isinstance(model, nn.Module):
        raise ValueError(f"model() of {path} returned {type(model).__name__}, wanted a torch module")

    def score(weights: Weights) -> list[float]:
        import torch

        with torch.no_grad(), applied(model, weights):
            model.eval()
            losses = torch.as_tensor(module.losses(model), dtype=torch.float64).flatten()
        return [-loss for loss in losses.tolist()]

    batches = getattr(module, "batches", None)
    held = {} if batches is None else {"model": model, "batches": list(batches())}
    return {"score": score, **held}
