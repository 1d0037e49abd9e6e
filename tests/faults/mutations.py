"""Damaged and hostile files of every format that is read: each is read as what it is, or refused in one clear line.

Files are changed at random (bytes flipped, cut out, put in, repeated; numbers in texts made large, negative, not
finite; brackets nested), then read in a child, so that a crash, a hang and a grab for memory are seen too. A pickle
that would run code leaves a canary.
"""

from __future__ import annotations

import pickle
import random
import shutil
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import lowland
from lowland import SWAG
from lowland.checkpoints import average, describe, open_checkpoint, through

from .processes import command, forked

PROMISED = (ValueError, OSError, RuntimeError, ImportError)
TOGETHER = 40  # files a child


@dataclass(frozen=True)
class Format:
    """A format: how a good one is written into a folder, which of its files are changed, and all that reads it."""

    name: str
    write: Callable[[Path], list[Path]]
    read: Callable[[Path], object]


@dataclass(frozen=True)
class Mutated:
    """What came of one format."""

    name: str
    files: int
    accepted: int
    refused: int
    faults: list[str]


def formats(home: Path) -> list[Format]:
    """Every format with its readers."""
    return [
        Format("state file", _state, _use_state),
        Format("safetensors checkpoint", _safetensors, _average),
        Format("sharded checkpoint", _sharded, _average),
        Format("torch.save", _torch, _average),
        Format("torch.distributed.checkpoint", _distributed, _average),
        Format("adapter", _adapter, _average),
        Format("state file on the command line", _state, _sample),
        Format("run folder of a study", lambda folder: _run(folder, home), _report),
        Format("configuration", _configuration, _configured),
        Format("texts", _texts, _read_texts),
        Format("images", _images, _read_images),
    ]


def mutate(format: Format, home: Path, files: int, seed: int = 0) -> Mutated:
    """Read `files` changed files of one format."""
    good = home / "good"
    shutil.rmtree(good, ignore_errors=True)
    good.mkdir(parents=True)
    changed = [path.relative_to(good) for path in format.write(good)]
    accepted = refused = 0
    faults: list[str] = []
    log, told = home / "log.txt", home / "told.txt"
    whole = forked(lambda: format.read(good), log, memory=4 << 30, cpu=120)
    if whole.code:
        faults.append(f"{format.name}: an undamaged one is refused: {whole.output[-300:]}")
    numbers = list(range(files))
    while numbers:
        told.write_text("")
        batch = numbers[:TOGETHER]

        def job(batch: list[int] = batch) -> None:
            warnings.simplefilter("ignore")
            for number in batch:
                outcome = _one(format, good, changed, home / "work", random.Random(f"{format.name} {seed} {number}"))
                with told.open("a") as file:
                    file.write(outcome.replace("\n", " ") + "\n")

        # Seconds of the processor, so that a machine with much to do is not taken for an endless loop.
        ended = forked(job, log, seconds=3600, memory=4 << 30, cpu=120)
        outcomes = told.read_text().splitlines()
        for place, outcome in enumerate(outcomes):
            accepted += outcome == "accepted"
            refused += outcome == "refused"
            if outcome.startswith("fault"):
                faults.append(f"{format.name}, seed {seed}, file {batch[place]}: {outcome}")
        if ended.code and len(outcomes) < len(batch):
            which = f"{format.name}, seed {seed}, file {batch[len(outcomes)]}"
            faults.append(f"{which}: ended with {ended.code} {ended.output[-300:]}")
            outcomes.append("")
        numbers = numbers[max(1, len(outcomes)) :]
    if (home / "canary").exists():
        faults.append(f"{format.name}: code in a file ran")
    return Mutated(format.name, files, accepted, refused, faults)


