"""Is a killed study the same study? A reduced demo, killed by SIGKILL at three random moments and resumed.

Measured: whether metrics.json, predictions.csv and history.json of the resumed run equal an uninterrupted run's, byte
for byte. Run: python benchmarks/kill_resume.py [SEED]. Results: benchmarks/results/kill_resume.json.
"""

from __future__ import annotations

import json
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 0
HOME = Path("runs") / "kill"
RESULT = Path(__file__).parent / "results" / "kill_resume.json"
FILES = ("metrics.json", "predictions.csv", "history.json")
COMMAND = [sys.executable, "-m", "lowland.cli", "study", "text", "--config", str(HOME / "study.toml")]
STUDY = """
[data]
name = "insults"
train_texts = 128
validation_texts = 64
test_texts = 96
[training]
seeds = [1, 2]
epochs = 3
monitor_texts = 32
[swag]
start = 1
every = "1 step"
[evaluation]
samples = 3
"""


def main() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    (HOME / "study.toml").write_text(STUDY, encoding="utf-8")
    begun = time.monotonic()
    subprocess.run([*COMMAND, "--out", str(HOME / "whole")], check=True)
    seconds = time.monotonic() - begun
    rng = random.Random(SEED)
    moments = []
    for kill in range(3):
        process = subprocess.Popen([*COMMAND, "--out", str(HOME / "killed"), "--resume"])
        moment = rng.uniform(0.2, 0.4) * seconds
        try:
            process.wait(moment)
            print(f"kill {kill + 1} came too late: the study had ended")
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        stages = sorted(str(p.relative_to(HOME / "killed")) for p in (HOME / "killed").glob("stages/*/*.[jn]*"))
        moments.append({"seconds": round(moment, 1), "stages_done": len(stages), "last": stages[-1:]})
        print(f"killed after {moment:.1f} s with {len(stages)} stages done")
    subprocess.run([*COMMAND, "--out", str(HOME / "killed"), "--resume"], check=True)
    equal = {name: (HOME / "whole" / name).read_bytes() == (HOME / "killed" / name).read_bytes() for name in FILES}
    RESULT.parent.mkdir(exist_ok=True)
    content = {
        "equal": equal,
        "kills": moments,
        "seconds_uninterrupted": round(seconds, 1),
        "seed": SEED,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "command": "python benchmarks/kill_resume.py " + " ".join(sys.argv[1:]),
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))
    sys.exit(0 if all(equal.values()) and len(moments) == 3 else 1)


if __name__ == "__main__":
    main()
