"""ASWA on single numbers as released codes run it, faults among them: what they end at, to compare with.

dice-group/dice-embeddings, `dicee/callbacks.py` at 067148a and `dicee/weight_averaging.py` at 12d82ef;
dice-group/aswa at 3039db5, `train.py` and `ddp_train.py`. The scripts begin from an untrained average that weighs
nothing; here each begins with the first weights shown.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .aswa import Judge


def cleared_count(path: list[float], score: Judge, accepts: Callable[[float, float], bool]) -> float:
    """The final average when a hard update empties the list of models, with a rollback that works.

    The model that was just taken weighs nothing in the next average. So do dice-group/aswa@3039db5, ddp_train.py line
    222, which accepts by `>=`, and dicee/weight_averaging.py@12d82ef of dice-group/dice-embeddings, by `>`.
    """
    average, n, best = path[0], 1, score(path[0])
    for running in path[1:]:
        ahead = (n * average + running) / (n + 1)
        if score(running) > score(ahead) and score(running) > best:
            average, n, best = running, 0, score(running)
        elif accepts(score(ahead), best):
            average, n, best = ahead, n + 1, score(ahead)
    return average


def train_script(path: list[float], score: Judge, remember: Callable[[nn.Module], dict[str, Tensor]]) -> float:
    """The final average of the script without hard updates, which scores the provisional average in the live model.

    dice-group/aswa@3039db5, ddp_train.py lines 202 and 232 (train.py has the same): what is remembered before the
    provisional weights are loaded is `model.state_dict()`, which holds the live tensors.
    """
    model = nn.Linear(1, 1, bias=False).double()
    weight, n = model.weight.detach(), 1
    weight.fill_(path[0])
    for running in path[1:]:
        before = score(weight.item())
        remembered = remember(model)
        model.load_state_dict({"weight": (n * weight + running) / (n + 1)})
        if score(weight.item()) >= before:
            n += 1
        else:
            model.load_state_dict(remembered)
    return weight.item()


def eager(path: list[float], score: Judge) -> float:
    """The final average of dicee/callbacks.py@067148a, which adopts what beats the average before it looks ahead."""
    average, n, best = path[0], 1, score(path[0])
    for running in path[1:]:
        if score(running) > best:
            average, n, best = running, 1, score(running)
            continue
        ahead = (n * average + running) / (n + 1)
        if score(ahead) > best:
            average, n, best = ahead, n + 1, score(ahead)
    return average


def ddp_script(path: list[float], score: Judge) -> float:
    """The final average of dice-group/aswa@3039db5, ddp_train.py: hard updates that are forgotten, no rollback."""
    average, models = path[0], [1.0]
    for running in path[1:]:
        current = score(average)
        average = (average * sum(models) + running) / (1 + sum(models))
        provisional = score(average)
        if score(running) > provisional and score(running) > current:
            average = running
            models.clear()
        elif provisional >= current:
            models.append(1.0)
    return average