def _one(format: Format, good: Path, changed: list[Path], work: Path, rng: random.Random) -> str:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(good, work)
    target = work / rng.choice(changed)
    text = target.suffix in {".json", ".toml", ".csv", ".jsonl"}
    if not text and rng.random() < 0.02:
        target.write_bytes(hostile(work.parent / "canary"))
    else:
        target.write_bytes(damaged(target.read_bytes(), text, rng))
    try:
        format.read(work)
    except PROMISED as error:
        text = str(error)
        if "\x1b" in text or len(text) > 2000 or text.count("\n") > 1:
            return f"fault: an unclear message: {text[:300]!r}"
        return "refused"
    except SystemExit as end:
        return "refused" if end.code in (1, 2, 3) else f"fault: exit {end.code}"
    except MemoryError:
        return "fault: it asked for more memory than 4 GB"
    except BaseException as error:
        return f"fault: {type(error).__name__}: {str(error)[:300]}"
    return "accepted"


def hostile(canary: Path) -> bytes:
    """A pickle that makes `canary` when it is run."""

    class Code:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (canary,))

    return pickle.dumps(Code())


def damaged(content: bytes, text: bool, rng: random.Random) -> bytes:
    """One to four changes of a file; in texts also of what they say."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        # Headers stand at the front, directories of archives at the end: more than half of the changes go there.
        place = min(len(data), rng.choice((rng.randrange(8), rng.randrange(2000), len(data) - rng.randrange(600))))
        place = max(0, rng.choice((place, rng.randrange(len(data) + 1))))
        kind = rng.randrange(10 if text else 7)
        if kind == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[place : place + rng.choice((1, 7, 100))]
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.choice((1, 8, 64)))
        elif kind == 4:
            del data[rng.randrange(len(data) + 1) :]
        elif kind == 5:
            data[place:place] = data[place : place + 200]
        elif kind == 6:
            data[place : place + 8] = struct.pack("<q", rng.choice((-1, 0, 1 << 31, 1 << 62, 10**6)))
        elif kind == 7:
            data = bytearray(_numbers(bytes(data), rng))
        elif kind == 8:
            data[place:place] = rng.choice((b"[" * 100_000, b'{"a":' * 20_000, b'"', b"\xff\xfe", b"\x1b[31m", b"\x00"))
        else:
            data = bytearray(bytes(data).replace(rng.choice((b'"', b":", b",", b"=", b"\n")), b"", 1))
    return bytes(data)


def _numbers(content: bytes, rng: random.Random) -> bytes:
    """Put another value in the place of one number."""
    places = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if not places:
        return content
    begin = end = rng.choice(places)
    while end < len(content) and 48 <= content[end] <= 57:
        end += 1
    new = rng.choice(
        (b"-1", b"0", b"1e999", b"NaN", b"2.5", b"null", b"true", b'"x"', b"[]", b"{}", b"9" * 25, b"1000000000")
    )
    return content[:begin] + new + content[end:]


def _weights(step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    return {
        "a.weight": torch.randn(8, 9, generator=g),
        "b": torch.randn(33, generator=g).bfloat16(),
        "n": torch.tensor([step]),
    }


def _state(folder: Path) -> list[Path]:
    posterior = SWAG(rank=3)
    for step in range(5):
        posterior.update({name: tensor for name, tensor in _weights(step).items() if name != "n"})
    lowland.save(posterior, folder / "swag.safetensors")
    save_file(_weights(0), folder / "like.safetensors")
    return [folder / "swag.safetensors"]


def _use_state(folder: Path) -> None:
    posterior = lowland.load(folder / "swag.safetensors")
    if not hasattr(posterior, "sample"):
        return
    posterior.update({name: tensor for name, tensor in _weights(9).items() if name != "n"})
    posterior.sample(generator=torch.Generator().manual_seed(0))
    posterior.mean()


def _sample(folder: Path) -> None:
    _command("sample", folder / "swag.safetensors", "--like", folder / "like.safetensors", "--out", folder / "drawn")


def _command(*arguments: str | Path) -> None:
    try:
        command(arguments)()
    except SystemExit as end:
        if end.code:
            raise


def _safetensors(folder: Path) -> list[Path]:
    return _folders(folder, lambda at, weights: save_file(weights, at / "model.safetensors"), "model.safetensors")


def _torch(folder: Path) -> list[Path]:
    def write(at: Path, weights: dict[str, torch.Tensor]) -> None:
        torch.save({"model": weights, "epoch": 3, "optimizer": {"lr": 0.1}}, at / "pytorch_model.bin")

    return _folders(folder, write, "pytorch_model.bin")


def _sharded(folder: Path) -> list[Path]:
    from ..checkpoints.checkpoint_kinds import sharded

    paths = []
    for step in range(2):
        made = sharded(
            folder / f"checkpoint-{step}", {f"{name}{i}": t for i in range(2) for name, t in _weights(step).items()}
        )
        paths += [made / "model.safetensors.index.json", *sorted(made.glob("model-*.safetensors"))]
    return paths


def _distributed(folder: Path) -> list[Path]:
    from ..checkpoints.checkpoint_kinds import distributed

    made = [distributed(folder / f"checkpoint-{step}", _weights(step)) for step in range(2)]
    return [path for one in made for path in (one / ".metadata", one / ".metadata", *one.glob("*.distcp"))]


def _adapter(folder: Path) -> list[Path]:
    config = '{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "use_rslora": false}'
    paths = []
    for step in range(2):
        at = folder / f"checkpoint-{step}"
        at.mkdir()
        g = torch.Generator().manual_seed(step)
        tensors = {f"base_model.model.q.lora_{x}.weight": torch.randn(2, 4, generator=g) for x in "AB"}
        save_file(tensors, at / "adapter_model.safetensors")
        (at / "adapter_config.json").write_text(config)
        paths += [at / "adapter_config.json", at / "adapter_model.safetensors"]
    return paths


def _folders(folder: Path, write: Callable[[Path, dict[str, torch.Tensor]], None], name: str) -> list[Path]:
    for step in range(2):
        (folder / f"checkpoint-{step}").mkdir()
        write(folder / f"checkpoint-{step}", _weights(step))
    return [folder / f"checkpoint-{step}" / name for step in range(2)]


def _average(folder: Path) -> None:
    paths = [folder / "checkpoint-0", folder / "checkpoint-1"]
    for path in paths:
        describe(path)
        open_checkpoint(path)
    average(paths, folder / "out", through(lowland.SWA), check_finite=False)


def _run(folder: Path, home: Path) -> list[Path]:
    from ..fake_run import build

    kept = home / "fake-run"
    if not kept.exists():
        build(kept, texts=40)
    shutil.copytree(kept, folder / "run")
    return [
        path
        for path in (folder / "run").rglob("*")
        if path.is_file() and path.suffix in {".json", ".npz", ".csv", ".toml"}
    ]


def _report(folder: Path) -> None:
    _command("report", folder / "run")


def _configuration(folder: Path) -> list[Path]:
    from lowland.studies.runs.settings import to_toml
    from lowland.studies.text import demo

    (folder / "study.toml").write_text(to_toml(demo()))
    return [folder / "study.toml"]


def _configured(folder: Path) -> None:
    from lowland.studies.text import read_config

    read_config(folder / "study.toml")


def _texts(folder: Path) -> list[Path]:
    rows = [("text", "label"), *((f"a text, number {n} \u00e9", "good" if n % 2 else "bad") for n in range(30))]
    (folder / "texts.csv").write_text("".join(f'"{text}",{label}\n' for text, label in rows), encoding="utf-8")
    lines = (f'{{"text": "a text {n} \u2028", "label": "{n % 2}"}}\n' for n in range(30))
    (folder / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    return [folder / "texts.csv", folder / "texts.jsonl"]


def _read_texts(folder: Path) -> None:
    from lowland.studies.text.datasets import read_labelled

    read_labelled(folder / "texts.csv", "text", "label")
    read_labelled(folder / "texts.jsonl", "text", "label")


def _images(folder: Path) -> list[Path]:
    g = np.random.default_rng(0)
    pixels = {name: g.integers(0, 255, (20, 8, 8)).astype(np.uint8) for name in ("images", "test_images")}
    labels = {name: np.arange(20) % 4 for name in ("labels", "test_labels")}
    np.savez_compressed(folder / "images.npz", **pixels, **labels)
    return [folder / "images.npz"]


def _read_images(folder: Path) -> None:
    from lowland.studies.images.reading import read

    read("mine", folder / "images.npz")
