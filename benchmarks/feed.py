"""How many images a second the data give, beside how many a training step takes: the smaller of the two is what trains.

OMP_NUM_THREADS=1 python -m benchmarks.feed             32 pixels from memory, 224 pixels from JPEG files, on any device
python -m benchmarks.feed --device cpu --workers 0 2 --seconds 2
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from dnas.data.augmentation import Augmentation
from dnas.data.decoding import cannot_decode
from dnas.data.image_files import Decoding, FolderImages
from dnas.data.image_sets import ImageSet, MemoryImages
from dnas.data.loaders import Loaders
from dnas.training.device import Device
from search_spaces.models.load import load_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTATION = Augmentation(crop_padding=4, flip=True)
FILES = 256
DECODINGS: tuple[Decoding, ...] = ("cpu", "device")


def in_memory(count: int, pixels: int = 32) -> MemoryImages:
    """Random images in memory."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, pixels, pixels), generator=generator, dtype=torch.uint8)
    return MemoryImages(images, torch.arange(count) % 10, MEAN, STD)


def write_files(folder: Path) -> tuple[str, ...]:
    """Smooth JPEG files of the usual size of photographs in ImageNet, 500 by 375 pixels."""
    generator, paths = np.random.default_rng(0), []
    for number in range(FILES):
        paths.append(str(folder / f"{number}.jpg"))
        small = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return tuple(paths)


def in_files(paths: tuple[str, ...], workers: int, decoding: Decoding, pixels: int = 224) -> FolderImages:
    """Many images of these files, one after the other and from the start again."""
    many = paths * (50_000 // len(paths))
    return FolderImages(many, torch.arange(len(many)) % 10, (pixels, pixels), MEAN, STD, Loaders(workers), decoding)


def given_per_second(images: ImageSet, batch_size: int, device: Device, seconds: float) -> float:
    """Images a second of augmented epochs, once what was read ahead is used up: a third as long is not counted."""
    epochs = (
        images.batches(batch_size, seed=seed, augmentation=AUGMENTATION, device=device.place) for seed in count(0)
    )
    batches = chain.from_iterable(epochs)
    for limit in (seconds / 3, seconds):
        settled(device)
        started, given = time.perf_counter(), 0
        while time.perf_counter() - started < limit:
            given += len(next(batches)[0])
        settled(device)
    return given / (time.perf_counter() - started)


def taken_per_second(source: str, pixels: int, batch_size: int, device: Device, seconds: float) -> float:
    """Images a second that plain training steps take, of images that are there already."""
    network = load_model(source).module.to(device.place).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    x = device.laid_out(torch.randn(batch_size, 3, pixels, pixels, device=device.place))
    y = torch.zeros(batch_size, dtype=torch.int64, device=device.place)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with device.computing():
            loss = F.cross_entropy(network(x).float(), y)
        loss.backward()
        optimizer.step()

    step()
    settled(device)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(5 if device.place.type == "cuda" else 1):
            step()
            steps += 1
        settled(device)
    return batch_size * steps / (time.perf_counter() - started)


def settled(device: Device) -> None:
    """Wait for the device."""
    if device.place.type == "cuda":
        torch.cuda.synchronize(device.place)


def print_memory(device: Device, seconds: float) -> None:
    """Images of 32 pixels, which lie on the device."""
    given = given_per_second(in_memory(50_000), 128, device, seconds)
    taken = taken_per_second("zoo:resnet20", 32, 128, device, seconds)
    print(f"32 pixels, from memory: given {given:,.0f}, {given / taken:.1f} times what ResNet-20 takes ({taken:,.0f})")


def print_files(device: Device, workers: list[int], seconds: float) -> None:
    """A row for each number of processes, a column for each way to decode."""
    batch_size = 128 if device.place.type == "cuda" else 32
    taken = taken_per_second("torchvision:resnet18", 224, batch_size, device, seconds)
    print(f"224 pixels, from JPEG files of 500 by 375, and times what ResNet-18 takes ({taken:,.0f}):")
    print("workers", *(f"{f'decode = {name}':>24}" for name in DECODINGS))
    reason = cannot_decode(device.place)
    with TemporaryDirectory() as folder:
        paths = write_files(Path(folder))
        for number in workers:
            cells = []
            for name in DECODINGS if not reason else DECODINGS[:1]:
                given = given_per_second(in_files(paths, number, name), batch_size, device, seconds)
                cells.append(f"{given:>14,.0f} {given / taken:>7.2f} x")
            print(f"{number:>7}", *cells)
    if reason:
        print(f"decode = device: {device.place} cannot ({reason})")


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, nargs="+", default=sorted({0, cores // 4, cores // 2, cores}))
    parser.add_argument("--seconds", type=float, default=3.0, help="that each figure is measured for")
    return parser


def main() -> None:
    """Print how a network is fed, from memory and from files."""
    options = parser().parse_args()
    device = Device.named(options.device, "auto", "auto")
    print(f"on {device}, {torch.get_num_threads()} threads, {os.cpu_count()} cores; images/s")
    print_memory(device, options.seconds)
    print_files(device, options.workers, options.seconds)


if __name__ == "__main__":
    main()
