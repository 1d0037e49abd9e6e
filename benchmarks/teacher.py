"""Claim: a teacher costs four bytes a trained weight, and no second model; for an adapter that is next to nothing.

    python benchmarks/teacher.py           a minute
    python benchmarks/teacher.py --quick

For a model of about 57 million weights (--width 1024), whole in float32, whole in bfloat16, and with a LoRA adapter of
rank 8 on a bfloat16 base: what is added to resident memory by making the teacher, and at most by running a block with
its weights; beside a deep copy of the model as the teacher. `peak_extra` of harness.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import harness
import torch
from torch import nn

from lowland import EMA
from lowland.teacher import Teacher

LAYERS = 54


def network(width: int, dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS))).to(dtype)


def adapted(width: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    base = network(width, torch.bfloat16)
    names = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    model: nn.Module = get_peft_model(base, LoraConfig(r=8, target_modules=names), autocast_adapter_dtype=False)  # type: ignore[arg-type]
    return model


def measured(make: Callable[[], nn.Module], width: int) -> tuple[int, int, int, int, int]:
    """Weights in all and trained, and bytes: of making the teacher, at most of a block, of a deep copy."""
    model = make()
    x = torch.zeros(1, width, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        model(x)
    kept: list[Teacher] = []
    made = harness.peak_extra(lambda: kept.append(Teacher(EMA(0.99), model)))
    teacher = kept[0]

    def block() -> None:
        with teacher.weights():
            model(x)

    block()
    inside = harness.peak_extra(block)
    twin = harness.peak_extra(lambda: copy.deepcopy(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return total, trained, made, inside, twin


def main() -> None:
    options = harness.arguments(__doc__, width=1024)
    width = 256 if options.quick else options.width
    kinds: dict[str, Callable[[], nn.Module]] = {
        "float32": lambda: network(width, torch.float32),
        "bfloat16": lambda: network(width, torch.bfloat16),
        "LoRA on bfloat16": lambda: adapted(width),
    }
    Teacher(EMA(0.99), nn.Linear(64, 64)).update()  # what is loaded and compiled once is no teacher's
    rows, checks = [], []
    for name, make in kinds.items():
        total, trained, made, inside, twin = measured(make, width)
        rows.append(
            {
                **{"student": name, "weights, M": f"{total / 1e6:.1f}", "trained, M": f"{trained / 1e6:.2f}"},
                **{"teacher, MB": f"{made / 1e6:.1f}", "at most within a block, MB": f"{inside / 1e6:.1f}"},
                "deep copy, MB": f"{twin / 1e6:.1f}",
            }
        )
        wanted = 4 * trained * 1.1 + 2e6
        checks.append(
            (
                f"{name}: four bytes a trained weight",
                f"<= {wanted / 1e6:.1f} MB",
                f"{made / 1e6:.1f} MB",
                made <= wanted,
            )
        )
    harness.write("teacher", "What a teacher holds", {"Resident memory": rows}, checks=checks, packages=["peft"])


if __name__ == "__main__":
    main()
