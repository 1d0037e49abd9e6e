"""What the tables and pages of the study of images show."""

from __future__ import annotations

from ..grid.kinds import Kind, Metric

# By name: what a method is. A number is its budgets of training where they are not one.
MEANINGS = {
    "SGD": "the last weights of a run whose rate falls to 1 %",
    "SGD 1.5": "the same schedule over 1.5 budgets: what SWA 1.5 costs, spent on training alone",
    "best checkpoint": "the epoch of the SGD run with the lowest validation NLL",
    "EMA": "the exponential moving average of the steps of the SGD run",
    "LAWA": "the mean of the last weights of the last epochs of the SGD run",
    "SWA": "the mean of the weights after each epoch from 0.75 budgets on, at SWA's own rate",
    "SWA 1.25": "the same run and average, a quarter of a budget later",
    "SWA 1.5": "the same run and average, half a budget later",
    "SWA from epoch 1": "the mean of the weights after every epoch of SWA's run, the first ones too",
    "ASWA": "SWA's run, where the validation accuracy decides what enters the average",
    "ASWA 1.5": "the same run and average, half a budget later",
    "ASWA from epoch 1": "the same, offered every epoch from the first on",
    "FGE": "the ensemble of the valleys of a cyclic rate from 0.8 budgets on: one run, several networks",
    "Snapshot": "the ensemble of the ends of cosine cycles, in a run of its own: one run, several networks",
    "SWAG 1.5": "draws from the Gaussian over the weights that SWA 1.5 averages",
    "deep ensemble": "the members' SGD runs: a budget each",
    "MultiSWA 1.5": "the members' SWA 1.5: 1.5 budgets each",
    "MultiSWAG 1.5": "draws from the members' SWAG 1.5: 1.5 budgets each",
}

KIND = Kind(
    name="images",
    things="images",
    metrics=(
        Metric("accuracy", "accuracy", higher=True),
        Metric("nll", "NLL", higher=False),
        Metric("ece", "ECE", higher=False),
        Metric("brier", "Brier", higher=False),
    ),
    baseline="SGD",
    methods=tuple(MEANINGS),
    # Few, as each one more makes the correction for their number stricter.
    claims=(
        ("SWA", "SGD"),
        ("SWA 1.5", "SGD 1.5"),
        ("FGE", "SGD"),
        ("SWAG 1.5", "SWA 1.5"),
        ("MultiSWAG 1.5", "deep ensemble"),  # half a budget a member more: the next claim has equal budgets
        ("MultiSWAG 1.5", "MultiSWA 1.5"),
        ("ASWA", "SWA"),
        ("ASWA from epoch 1", "SWA from epoch 1"),
    ),
    parts={
        "test": "test",
        "noise-3": "noise, severity 3",
        "blur-3": "blur, severity 3",
        "rotation-3": "rotation, severity 3",
        "shift-3": "shift, severity 3",
    },
    meanings=MEANINGS,
    seeded="the parting of training from validation images, the starts and the order of the batches",
)
