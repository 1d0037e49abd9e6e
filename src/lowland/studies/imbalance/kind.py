"""What the tables and pages of the study of imbalance show."""

from __future__ import annotations

from ..grid.kinds import Kind, Metric

MEANINGS = {
    "single": "one network, as many forward passes as all branches of the others together",
    "one branch": "one network for the steps of a branch: a fraction of the passes of all others",
    "EMA": "an EMA of the single network's steps, its decay chosen on validation data",
    "MWA": "branches of one start, averaged once, at the end",
    "IMWA": "branches averaged at the end of each of a few episodes, momenta begun anew",
    "IMWA + EMA": "each branch with an EMA, the EMAs averaged where the branches are; one decay, not chosen",
    "averaged early": "branches for the first half of the passes, then one network from their average",
    "averaged late": "one network for the first half of the passes, then branches, averaged at the end",
}

KIND = Kind(
    name="imbalance",
    things="examples",
    metrics=(
        Metric("balanced", "mean accuracy of the classes", higher=True),
        Metric("accuracy", "accuracy", higher=True),
        Metric("many", "accuracy of the frequent third of the classes", higher=True),
        Metric("medium", "accuracy of the third between", higher=True),
        Metric("few", "accuracy of the rare third of the classes", higher=True),
        Metric("nll", "NLL", higher=False),
        Metric("passes", "examples passed forward in training, thousands", higher=False),
    ),
    baseline="single",
    methods=tuple(MEANINGS),
    claims=(
        ("MWA", "single"),
        ("IMWA", "single"),
        ("IMWA", "MWA"),
        ("IMWA + EMA", "EMA"),
        ("averaged early", "averaged late"),
    ),
    meanings=MEANINGS,
    seeded="the examples of each class, the start and the order of the batches",
)
