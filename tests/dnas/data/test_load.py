"""Datasets: disjoint stratified splits, batches that follow from the seed alone, and clear sentences for bad input."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from dnas.data import archives
from dnas.data.augmentation import crop_and_flip, cut_out, draw_augmentation
from dnas.data.decoding import decode, size_of
from dnas.data.load import (
    Augmentation,
    DataSplits,
    FolderImages,
    ImageSet,
    MemoryImages,
    input_shape_of,
    load_data,
    stratified_indices,
)
from search_spaces.errors import InputError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
FULL = Augmentation(crop_padding=2, flip=True, cutout=3)


def numbered_images(count: int, classes: int = 4) -> MemoryImages:
    """Images whose every pixel tells which image it is, with labels that follow from it."""
    numbers = torch.arange(count, dtype=torch.uint8)
    images = numbers[:, None, None, None].expand(count, 3, 8, 6).contiguous()
    return MemoryImages(images, numbers.long() % classes, mean=(0.0,) * 3, std=(1 / 255,) * 3)


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_data(source, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def epoch(images: ImageSet, **options: Any) -> tuple[Tensor, Tensor]:
    batches = list(images.batches(7, **options))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def write_folder(root: Path, size: int, per_class: int = 6, test_name: str = "test") -> Path:
    generator = np.random.default_rng(0)
    for split in ("train", test_name):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                pixels = generator.integers(0, 256, (size, size + 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


# --- stratified choice and splits ---


@settings(deadline=None, max_examples=50)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), data=st.data(), seed=st.integers(0, 100))
def test_stratified_choice_is_exact_in_number_and_within_one_of_each_share(
    labels: list[int], data: st.DataObject, seed: int
) -> None:
    count = data.draw(st.integers(0, len(labels)))
    given_labels = torch.tensor(labels)
    chosen = stratified_indices(given_labels, count, seed)
    assert len(chosen) == count
    assert len(set(chosen.tolist())) == count
    assert chosen.tolist() == sorted(chosen.tolist())
    for label in set(labels):
        share = count * labels.count(label) / len(labels)
        assert abs(int((given_labels[chosen] == label).sum()) - share) < 1


def as_rows(images: ImageSet) -> set[bytes]:
    return {bytes(image.numpy().tobytes()) for image in epoch(images)[0]}


def test_digits_splits_are_disjoint_stratified_and_whole() -> None:
    splits = load_data("digits", validation_fraction=0.2)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1150, 288, 359)
    assert (splits.classes, splits.input_shape) == (10, (1, 8, 8))
    train, val, test = as_rows(splits.train), as_rows(splits.val), as_rows(splits.test)
    assert len(train) + len(val) + len(test) == 1797  # no two digits are the same
    assert len(train | val | test) == 1797
    for part in (splits.train, splits.val, splits.test):
        shares = torch.bincount(part.labels, minlength=10) / len(part)
        assert float((shares - 0.1).abs().max()) < 0.012
        assert part.labels.dtype == torch.int64
        assert isinstance(part, ImageSet)


def test_split_seed_moves_validation_but_never_the_test_split() -> None:
    first, again, other = (load_data("digits", split_seed=seed) for seed in (1, 1, 2))
    assert same(epoch(first.val), epoch(again.val))
    assert as_rows(first.val) != as_rows(other.val)
    assert same(epoch(first.test), epoch(other.test))


def test_limits_are_stratified_and_within_the_whole() -> None:
    splits = load_data("digits", train_limit=100, test_limit=50)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (90, 10, 50)
    assert torch.bincount(splits.test.labels, minlength=10).min() >= 4
    assert as_rows(splits.test) < as_rows(load_data("digits").test)
    assert len(load_data("digits", train_limit=10**6).train) == len(load_data("digits").train)


def test_digits_are_normalised() -> None:
    images, _ = epoch(load_data("digits").train)
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02


def test_image_size_scales_memory_images() -> None:
    splits = load_data("digits", image_size=16, train_limit=20, test_limit=5)
    assert splits.input_shape == (1, 16, 16)
    small = load_data("digits", train_limit=20, test_limit=5)
    assert torch.allclose(epoch(splits.test)[0].mean(), epoch(small.test)[0].mean(), atol=0.05)


# --- batches ---


def test_without_a_seed_every_image_comes_in_order() -> None:
    images, labels = epoch(numbered_images(20))
    assert images.dtype == torch.float32
    assert images.shape == (20, 3, 8, 6)
    assert torch.allclose(images[:, 0, 0, 0], torch.arange(20.0))
    assert torch.equal(labels, torch.arange(20) % 4)


def test_with_a_seed_every_image_comes_once_with_its_label() -> None:
    images, labels = epoch(numbered_images(20), seed=3)
    numbers = images[:, 0, 0, 0].round().long()
    assert numbers.tolist() != list(range(20))
    assert sorted(numbers.tolist()) == list(range(20))
    assert torch.equal(labels, numbers % 4)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("count", [5, 14, 20])
def test_drop_last_drops_only_a_short_batch(count: int, drop_last: bool) -> None:
    sizes = [len(labels) for _, labels in numbered_images(count).batches(7, seed=0, drop_last=drop_last)]
    expected = {5: [5], 14: [7, 7], 20: [7, 7, 6]}[count]
    assert sizes == ([size for size in expected if size == 7] if drop_last else expected)


def test_a_seed_determines_everything_whatever_the_global_generator() -> None:
    images = numbered_images(30)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = epoch(images, seed=5, augmentation=FULL)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(first, epoch(images, seed=5, augmentation=FULL))
    assert not same(first, epoch(images, seed=6, augmentation=FULL))


def test_augmentation_changes_neither_order_nor_the_stored_images() -> None:
    images = numbered_images(30)
    before = images.images.clone()
    assert torch.equal(epoch(images, seed=5, augmentation=FULL)[1], epoch(images, seed=5)[1])
    assert torch.equal(images.images, before)


def test_normalisation_is_that_of_torchvision() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = torchvision.transforms.functional.normalize(images / 255, list(mean), list(std))
    assert torch.allclose(epoch(MemoryImages(images, torch.zeros(4), mean, std))[0], expected, atol=1e-5)


def test_senseless_batches_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="needs a seed"):
        numbered_images(4).batches(2, augmentation=FULL)
    with pytest.raises(ValueError, match="batch_size"):
        numbered_images(4).batches(0)
    with pytest.raises(InputError, match="cutout must be 0 or more"):
        Augmentation(cutout=-1)


# --- augmentation against one image at a time ---


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    cutout=st.integers(0, 12),
    seed=st.integers(0, 1000),
)
def test_batchwise_augmentation_is_the_slow_one(
    height: int, width: int, padding: int, flip: bool, cutout: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (6, 2, height, width), dtype=torch.uint8, generator=generator)
    draw = draw_augmentation(6, height, width, Augmentation(padding, flip, cutout), generator)
    result = cut_out(crop_and_flip(images, draw, padding).float(), draw, cutout)
    for index in range(6):
        expected = np.pad(images[index].numpy(), ((0, 0), (padding, padding), (padding, padding)))
        top, left = int(draw.top[index]), int(draw.left[index])
        expected = expected[:, top : top + height, left : left + width].copy()
        if draw.flip[index]:
            expected = expected[:, :, ::-1].copy()
        row, column = int(draw.cutout_row[index]) - cutout // 2, int(draw.cutout_column[index]) - cutout // 2
        expected[:, max(0, row) : max(0, row + cutout), max(0, column) : max(0, column + cutout)] = 0
        assert np.array_equal(result[index].numpy(), expected)


def test_draws_reach_every_shift_and_flip_half() -> None:
    draw = draw_augmentation(4000, 8, 8, Augmentation(2, True, 1), torch.Generator().manual_seed(0))
    for values, size in ((draw.top, 5), (draw.left, 5), (draw.cutout_row, 8), (draw.cutout_column, 8)):
        assert values.unique().tolist() == list(range(size))
    assert 0.45 < float(draw.flip.float().mean()) < 0.55


# --- image folders ---


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_small_image_folder_comes_into_memory_unchanged(tmp_path: Path, test_name: str) -> None:
    root = write_folder(tmp_path, size=12, test_name=test_name)
    splits = load_data("imagefolder", root=root, validation_fraction=0.25)
    assert isinstance(splits.train, MemoryImages)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (9, 3, 12)
    assert (splits.classes, splits.input_shape) == (2, (3, 12, 16))
    with Image.open(root / test_name / "dog" / "0.png") as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    expected = torchvision.transforms.functional.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    images, labels = epoch(splits.test)
    assert torch.allclose(images[6], expected, atol=1e-5)
    assert labels.tolist() == [0] * 6 + [1] * 6


def test_large_image_folder_stays_on_disk_and_is_deterministic(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=80)
    alone = load_data("imagefolder", root=root, image_size=72)
    together = load_data("imagefolder", root=root, image_size=72, workers=2)
    assert isinstance(alone.train, FolderImages)
    assert isinstance(alone.train, ImageSet)
    assert alone.input_shape == (3, 72, 72)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = epoch(alone.train, seed=4, augmentation=FULL)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, epoch(together.train, seed=4, augmentation=FULL))
    assert not torch.equal(first[0], epoch(alone.train, seed=4)[0])
    assert torch.equal(first[1], epoch(alone.train, seed=4)[1])
    assert not same(first, epoch(alone.train, seed=5, augmentation=FULL))


def test_large_images_are_resized_and_cropped_as_is_the_custom(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=300, per_class=2)
    rows, columns = np.mgrid[0:300, 0:340]
    smooth = np.stack([rows * 0.8, columns * 0.7, 120 + 100 * np.sin(rows / 30) * np.cos(columns / 40)], axis=2)
    Image.fromarray(smooth.astype(np.uint8)).save(root / "test" / "cat" / "0.png")
    splits = load_data("imagefolder", root=root)
    assert splits.input_shape == (3, 224, 224)
    pixels = decode(str(root / "test" / "cat" / "0.png"))
    functional = torchvision.transforms.functional
    custom = functional.center_crop(functional.resize(pixels, [256], antialias=True), [224]) / 255
    expected = functional.normalize(custom, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    mine = epoch(splits.test)[0][0]
    # Cropping first and resizing once places the corner within half a pixel of the two-step way.
    assert float((mine - expected).abs().max()) < 5 / 255 / 0.224


def test_limits_decode_only_what_they_keep(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=8)
    kept = load_data("imagefolder", root=root, train_limit=4, test_limit=2)
    assert (len(kept.train) + len(kept.val), len(kept.test)) == (4, 2)


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    colours = np.array([[9, 80, 200], [250, 3, 7], [20, 21, 22]], dtype=np.uint8)
    palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    palette.putpalette(colours.tobytes())
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "transparent.png", transparency=bytes([0, 128, 255]))
    for name in ("palette", "transparent"):
        assert np.array_equal(decode(str(tmp_path / f"{name}.png")).permute(1, 2, 0).numpy(), colours[None])
    ramp = np.arange(256, dtype=np.uint8)[None]
    for name, image in (
        ("grey.png", Image.fromarray(ramp)),
        ("alpha.png", Image.merge("LA", [Image.fromarray(ramp), Image.new("L", (256, 1), 0)])),
        ("ink.tif", Image.merge("CMYK", [Image.new("L", (256, 1), 0)] * 3 + [Image.fromarray(255 - ramp)])),
    ):
        image.save(tmp_path / name)
        assert np.array_equal(decode(str(tmp_path / name)).numpy(), ramp[None].repeat(3, 0)), name
    Image.fromarray(ramp > 99).save(tmp_path / "bit.png")
    assert np.array_equal(decode(str(tmp_path / "bit.png"))[2].numpy(), np.where(ramp > 99, 255, 0))


@pytest.mark.parametrize(
    ("name", "order"), [("deep.png", "<u2"), ("deep.pgm", "<u2"), ("deep.tif", "<u2"), ("deep.tif", ">u2")]
)
def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path: Path, name: str, order: str) -> None:
    ramp = np.arange(0, 65536, 37, dtype=np.uint16)[None].repeat(2, 0)
    stored = Image.fromarray(ramp.astype(order))
    stored.save(tmp_path / name)
    assert np.array_equal(decode(str(tmp_path / name)).numpy(), (ramp >> 8)[None].repeat(3, 0))
    if (name, order) == ("deep.tif", "<u2"):
        stored.save(tmp_path / name, tiffinfo={262: 0})  # white is zero
        assert np.array_equal(decode(str(tmp_path / name))[0].numpy(), 255 - (ramp >> 8))


@pytest.mark.parametrize(("kind", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_pixels_without_a_full_scale_are_refused_by_their_mode(tmp_path: Path, kind: Any, mode: str) -> None:
    Image.fromarray(np.linspace(0, 70000, 12).astype(kind)[None]).save(tmp_path / "raw.tiff")
    with pytest.raises(InputError, match=rf"raw.tiff': its pixels are .*\(mode {mode}\).*save it with 8 or 16 bits"):
        decode(str(tmp_path / "raw.tiff"))


def test_signed_pixels_are_refused(tmp_path: Path) -> None:
    """PIL takes -1 for 255."""
    Image.fromarray(np.arange(-6, 6, dtype=np.int8).view(np.uint8)[None]).save(tmp_path / "a.tif", tiffinfo={339: 2})
    with pytest.raises(InputError, match=r"a.tif': its pixels are signed integers"):
        decode(str(tmp_path / "a.tif"))


@pytest.mark.parametrize(
    ("suffix", "deep"), [("jpg", False), ("png", False), ("png", True), ("tif", True), ("tif", False), ("webp", False)]
)
def test_images_are_turned_upright(tmp_path: Path, suffix: str, deep: bool) -> None:
    pixels = (np.arange(16 * 24) // 2).astype(np.uint8).reshape(16, 24)
    options: dict[str, dict[str, Any]] = {"jpg": {"quality": 100}, "webp": {"lossless": True}}
    for orientation, expected in (
        (1, pixels),
        (3, pixels[::-1, ::-1]),
        (6, np.rot90(pixels, -1)),
        (8, np.rot90(pixels)),
    ):
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        stored = pixels.astype(np.uint16) << 8 if deep else pixels
        Image.fromarray(stored).save(path, exif=exif, **options.get(suffix, {}))
        found = decode(str(path))[0].numpy()
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= (2 if suffix == "jpg" else 0)
        assert size_of(str(path)) == expected.shape


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [8, 80])
def test_unreadable_image_is_named(tmp_path: Path, size: int, workers: int) -> None:
    root = write_folder(tmp_path, size=size)
    broken = root / "test" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError) as caught:
        for _ in load_data("imagefolder", root=root, workers=workers).test.batches(4):
            pass
    assert f"cannot read the image '{broken}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pictures_of_kinds_that_are_not_read_are_told(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=8)
    for name in ("a.GIF", "b.gif", "c.jfif", "notes.txt", ".hidden.gif"):
        (root / "train" / "cat" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out, for their kind is not read: 2 \.gif, 1 \.jfif; save them as PNG"):
        load_data("imagefolder", root=root)


def test_senseless_image_folders_are_refused(tmp_path: Path) -> None:
    assert "needs root" in refusal("imagefolder")
    assert "does not exist" in refusal("imagefolder", root=tmp_path / "none")
    (tmp_path / "test").mkdir()
    assert "has no folder train/" in refusal("imagefolder", root=tmp_path)
    (tmp_path / "train").mkdir()
    assert "holds no class folders" in refusal("imagefolder", root=tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    told = refusal("imagefolder", root=tmp_path)
    assert f"'{tmp_path / 'train' / 'cat'}' holds no images: files that end in .bmp, .jpeg, .jpg," in told
    assert told.endswith(".webp are read, and it holds others: 1 .txt")
    (tmp_path / "train" / "cat" / "notes.txt").rename(tmp_path / "train" / "cat" / ".notes.png")
    assert refusal("imagefolder", root=tmp_path).endswith("are read, and it holds no file")
    whole = write_folder(tmp_path / "whole", size=8)
    (whole / "test" / "dog").rename(whole / "test" / "bird")
    assert "class 'bird' is in" in refusal("imagefolder", root=whole)
    (whole / "train" / "cat" / "0.png").write_bytes(b"no image")
    (whole / "test" / "bird").rename(whole / "test" / "dog")
    assert "it is no image file" in refusal("imagefolder", root=whole)


# --- torchvision ---


def write_mnist(root: Path) -> Path:
    """Write twenty training and ten test images in the files' own format."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 20), ("t10k", 10)):
        pixels = bytes(number % 10 for number in range(count) for _ in range(28 * 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + pixels)
        labels = bytes(number % 10 for number in range(count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    return root


@pytest.mark.parametrize("source", ["mnist", "torchvision:MNIST", "torchvision:mnist"])
def test_torchvision_source(tmp_path: Path, source: str) -> None:
    splits = load_data(source, root=write_mnist(tmp_path), validation_fraction=0.5)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (10, 10, 10)
    assert (splits.classes, splits.input_shape) == (10, (1, 28, 28))
    images, labels = epoch(splits.test)
    assert torch.allclose(images[:, 0, 3, 3] * 0.3081 + 0.1307, labels / 255, atol=1e-6)


@pytest.mark.parametrize("source", ["mnist", "torchvision:CIFAR10"])
def test_missing_files_name_both_ways_out(tmp_path: Path, source: str) -> None:
    sentence = refusal(source, root=tmp_path)
    assert f"'{tmp_path}'" in sentence
    assert "set download = true" in sentence
    assert "root" in sentence


def test_files_cut_short_are_one_sentence(tmp_path: Path) -> None:
    file = write_mnist(tmp_path) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:500])
    assert "not whole" in refusal("mnist", root=tmp_path)


def pack(root: Path, *patterns: str) -> None:
    """Leave files of MNIST in archives only, as they are published."""
    for pattern in patterns:
        for file in (root / "MNIST" / "raw").glob(pattern):
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()


@pytest.mark.parametrize("patterns", [["*"], ["*images*"], ["t10k-labels*"]])
def test_archives_are_read_as_what_they_hold_and_stay_alone(tmp_path: Path, patterns: list[str]) -> None:
    images, labels = epoch(load_data("mnist", root=write_mnist(tmp_path / "plain")).test)
    pack(write_mnist(tmp_path / "packed"), *patterns)
    before = sorted((tmp_path / "packed").rglob("*"))
    read = epoch(load_data("mnist", root=tmp_path / "packed").test)
    assert torch.equal(read[0], images)
    assert torch.equal(read[1], labels)
    assert sorted((tmp_path / "packed").rglob("*")) == before


@pytest.mark.parametrize("damage", [lambda packed: packed[:-40], lambda packed: b"no archive", lambda packed: b""])
def test_a_damaged_archive_is_one_sentence(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    pack(write_mnist(tmp_path), "*")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    assert "not whole" in refusal("mnist", root=tmp_path)


def test_an_archive_that_unpacks_to_more_than_any_data_set_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(write_mnist(tmp_path), "*")
    monkeypatch.setattr(archives, "_MOST", 1000)
    assert "not whole" in refusal("mnist", root=tmp_path)


def write_packed_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write ten images a split as CIFAR-10's archive, and let torchvision know them."""
    kind, files = torchvision.datasets.CIFAR10, {"batch": "train_list", "test": "test_list"}
    with tarfile.open(root / kind.filename, "w:gz") as archive:
        for name in (*files, "names"):
            content = {"label_names": list("abcdefghij")}
            if name in files:
                content = {"data": np.full((10, 3072), 7, np.uint8), "labels": list(range(10))}
            data = pickle.dumps(content)
            entry = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
            if name in files:
                monkeypatch.setattr(kind, files[name], [(name, hashlib.md5(data).hexdigest())])
            else:
                meta = {"filename": name, "key": "label_names", "md5": hashlib.md5(data).hexdigest()}
                monkeypatch.setattr(kind, "meta", meta)
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5((root / kind.filename).read_bytes()).hexdigest())


def test_an_archive_of_pickled_files_is_unpacked_only_if_torchvision_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_packed_cifar(tmp_path, monkeypatch)
    assert len(load_data("cifar10", root=tmp_path).test) == 10
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", "0" * 32)
    monkeypatch.setattr(archives, "extract_archive", lambda *_: pytest.fail("an unknown archive was opened"))
    assert "not in" in refusal("cifar10", root=tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_a_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    def half_way(dataset: torchvision.datasets.MNIST) -> None:
        Path(dataset.raw_folder).mkdir(parents=True)
        (Path(dataset.raw_folder) / "train-images-idx3-ubyte").write_bytes(b"half")
        raise URLError("offline")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", half_way)
    root = tmp_path / "deep" / "root"
    if there:
        root.mkdir(parents=True)
    sentence = refusal("mnist", root=root, download=True)
    assert "could not be downloaded" in sentence
    assert "offline" in sentence
    assert root.exists() == there
    assert list(tmp_path.rglob("*")) == ([root.parent, root] if there else [])


def test_a_download_arrives_whole_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fetch(dataset: torchvision.datasets.MNIST) -> None:
        calls.append(dataset.root)
        write_mnist(Path(dataset.root))

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fetch)
    for _ in range(2):
        assert len(load_data("mnist", root=tmp_path, download=True).test) == 10
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


# --- the user's own callable ---


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data_for_test.py").write_text(
        "import torch\n"
        "from dnas.data.load import DataSplits, MemoryImages\n"
        "def part(count, dtype=torch.float32):\n"
        "    images = torch.arange(count * 4).reshape(count, 1, 2, 2).to(dtype)\n"
        "    return images, torch.arange(count) % 2\n"
        "def tensors():\n    return *part(20), *part(10)\n"
        "def pixels():\n    return *part(20, torch.uint8), *part(10, torch.uint8)\n"
        "def splits():\n"
        "    made = [MemoryImages(*part(count), (0.0,), (1.0,)) for count in (8, 6, 4)]\n"
        "    return DataSplits(*made, classes=2, input_shape=(1, 2, 2))\n"
        "def fails():\n    raise OSError('disk\\ngone')\n"
        "def short():\n    return part(3)\n"
        "def flat():\n    return torch.zeros(4, 8), torch.zeros(4).long(), *part(4)\n"
        "def negative():\n    return part(4)[0], -part(4)[1], *part(4)\n"
        "def soft():\n    return part(4)[0], part(4)[1].float(), *part(4)\n"
        "def holes():\n    return part(4)[0] / 0, part(4)[1], *part(4)\n"
        "def unknown():\n    return *part(4), part(4)[0], part(4)[1] + 7\n"
        "def uneven():\n    return *part(4), torch.zeros(4, 1, 3, 3), part(4)[1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_data_for_test", raising=False)


