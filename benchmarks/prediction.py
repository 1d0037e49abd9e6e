"""Averaging predictions over 30 draws: `predict` beside plain forward passes and beside what people do today.

Models: the text study's (the packaged MiniLM encoder with LoRA adapters of rank 8 on query and value of all layers, and
a head, under PEFT) on real comments (`insults`), at most 48 tokens, texts in the order of the file; an MLP of 270k
weights; a convolutional network at 3x32x32. Draws lie in memory, so that no posterior's sampling is in the time.

Contenders: S plain forward passes of the model as it stands, nothing loaded and nothing summed (what S draws cost at
least without a plan); PEFT's loops (one adapter, its state set for each draw; S adapters loaded, one made active for
each draw); `load_state_dict` and a forward pass for each draw, averaging what `predict` averages (mean, variance,
entropies, in float64, checked to be finite), and the same for the mean alone in float32, as the PEFT loops do too;
torch-uncertainty's way, S copies of the model. Every answer must be the `load_state_dict` loop's within 1e-6.

`--only text32`, `sorted`, `text1`, `head`, `mlp` or `cnn` runs one section and writes to runs/, not to results/.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from harness import _STATE, ROOT, Row, arguments, compare, peak_extra, peer, write
from torch import Tensor, nn

from lowland import Mixture
from lowland.predict import one_by_one, predict
from lowland.studies.adapters.classifier import AdaptedClassifier, adapt, load_encoder
from lowland.studies.adapters.tokens import tokenise
from lowland.studies.packaged import load_packaged
from lowland.studies.text import Lora, Model
from lowland.weights import weights_of
from lowland.weights.named import trainable

S = 30
CLOSE = 1e-6
Weights = Mapping[str, Tensor]


def draws_around(model: nn.Module, names: Callable[[str], bool], scale: float = 0.02, **chosen: Any) -> list[Weights]:
    generator = torch.Generator().manual_seed(1)
    centre = {name: tensor.clone() for name, tensor in weights_of(model, **chosen).items() if names(name)}
    return [
        {name: tensor + scale * torch.randn(tensor.shape, generator=generator) for name, tensor in centre.items()}
        for _ in range(S)
    ]


def logits_of(output: Any) -> Tensor:
    logits: Tensor = output["logits"] if isinstance(output, Mapping) else output
    return logits


def forward(model: nn.Module, batch: Any) -> Tensor:
    return logits_of(model(**batch) if isinstance(batch, Mapping) else model(batch))


@torch.no_grad()
def averaged(model: nn.Module, batches: Sequence[Any], put: Callable[[int], object]) -> Tensor:
    """The loop that people write: put a draw in, run the batches, add up the probabilities."""
    sums = [torch.zeros(()) for _ in batches]
    for s in range(S):
        put(s)
        for index, batch in enumerate(batches):
            sums[index] = sums[index] + torch.softmax(forward(model, batch), -1)
    return torch.cat(sums).double() / S


@torch.no_grad()
def averaged_with_spread(model: nn.Module, batches: Sequence[Any], put: Callable[[int], object]) -> Tensor:
    """The same loop for all that `predict` returns: the mean, the variance, and each draw's entropy, in float64."""
    sums = [[torch.zeros((), dtype=torch.float64) for _ in batches] for _ in range(3)]
    for s in range(S):
        put(s)
        for index, batch in enumerate(batches):
            logits = forward(model, batch)
            if not bool(torch.isfinite(logits).all()):
                raise ValueError(f"batch {index} of draw {s} is not finite")
            probs = torch.softmax(logits.double(), -1)
            parts = (probs, probs.square(), torch.special.entr(probs).sum(-1))
            for one, part in zip(sums, parts, strict=True):
                one[index] = one[index] + part
    mean, square, entropy = (torch.cat(one) / S for one in sums)
    spread = square - mean.square()
    return mean if bool((spread.sum() + entropy.sum()).isfinite()) else mean * torch.nan


@torch.no_grad()
def plain(model: nn.Module, batches: Sequence[Any], times: int = S) -> None:
    for _ in range(times):
        for batch in batches:
            forward(model, batch)


def ours(model: nn.Module, draws: Sequence[Weights], batches: Sequence[Any]) -> Tensor:
    return predict(model, Mixture(list(draws)), batches).probs


