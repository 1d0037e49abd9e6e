"""The demo's full configuration once: 15 members, all training texts, the whole test file.

Measured: every metric of the eight methods with its 95 % bootstrap interval over test texts (n = 1 run), and the paired
differences MultiSWAG minus each rival. Run: python benchmarks/text_full.py; an hour or more on two cores, and it goes
on where it stopped (runs/full). Results: benchmarks/results/text_full.json and .md. Losing results stay in.
With --overconfident the 15 members train for eight epochs on 600 texts each, where the base model is overconfident, as
that of the source was (runs/full-overconfident, results in text_full_overconfident.*).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
OVERCONFIDENT = "--overconfident" in sys.argv[1:]
NAME = "text_full_overconfident" if OVERCONFIDENT else "text_full"
FOLDER = Path("runs") / ("full-overconfident" if OVERCONFIDENT else "full")
SHOWN = {"precision": "macro P", "recall": "macro R", "f1": "macro F1", "nll": "NLL", "ece": "ECE", "brier": "Brier"}


def main() -> None:
    if not (FOLDER / "report.html").exists():
        which = ["--members", "15"] if OVERCONFIDENT else ["--full"]
        command = [sys.executable, "-m", "lowland.cli", "demo", *which, "--out", str(FOLDER), "--resume"]
        subprocess.run(command, check=True)
    metrics = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
    timings = json.loads((FOLDER / "timings.json").read_text(encoding="utf-8"))
    found = {
        **{key: metrics[key] for key in ("methods", "differences", "verdict", "n_train", "n_validation", "n_test")},
        "members": len(metrics["temperature"]),
        "phase_minutes": round(timings["total_seconds"] / 60, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("lowland", "torch", "transformers", "peft")},
        "date": date.today().isoformat(),
        "command": "python benchmarks/text_full.py" + " --overconfident" * OVERCONFIDENT,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{NAME}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        "# Fifteen members where the base model is overconfident, once"
        if OVERCONFIDENT
        else "# The demo's full configuration, once",
        "",
        f"{found['members']} members, {found['n_train']} training, {found['n_validation']} validation, "
        f"{found['n_test']} test texts; n = 1 run. In brackets the 95 % bootstrap interval over test texts; rows of one"
        f" model are means over members. {found['machine']}; {versions}; {found['date']}; `{found['command']}`; "
        f"{found['phase_minutes']} minutes in all phases together.",
        "",
        "| method | " + " | ".join(SHOWN.values()) + " |",
        "|---|" + "---|" * len(SHOWN),
    ]
    for method, own in found["methods"].items():
        cells = (f"{own[m]['value']:.3f} ({own[m]['low']:.3f}, {own[m]['high']:.3f})" for m in SHOWN)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", "MultiSWAG minus the method, paired by text.", "", "| minus | " + " | ".join(SHOWN.values()) + " |"]
    lines.append("|---|" + "---|" * len(SHOWN))
    for method, own in found["differences"]["minus"].items():
        cells = (f"{own[m]['value']:+.3f} ({own[m]['low']:+.3f}, {own[m]['high']:+.3f})" for m in SHOWN)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", found["verdict"]]
    page = "\n".join(lines) + "\n"
    (RESULTS / f"{NAME}.md").write_text(page, encoding="utf-8")
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
