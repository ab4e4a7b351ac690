"""How many images a second the data give, beside how many a training step takes: the smaller of the two is what trains.

OMP_NUM_THREADS=1 python -m benchmarks.feed                     32 pixels from memory, 224 pixels from JPEG files
python -m benchmarks.feed --device cuda --workers 0 4 8 14
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from dnas.data.augmentation import Augmentation
from dnas.data.image_files import FolderImages
from dnas.data.image_sets import ImageSet, MemoryImages
from dnas.training.device import Device
from search_spaces.models.load import load_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTATION = Augmentation(crop_padding=4, flip=True)


def in_memory(count: int, pixels: int = 32) -> MemoryImages:
    """Random images in memory."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, pixels, pixels), generator=generator, dtype=torch.uint8)
    return MemoryImages(images, torch.arange(count) % 10, MEAN, STD)


def in_files(folder: Path, count: int, workers: int, pixels: int = 224) -> FolderImages:
    """Smooth JPEG files of the usual size of photographs in ImageNet, 500 by 375 pixels."""
    paths = [folder / f"{number}.jpg" for number in range(count)]
    coarse = np.random.default_rng(0)
    for path in paths:
        if not path.exists():
            small = coarse.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    names = tuple(str(path) for path in paths)
    return FolderImages(names, torch.arange(count) % 10, (pixels, pixels), MEAN, STD, workers)


def given_per_second(images: ImageSet, batch_size: int, device: Device) -> float:
    """Images a second of one augmented epoch, after another that is not counted."""
    for _ in (0, 1):
        started, count = time.perf_counter(), 0
        for x, _y in images.batches(batch_size, seed=1, augmentation=AUGMENTATION, device=device.place):
            count += len(x)
        settled(device)
        seconds = time.perf_counter() - started
    return count / seconds


def taken_per_second(source: str, pixels: int, batch_size: int, device: Device, steps: int) -> float:
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
    started = time.perf_counter()
    for _ in range(steps):
        step()
    settled(device)
    return batch_size * steps / (time.perf_counter() - started)


def settled(device: Device) -> None:
    """Wait for the device."""
    if device.place.type == "cuda":
        torch.cuda.synchronize(device.place)


def main() -> None:
    """Print a line for each way to feed a network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--images", type=int, default=512)
    options = parser.parse_args()
    device = Device.named(options.device, "auto", "auto")
    print(f"on {device}, {torch.get_num_threads()} threads; images/s")
    small = taken_per_second("zoo:resnet20", 32, 128, device, 5)
    given = given_per_second(in_memory(16 * options.images), 128, device)
    print(f"32 pixels, memory: given {given:,.0f}, taken by ResNet-20 {small:,.0f}: {given / small:.1f} times")
    large = taken_per_second("torchvision:resnet18", 224, 32, device, 3)
    with TemporaryDirectory() as folder:
        for workers in options.workers:
            given = given_per_second(in_files(Path(folder), options.images, workers), 32, device)
            told = f"given {given:,.0f}, taken by ResNet-18 {large:,.0f}: {given / large:.1f} times"
            print(f"224 pixels, JPEG files, {workers} workers: {told}")


if __name__ == "__main__":
    main()