def looped(model: nn.Module, draws: Sequence[Weights], batches: Sequence[Any]) -> Tensor:
    with one_by_one():
        return ours(model, draws, batches)


def plan_of(model: nn.Module, draws: Sequence[Weights], batches: Sequence[Any]) -> str:
    return predict(model, Mixture(list(draws)), batches).plan


def must_agree(answers: Mapping[str, Callable[[], Tensor]], wanted: Tensor) -> float:
    """The largest difference from the naive loop's probabilities; more than CLOSE stops the run."""
    worst = 0.0
    for name, answer in answers.items():
        far = float((answer() - wanted).abs().max())
        if far > CLOSE:
            raise SystemExit(f"{name} differs from the naive loop by {far:g}, more than {CLOSE:g}")
        worst = max(worst, far)
    return worst


class Text:
    """The text study's model, once with one adapter and once with S adapters loaded."""

    def __init__(self) -> None:
        settings = Model(max_length=48)
        encoder, tokenizer, _ = load_encoder(settings)
        (texts, _), _ = load_packaged("insults")
        self.tokens = tokenise(tokenizer, texts[:2048], settings.max_length)
        spare = copy.deepcopy(encoder)
        self.adapted: AdaptedClassifier = adapt(encoder, settings, Lora(), 2, [self.tokens])
        self.model = self.adapted.model.eval()
        self.adapted.reset(torch.Generator().manual_seed(0))
        self.draws = draws_around(self.model, lambda name: True, select=trainable)
        self.heads = draws_around(self.model, lambda name: "head" in name, select=trainable)
        self.many = self._many(adapt(spare, settings, Lora(), 2, [self.tokens]))

    def batches(self, size: int, count: int) -> list[Any]:
        """`count` batches of texts in the order of the file, each padded to its longest."""
        return [self.tokens.batch(range(start, start + size)) for start in range(0, size * count, size)]

    def _many(self, twin: AdaptedClassifier) -> nn.Module:
        model: Any = twin.model
        config = copy.deepcopy(model.peft_config["default"])
        head = dict(self.model.named_parameters())
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name in ("weight", "bias"):  # both models must start from the same head
                key = f"base_model.model.head.modules_to_save.default.{name}"
                own[key].copy_(head[key])
        for s in range(S):
            model.add_adapter(f"d{s}", copy.deepcopy(config))
        own = dict(model.named_parameters())
        with torch.no_grad():
            for s, draw in enumerate(self.draws):
                for name, tensor in draw.items():
                    own[name.replace(".default.", f".d{s}.")].copy_(tensor)
        out: nn.Module = model.eval()
        return out

    def set_state(self, s: int) -> None:
        from peft import set_peft_model_state_dict

        state = {
            name.replace(".default.", ".").replace(".modules_to_save.", "."): tensor
            for name, tensor in self.draws[s].items()
        }
        set_peft_model_state_dict(self.model, state)

    def loaded(self, s: int) -> None:
        self.model.load_state_dict(self.draws[s], strict=False)

    def active(self, s: int) -> None:
        self.many.set_adapter(f"d{s}")  # type: ignore[operator]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).eval()


