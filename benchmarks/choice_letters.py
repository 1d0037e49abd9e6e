"""The choice study with a causal language model: SmolLM2-135M answers CommonsenseQA by letters.

Measured: what choice_seeds.py measures, by the same code, for `lowland study choice --kind letters` with two members
and a few more test questions. The rates are the study's defaults; nothing was chosen for this page.
Run: python benchmarks/choice_letters.py [SEED ...]; all of them by default. Finished runs are not repeated
(runs/choice-letters-SEED), and the page is written from what is there.
Results: benchmarks/results/choice_letters.json, .md.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from choice_seeds import MEMBERS, finished, gathered, write_results

from lowland.studies.choice import ChoiceStudy, run_choice_study
from lowland.studies.choice.config import small

SEEDS = (0, 1, 2)


def configured(seed: int) -> ChoiceStudy:
    """The study of `--kind letters` for a seed, with more test questions and as many draws as the time allows."""
    study = small("letters", seed=seed, members=MEMBERS)
    return dataclasses.replace(
        study,
        data=dataclasses.replace(study.data, test_questions=200, shifted_questions=100),
        evaluation=dataclasses.replace(study.evaluation, samples=3, dropout_samples=3),
    )


def main() -> None:
    for seed in [int(one) for one in sys.argv[1:]] or SEEDS:
        run_choice_study(configured(seed), Path("runs") / f"choice-letters-{seed}", resume=True)
    study = configured(0)
    write_results(
        "choice_letters",
        {study.data.name: gathered(finished("choice-letters", SEEDS))},
        "The choice study with a causal language model",
        f"SmolLM2-135M (from its four-bit GGUF) on prompts with lettered options, {MEMBERS} members a seed, "
        f"{study.data.train_questions} training and {study.data.test_questions} test questions of five options: a "
        "guess is right in 20 %.",
    )


if __name__ == "__main__":
    main()
