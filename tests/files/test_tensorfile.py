"""Files written chunk by chunk: safetensors reads them, whatever the tensors' strides, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowland.files.state import tensorfile
from lowland.files.tensorfile import File, write


def everything() -> dict[str, Tensor]:
    base = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    return {
        "plain": base,
        "transposed": base.permute(3, 1, 0, 2),
        "channels last": torch.empty_like(base, memory_format=torch.channels_last).copy_(base),
        "expanded": torch.arange(3.0).expand(5, 3),
        "sliced": base[:, 1:, ::2, 3],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3, dtype=torch.bfloat16),
        "bfloat16": base.bfloat16(),
        "float16": base.half().mT,
        "integers": torch.tensor([[-1, 2], [3, 4]]).T,
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "complex": torch.tensor([1 + 2j, 3j]),
        "Straße/€ \U0001f3d4": torch.ones(1),
        "gradient": torch.nn.Parameter(torch.ones(2)),
        "eight": base.to(torch.float8_e4m3fn),
    }


@pytest.mark.parametrize("chunk", [16, 40, 1 << 20])
def test_safetensors_reads_what_we_write(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "CHUNK", chunk)
    tensors = everything()
    write(tmp_path / "t", tensors, {"who": "€"})
    read = load_file(tmp_path / "t")
    with File(tmp_path / "t") as file:
        assert set(read) == set(file.names) == set(tensors) and file.metadata == {"who": "€"}
        for name, tensor in tensors.items():
            assert read[name].dtype == file.read(name).dtype == tensor.dtype
            for got in (read[name], file.read(name), file.read_like(tensor, name)):
                assert torch.equal(got.contiguous().view(-1).view(torch.uint8), bits(tensor)), name


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def test_the_file_is_byte_for_byte_that_of_safetensors(tmp_path: Path) -> None:
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in everything().items()}
    for skipped in ("complex", "eight"):  # safetensors orders these dtypes in a way of its own
        tensors.pop(skipped)
    write(tmp_path / "ours", tensors, {"a": "b"})
    save_file(tensors, tmp_path / "theirs", metadata={"a": "b"})
    ours, theirs = (tmp_path / "ours").read_bytes(), (tmp_path / "theirs").read_bytes()
    assert len(ours) == len(theirs)
    length = int.from_bytes(ours[:8], "little")
    assert length % 8 == 0 and json.loads(ours[8 : 8 + length])["plain"]["shape"] == [2, 3, 4, 5]


def test_what_cannot_be_written_or_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="w is a tensor without values"):
        write(tmp_path / "t", {"w": torch.empty(2, device="meta")}, {})
    with pytest.raises(ValueError, match=r"w is a tensor of torch\.complex128"):
        write(tmp_path / "t", {"w": torch.zeros(2, dtype=torch.complex128)}, {})
    assert not list(tmp_path.iterdir())
    write(tmp_path / "t", {"w": torch.zeros(2)}, {})
    with File(tmp_path / "t") as file:
        with pytest.raises(KeyError):
            file.read("v")
        with pytest.raises(ValueError, match=r"w is F32 of shape \(2,\) in t, got F64 of shape \(2,\) to read it into"):
            file.read_like(torch.zeros(2, dtype=torch.float64), "w")
        (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-1])
        with pytest.raises(ValueError, match="ends within a tensor: it was changed while being read"):
            file.read("w")
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_saving_and_loading_a_state(tmp_path: Path) -> None:
    """A state of 120 MB: saved beside less than 20 MB, and loaded into its own memory and less than 20 MB."""
    script = textwrap.dedent(
        f"""
        import torch, lowland
        from pathlib import Path
        def peak():
            return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
        def measured(call):
            call()  # what is loaded at the first call
            Path("/proc/self/clear_refs").write_text("5")
            before = peak()
            result = call()
            return result, peak() - before
        small = lowland.SWAG(rank=4)
        small.update({{"w": torch.ones(8)}})
        big = lowland.SWAG(rank=10)
        weights = {{str(i): torch.full((500, 500 * (i + 1)), float(i)) for i in range(4)}}
        for _ in range(12):
            big.update(weights)
        size = sum(t.numel() * t.element_size() for s in big._views()["slots"].values() for t in s.values())
        assert size == 2_500_000 * big.bytes_per_parameter(), size
        path = {str(tmp_path / "state")!r}
        _, saving = measured(lambda: lowland.save(big, path))
        del small
        lowland.load(path)
        (read, loading) = measured(lambda: lowland.load(path))
        print(size, saving, loading)
        assert torch.equal(read.mean()["3"], weights["3"])
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    size, saving, loading = map(int, done.stdout.split())
    assert size == 2_500_000 * 48 and saving <= 20e6 and loading <= size + 20e6, (size, saving, loading)
