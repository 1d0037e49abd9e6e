"""The study of images over seeds: three networks on three image sets, eighteen ways to end or to average training.

Measured: accuracy, NLL, ECE and Brier score on test images, clean and corrupted, of SGD, EMA, LAWA, SWA at 1, 1.25 and
1.5 budgets, FGE, Snapshot ensembles, SWAG, MultiSWAG, deep ensembles and ASWA, five seeds each, with Wilcoxon's test
over the nine pairs. The claims are those of Izmailov et al. 2018 (arXiv 1803.05407), Garipov et al. 2018 (1802.10026),
Maddox et al. 2019 (1902.02476), Wilson and Izmailov 2020 (2002.08791) and Demir et al. 2024 (2406.19092), at a scale
that two cores carry. Base and SWA rates were chosen by images_tune.py on MNIST's and digits' validation images of
another seed; CIFAR-10 takes them over, and no other setting was tuned.
Run: python benchmarks/images_seeds.py --cifar cifar10_jpeg.npz [--jobs N]; without --cifar MNIST and digits alone.
The run folder is runs/images, finished cells are not repeated. Results: benchmarks/results/images_seeds.md and .json.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from grids import write

from lowland.studies import report
from lowland.studies.grid import run_grid
from lowland.studies.images import KIND, ImagesStudy, cells, from_mapping, run_cell

FOLDER = Path("runs") / "images"
CIFAR_COUNTS = "cifar10=1000/500/1000"  # training, validation and test images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as JPEG bytes in an .npz file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    given = parser.parse_args()
    study = ImagesStudy()
    if given.cifar:
        data = dataclasses.replace(
            study.data,
            sets=(*study.data.sets, "cifar10"),
            counts=(*study.data.counts, CIFAR_COUNTS),
            paths=(f"cifar10={given.cifar}",),
        )
        study = dataclasses.replace(study, data=data)
    metrics = run_grid(study, KIND, cells(study), run_cell, FOLDER, build=from_mapping, jobs=given.jobs, resume=True)
    report.write(FOLDER)
    notes = [
        "The same command for a user: `lowland study images`, with CIFAR-10 by a configuration. A seed parts training "
        "from validation images and sets the starts and the order of the batches; the test images are the same for "
        "all seeds.",
        "Base rates and SWA rates were chosen on validation images of MNIST and digits, with another seed; CIFAR-10 "
        "takes them over. Nothing else was tuned: EMA, LAWA, FGE, Snapshot and the rank of SWAG have their defaults.",
        "SGD and the members of ensembles keep the running BatchNorm statistics of their training; averages get exact "
        "ones. vgg has no BatchNorm: read it apart.",
        "MultiSWAG 1.5 has had half a budget a member more than the deep ensemble; MultiSWA 1.5 has had as much.",
        "Corrupted parts are the first 500 test images; sensitivity is one seed.",
    ]
    command = "python benchmarks/images_seeds.py" + (" --cifar cifar10_jpeg.npz" if given.cifar else "")
    write(KIND, FOLDER, "images_seeds", command, notes, ("scikit-learn", "scipy"))
    print(metrics["verdict"])


if __name__ == "__main__":
    main()