@pytest.mark.usefixtures("own_module")
def test_own_tensors_are_split_and_floats_left_as_they_are() -> None:
    splits = load_data("own_data_for_test:tensors", validation_fraction=0.2)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 4, 10)
    assert torch.equal(epoch(splits.test)[0], torch.arange(40.0).reshape(10, 1, 2, 2))


@pytest.mark.usefixtures("own_module")
def test_own_pixels_are_normalised_by_the_training_images() -> None:
    splits = load_data("own_data_for_test:pixels")
    images = torch.cat([epoch(splits.train)[0], epoch(splits.val)[0]])
    assert abs(float(images.mean())) < 1e-5
    assert abs(float(images.std(correction=0)) - 1) < 1e-5


@pytest.mark.usefixtures("own_module")
def test_own_splits_stay_as_they_are_but_for_limits() -> None:
    splits = load_data("own_data_for_test:splits", train_limit=4)
    assert isinstance(splits, DataSplits)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 6, 4)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("size", [None, 12])
def test_the_shape_of_the_images_is_known_before_they_are_read(tmp_path: Path, size: int | None) -> None:
    small, large = write_folder(tmp_path / "small", 6), write_folder(tmp_path / "large", 90)
    mnist = write_mnist(tmp_path / "digits")
    for source, root in (
        ("digits", None),
        ("mnist", mnist),
        ("torchvision:MNIST", mnist),
        ("imagefolder", small),
        ("imagefolder", large),
        ("own_data_for_test:tensors", None),
        ("own_data_for_test:splits", None),
    ):
        assert input_shape_of(source, root, size) == load_data(source, root=root, image_size=size).input_shape
    assert input_shape_of("torchvision:CIFAR10") == input_shape_of("cifar100", "nowhere") == (3, 32, 32)
    assert input_shape_of("fashionmnist", image_size=32) == (1, 32, 32)
    with pytest.raises(InputError, match="root 'nowhere' does not exist"):
        input_shape_of("imagefolder", "nowhere")


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("fails", "failed: OSError: disk gone"),
        ("short", "must return DataSplits or"),
        ("flat", "must be (N, C, H, W)"),
        ("negative", "integers from 0 on"),
        ("holes", "finite floats"),
        ("unknown", "test label 8"),
        ("uneven", "differ in shape"),
        ("tensros", "did you mean 'tensors'"),
    ],
)
def test_own_callables_that_cannot_be_used(name: str, part: str) -> None:
    sentence = refusal(f"own_data_for_test:{name}")
    assert part in sentence
    assert name in sentence


