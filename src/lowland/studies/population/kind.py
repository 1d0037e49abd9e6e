"""What the tables and pages of the study of populations show: a row for each rule, a table for each metric."""

from __future__ import annotations

from ..grid.kinds import Kind, Metric

# By rule, in the order of the tables.
MEANINGS = {
    "independent": "members that never meet",
    "local SGD": "the mean in the place of every member, every few steps",
    "PAPA": "every member pushed a little towards the mean, every few steps",
    "PAPA-all": "the mean in the place of every member, once an epoch but the last",
    "PAPA-2": "the mean of a random pair in the place of each member, once an epoch but the last",
    "DART": "one network first, then branches that are averaged every other epoch",
    "WASH": "a few weights shuffled between the members after every step",
    "WASH+Opt": "the same, momenta with their weights",
    "IMWA": "branches averaged at the end of each of a few episodes, momenta begun anew",
}

KIND = Kind(
    name="population",
    things="images",
    metrics=(
        Metric("average", "accuracy of the average", higher=True),
        Metric("soup", "accuracy of the greedy soup", higher=True),
        Metric("ensemble", "accuracy of the ensemble", higher=True),
        Metric("member", "accuracy of the mean member", higher=True),
        Metric("worst", "accuracy of the worst member", higher=True),
        Metric("average_nll", "NLL of the average", higher=False),
        Metric("ensemble_nll", "NLL of the ensemble", higher=False),
        Metric("payload", "payload, kB a step and member", higher=False),
        Metric("wire", "wire, kB a step and member", higher=False),
        Metric("seconds", "ms of mixing a step", higher=False),
        Metric("consensus", "consensus distance a member", higher=False),
        Metric("disagreement", "disagreement of pairs", higher=False),
        Metric("barrier", "highest barrier between members, nats", higher=False),
    ),
    baseline="independent",
    methods=tuple(MEANINGS),
    claims=(
        ("PAPA", "independent"),
        ("WASH", "independent"),
        ("WASH", "PAPA"),
        ("WASH+Opt", "WASH"),
        ("PAPA-all", "PAPA"),
        ("IMWA", "local SGD"),
    ),
    meanings=MEANINGS,
    seeded="the parting of training from validation images, the starts, the recipes and the order of the batches",
)