def cnn() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, now, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2)):
        layers += [nn.Conv2d(before, now, 3, stride, 1, bias=False), nn.BatchNorm2d(now), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()


def copies(model: nn.Module, draws: Sequence[Weights], batches: Sequence[Any]) -> tuple[Callable[[], Tensor], str]:
    """torch-uncertainty's SWAG once its samples are drawn: a copy of the model for each; or why it is not there."""
    trouble = peer("torch-uncertainty")
    if trouble:
        return lambda: torch.empty(0), trouble
    from torch_uncertainty.methods import SWAG

    theirs = SWAG(copy.deepcopy(model), cycle_start=0, cycle_length=1, num_estimators=S)
    theirs.samples = []
    for draw in draws:
        twin = copy.deepcopy(model)
        twin.load_state_dict(draw, strict=False)
        theirs.samples.append(twin.eval())
    theirs.fit = True
    theirs.eval()

    @torch.no_grad()
    def run() -> Tensor:
        outputs = [torch.softmax(theirs(batch).view(S, len(batch), -1), -1).mean(0) for batch in batches]
        return torch.cat(outputs).double()

    return run, ""


Tables = dict[str, list[Row]]
Check = tuple[str, str, str, bool]


class Report:
    """What the sections found."""

    def __init__(self, quick: bool) -> None:
        self.rounds = 2 if quick else 4
        self.tables: Tables = {}
        self.notes: list[str] = []
        self.checks: list[Check] = []

    def most(self, claim: str, rows: Sequence[Row], name: str, limit: float) -> None:
        got = row(rows, name).ratio or 0.0
        self.checks.append((claim, f"<= {limit}x", f"{got:.3f}x", got <= limit))

    def speed(self, claim: str, rows: Sequence[Row], slow: str, fast: str) -> None:
        got = row(rows, slow).over(row(rows, fast))
        self.checks.append((claim, ">= 0.98x its speed", f"{got:.2f}x", got >= 0.98))


def row(rows: Sequence[Row], name: str) -> Row:
    return next(one for one in rows if one.name == name)


def text_32(text: Text, report: Report, name: str, batches: list[Any]) -> None:
    """Each contender takes many seconds: two rounds, and answers are compared in the timed calls."""
    answers: dict[str, Tensor] = {}
    wanted = averaged(text.model, batches[:1], text.loaded)  # of one batch, as each takes many seconds
    text.adapted.write(text.draws[0])
    plans: list[str] = []

    def predicted() -> None:
        found = predict(text.model, Mixture(text.draws), batches)
        plans.append(found.plan)
        answers["ours"] = found.probs[: len(wanted)]

    rows = compare(
        {
            "lowland predict": predicted,
            "30 plain forwards": lambda: plain(text.model, batches),
        },
        baseline="30 plain forwards",
        rounds=2,
        calls=1,
    )
    far = must_agree({"predict": lambda: answers["ours"]}, wanted)
    lengths = ", ".join(str(batch["input_ids"].shape[1]) for batch in batches)
    report.tables[f"Adapters, batches of 32 texts {name}"] = rows
    plan = ", ".join(plans)
    report.notes.append(f"Batches of 32 texts {name}: {lengths} tokens long, plans {plan}, answers within {far:.1e}.")
    report.most(f"S = 30 at batch 32, texts {name}, beside 30 plain forward passes", rows, "lowland predict", 1.05)


def folded(text: Text, report: Report) -> None:
    batches = text.batches(32, 2)
    timed = {"adapters beside the layers": text.model, "adapters folded in by hand": text.adapted.merged}
    passes = {name: (lambda model=model: plain(model, batches, 1)) for name, model in timed.items()}
    rows = compare(passes, baseline="adapters beside the layers", rounds=report.rounds, calls=1)
    report.tables["One plain pass over 2 batches of 32 texts"] = rows


def text_1(text: Text, report: Report, count: int) -> None:
    batches = text.batches(1, count)
    wanted = averaged(text.model, batches, text.loaded)
    answers = {
        "PEFT, set_peft_model_state_dict": lambda: averaged(text.model, batches, text.set_state),
        "PEFT, S adapters, set_adapter": lambda: averaged(text.many, batches, text.active),
        "lowland predict": lambda: ours(text.model, text.draws, batches),
    }
    far = must_agree(answers, wanted)
    timed = {**answers, "30 plain forwards": lambda: plain(text.model, batches)}
    rows = compare(timed, baseline="lowland predict", rounds=report.rounds, calls=1)
    what = "4 batches of one text" if count == 4 else "one text in all"
    report.tables[f"Adapters, {what}"] = rows
    report.notes.append(f"{what}: plan {plan_of(text.model, text.draws, batches)}, answers within {far:.1e}.")
    for one in rows:
        if one.name.startswith("PEFT"):
            got = one.ratio or 0.0
            claim = f"{what}, beside {one.name}"
            report.checks.append((claim, ">= 2.5x faster", f"{got:.2f}x", got >= 2.5))


def head(text: Text, report: Report) -> None:
    batches = text.batches(32, 12)
    put = lambda s: text.model.load_state_dict(text.heads[s], strict=False)  # noqa: E731
    few = [text.tokens.batch(range(start, start + 4)) for start in range(0, 32, 4)]
    far = must_agree({"predict": lambda: ours(text.model, text.heads, few)}, averaged(text.model, few, put))
    rows = compare(
        {
            "lowland predict, S = 30 heads": lambda: ours(text.model, text.heads, batches),
            "1 plain forward": lambda: plain(text.model, batches, 1),
        },
        baseline="1 plain forward",
        rounds=report.rounds,
        calls=1,
    )
    report.tables[f"Head-only posterior, {len(batches)} batches of 32 texts"] = rows
    report.notes.append(
        f"Head only: plan {plan_of(text.model, text.heads, batches)}; answers for 8 batches of 4 within {far:.1e}."
    )
    report.most("head-only posterior, S = 30, beside one forward pass", rows, "lowland predict, S = 30 heads", 1.3)


def small(report: Report, name: str, model: nn.Module, batches: list[Tensor]) -> None:
    draws = draws_around(model, lambda name: True)
    put = lambda s: model.load_state_dict(draws[s], strict=False)  # noqa: E731
    before = copy.deepcopy(model.state_dict())
    wanted = averaged_with_spread(model, batches, put)
    model.load_state_dict(before)
    answers: dict[str, Callable[[], Tensor]] = {
        "lowland predict": lambda: ours(model, draws, batches),
        "lowland, its plain loop": lambda: looped(model, draws, batches),
        "naive loop": lambda: averaged_with_spread(model, batches, put),
        "naive loop, mean only, float32": lambda: averaged(model, batches, put),
    }
    theirs, trouble = copies(model, draws, batches)
    if not trouble:
        answers["torch-uncertainty, copies of the model, mean only"] = theirs
    far = must_agree(answers, wanted)
    timed: dict[str, Callable[[], object]] = {**answers, "30 plain forwards": lambda: plain(model, batches)}
    rows = compare(timed, baseline="naive loop", rounds=report.rounds)
    report.tables[name] = rows
    report.notes.append(f"{name}: plan {plan_of(model, draws, batches)}, answers within {far:.1e}. {trouble}".strip())
    report.speed(f"{name}, beside the naive loop", rows, "naive loop", "lowland predict")
    report.speed(
        f"{name}, beside the naive loop for the mean only", rows, "naive loop, mean only, float32", "lowland predict"
    )


def main() -> None:
    options = arguments(__doc__, only="")
    only = options.only
    report = Report(options.quick)
    if only and not options.out:
        _STATE["out"] = ROOT / "runs" / "bench-quick"

    def done() -> None:
        """Write what is measured so far: a run that is stopped keeps its finished sections."""
        name = "prediction" if not only else f"prediction-{only}"
        packages = ("peft", "transformers", "torch-uncertainty")
        write(name, "Predictions averaged over 30 draws", report.tables, report.notes, report.checks, packages=packages)

    text = None if only in ("mlp", "cnn") else Text()
    if text is not None and only in ("", "text1"):
        text_1(text, report, 1)
        text_1(text, report, 4)
        done()
    if text is not None and only in ("", "head"):
        head(text, report)
        done()
    if text is not None and only in ("", "text32"):
        text_32(text, report, "in the order of the file", text.batches(32, 2))
        folded(text, report)
        done()
    generator = torch.Generator().manual_seed(2)
    if only in ("", "mlp"):
        for size, count in ((1, 1), (1, 64), (32, 16), (512, 4)):
            inputs = [torch.randn(size, 784, generator=generator) for _ in range(count)]
            many = f"{count} batches" if count > 1 else "one batch"
            small(report, f"MLP of 270k weights, {many} of {size}", mlp(), inputs)
        model, inputs = mlp(), [torch.randn(1, 784, generator=generator) for _ in range(64)]
        draws = draws_around(model, lambda name: True)
        extra = peak_extra(lambda: ours(model, draws, inputs))
        report.notes.append(f"Memory that predict adds for the MLP, 64 batches of 1: {extra / 1e6:.0f} MB.")
        done()
    if only in ("", "cnn"):
        images = [torch.randn(32, 3, 32, 32, generator=generator) for _ in range(2)]
        small(report, "CNN, 2 batches of 32 images", cnn(), images)
        done()
    if text is not None and only in ("", "sorted"):
        ranked = sorted(range(1024), key=lambda at: text.tokens.batch([at])["input_ids"].shape[1])
        starts = (0, 400)
        text_32(text, report, "sorted by length", [text.tokens.batch(ranked[start : start + 32]) for start in starts])
        done()


if __name__ == "__main__":
    main()