# --- options ---


@pytest.mark.parametrize(
    ("source", "options", "part"),
    [
        ("cifar1O", {}, "did you mean 'cifar10'"),
        ("torchvision:CIFAR", {}, "did you mean 'cifar10'"),
        ("zzz", {}, "known are digits"),
        ("digits", {"validation_fraction": 0.0}, "(0, 0.5]"),
        ("digits", {"validation_fraction": 0.51}, "(0, 0.5]"),
        ("digits", {"validation_fraction": float("nan")}, "(0, 0.5]"),
        ("digits", {"train_limit": 1}, "train_limit must be at least 2"),
        ("digits", {"test_limit": 0}, "test_limit must be at least 1"),
        ("digits", {"image_size": 0}, "image_size must be at least 1"),
        ("digits", {"workers": -1}, "workers must be at least 0"),
    ],
)
def test_senseless_options_are_one_sentence(source: str, options: dict[str, Any], part: str) -> None:
    assert part in refusal(source, **options)


@pytest.mark.slow
def test_real_mnist() -> None:
    if not list((SHARED / "MNIST" / "raw").glob("*.gz")):
        pytest.skip("needs MNIST/raw/*.gz in shared/data beside the repository")
    splits = load_data("mnist", root=SHARED)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54_000, 6_000, 10_000)
    images, _ = next(splits.train.batches(20_000, seed=0))
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01
