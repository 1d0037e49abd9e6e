"""Run one implementation on the problems of known.py and print what it did, as one line of JSON.

    python tests/peers/adapters.py swa-gaussian

A section that fails says why; the others are still run.
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib.metadata import version

import averages  # noqa: F401  (enters its sections)
import gaussians  # noqa: F401  (enters its sections)
import torch
from loading import PEERS, prepare

from problems import SECTIONS, Row

EXCUSE = 200  # characters of an error that a row shows


def main(name: str) -> None:
    torch.set_num_threads(1)
    answer: Row = {"manner": PEERS[name].manner}
    # Whatever a peer prints goes to stderr: stdout is for the answer.
    with contextlib.redirect_stdout(sys.stderr):
        prepare(name)
        with contextlib.suppress(Exception):
            answer["version"] = version(name)
        for kind, function in SECTIONS[name].items():
            try:
                answer[kind] = function()
            except Exception as error:
                answer[kind] = f"could not run: {type(error).__name__}: {' '.join(str(error).split())[:EXCUSE]}"
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
