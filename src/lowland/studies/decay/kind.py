"""What the tables and pages of the study of decays show."""

from __future__ import annotations

from ..grid.kinds import Kind, Metric

MEANINGS = {
    "constant": "the last weights of the run that goes on at the constant rate",
    "before": "the weights at which the decays begin, fewer steps than all others",
    "decayed linear": "the run that goes on with a rate that falls linearly to zero, on the same batches",
    "decayed minus-sqrt": "the same with a rate of 1 - sqrt(x)",
    "decayed cosine": "the same with half a cosine",
    "merged linear": "checkpoints of the constant run, averaged with the coefficients of a linear decay of that length",
    "merged minus-sqrt": "the same for 1 - sqrt(x)",
    "merged cosine": "the same for half a cosine",
    "merged window": "their equal average",
    "EMA tail": "an EMA of the constant run's steps, its half-life chosen on validation text",
    "merged, chosen": "window, shape and blend chosen on validation text, among all",
    "merged by groups": "the same average, with a blend of its own for embeddings, attention and the rest, chosen on "
    "half of the validation text and shrunk towards one blend on the other half",
    "oracle": "window, shape and blend chosen on the test text: what no choice can beat",
}

KIND = Kind(
    name="decay",
    things="texts",
    metrics=(Metric("nll", "nats a byte", higher=False),),
    baseline="constant",
    methods=tuple(MEANINGS),
    claims=(
        ("merged linear", "constant"),
        ("merged linear", "decayed linear"),
        ("merged minus-sqrt", "decayed minus-sqrt"),
        ("merged minus-sqrt", "merged linear"),
        ("merged, chosen", "decayed linear"),
        ("merged, chosen", "oracle"),
        ("merged by groups", "merged, chosen"),
        ("EMA tail", "merged, chosen"),
    ),
    parts={"test": "test", "shift": "other text"},
    meanings=MEANINGS,
    seeded="the start and the order of the batches",
)
