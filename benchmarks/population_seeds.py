"""The study of populations over seeds: nine rules at equal cost, from own starts and from one, trained alike and mixed.

Measured: accuracy of the average, the greedy soup, the ensemble, the mean and the worst member, payload and wire bytes,
milliseconds of mixing, consensus distance, disagreement and the highest barrier between members. The claims are those
of Jolicoeur-Martineau et al. 2024 (PAPA, arXiv 2304.03094), Jain et al. 2023 (DART, 2302.14685), Fournier et al. 2024
(WASH, 2405.17517) and Huang et al. 2024 (IMWA, 2404.16331), at a scale that two cores carry. Rates are those of the
study of images; nothing was tuned for any rule.
Run: python benchmarks/population_seeds.py [--epochs N] [--members 3,5] [--seeds N] [--jobs N] [--cifar FILE], with
--cifar on 5,000 of CIFAR-10's training images and nothing else. One seed after the other; results are written anew
behind each, from the second on. Finished cells are not repeated.
Results: benchmarks/results/population_seeds.md and .json, with --cifar population_cifar.md and .json; --suffix makes
it population_cifar_SUFFIX, for factors that get fewer seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from grids import over_seeds, seed_by_seed, write

from lowland.studies.population import KIND, PopulationStudy, cells, from_mapping, run_cell
from lowland.studies.report import write as write_report

CIFAR_COUNTS = "cifar10=5000/500/1000"  # training, validation and test images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of each member")
    parser.add_argument("--members", default="3,5", help="sizes of the populations")
    parser.add_argument("--pools", default="alike,mixed", help="recipes of the members")
    parser.add_argument("--starts", default="own,one", help="initial weights of the members")
    parser.add_argument("--network", default="cnn")
    parser.add_argument("--papa-alpha", type=float, default=0.99)
    parser.add_argument("--suffix", default="", help="of the result's name")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as JPEG bytes in an .npz file, instead of digits")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    given = parser.parse_args()
    study = PopulationStudy()
    networks = dataclasses.replace(
        study.networks,
        names=(given.network,),
        members=tuple(map(int, given.members.split(","))),
        starts=tuple(given.starts.split(",")),
        pools=tuple(given.pools.split(",")),
    )
    training = dataclasses.replace(study.training, epochs=given.epochs, seeds=tuple(range(given.seeds)))
    rules = dataclasses.replace(study.rules, papa_alpha=given.papa_alpha)
    evaluation, data, name = study.evaluation, study.data, "population_seeds"
    if given.cifar:
        name = "population_cifar"
        data = dataclasses.replace(data, sets=("cifar10",), counts=(CIFAR_COUNTS,), paths=(f"cifar10={given.cifar}",))
        training = dataclasses.replace(training, batch_size=64)
        evaluation = dataclasses.replace(evaluation, statistics_batches=10, train_images=200)
    name += f"_{given.suffix}" if given.suffix else ""
    study = dataclasses.replace(
        study, networks=networks, training=training, data=data, rules=rules, evaluation=evaluation
    )
    folder = Path("runs") / f"{name}-{given.epochs}-{given.members.replace(',', '-')}"
    command = f"python benchmarks/population_seeds.py --epochs {given.epochs} --members {given.members}"
    command += f" --pools {given.pools} --starts {given.starts} --network {given.network} --seeds {given.seeds}"
    command += f" --papa-alpha {given.papa_alpha}" if given.papa_alpha != 0.99 else ""
    command += f" --cifar {given.cifar.name}" if given.cifar else ""
    command += f" --suffix {given.suffix}" if given.suffix else ""
    for metrics in seed_by_seed(study, KIND, cells(study), run_cell, folder, from_mapping, given.jobs):
        write_report(folder)
        write(KIND, folder, name, command, notes(study) + over_seeds(KIND, metrics), ("scikit-learn", "scipy"))
        print(metrics["verdict"], flush=True)


def notes(study: PopulationStudy) -> list[str]:
    """Return what a reader of the tables should know."""
    return [
        "The same for a user: `lowland study population`, with CIFAR-10 by a configuration. `cnn.n3` is the network "
        "and the number of members, `.one` a population of one start, `.mixed` one whose members have own recipes.",
        "All rules of a cell have as many forward passes. Averages and soups have exact BatchNorm statistics, members "
        "and ensembles those of their training. Milliseconds are of a machine with other work beside.",
        "Rates are those of the study of images; nothing was tuned for any rule. Runs are some hundred times shorter "
        f"than the sources', so WASH shuffles more than theirs (p = {study.rules.wash_p:g}, not 0.001), and a push of "
        f"PAPA, every tenth step, keeps {study.rules.papa_alpha:g} of a member's distance (theirs 0.99).",
    ]


if __name__ == "__main__":
    main()
