"""The study of links over seeds: three graphs, three scoring functions, six ways to choose or average weights.

Measured: filtered MRR and Hits@1/3/10 of last iterate, best checkpoint, EMA, SWA, SWA from epoch 1 and ASWA on the test
links of UMLS, Kinships and Nations and on multi-hop queries, five seeds each, with Wilcoxon's test over the nine pairs.
The claim of Demir et al. 2024 (arXiv 2406.19092) is that ASWA generalises better than SWA and than the running model.
Rates were chosen by links_tune.py on validation links of another seed.
Run: python benchmarks/links_seeds.py [--jobs N]; the run folder is runs/links, finished cells are not repeated.
Results: benchmarks/results/links_seeds.md and .json.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from grids import write

from lowland.studies import report
from lowland.studies.grid import run_grid
from lowland.studies.links import KIND, LinksStudy, cells, from_mapping, run_cell

FOLDER = Path("runs") / "links"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    study = LinksStudy()
    jobs = parser.parse_args().jobs
    metrics = run_grid(study, KIND, cells(study), run_cell, FOLDER, build=from_mapping, jobs=jobs, resume=True)
    report.write(FOLDER)
    notes = [
        "The same command for a user: `lowland study links`. Seeds set the start and the order of the batches; the "
        "splits are the published ones.",
    ]
    write(KIND, FOLDER, "links_seeds", "python benchmarks/links_seeds.py", notes, ("pykeen", "scipy"))
    print(metrics["verdict"])


if __name__ == "__main__":
    main()
