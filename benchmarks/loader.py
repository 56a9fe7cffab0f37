"""Training samples per second and core: ours against opening, cropping and resizing by PIL and torchvision.

Run from the project's folder: python -m benchmarks.loader
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms
from tqdm import tqdm

from benchmarks.tables import Row, show
from data.holes import draw_mask
from data.loader import training_batches
from data.mask_files import write_mask
from data.samples import training_samples
from loss import InpaintingLoss
from model import PConvUNet, VGG16Features
from utils.config import Config
from utils.config_files import load_config

PROJECT = Path(__file__).resolve().parent.parent
MASKS = 32  # 512×512, of all styles, 5 to 50 % hole
BATCH = 4
SIZE = 256
# Width, height and number of the JPEGs, standard deviation of their grain, target. The grain determines the file size:
# at 16 megapixels these two give 1 and 1.8 bits per pixel, as photographs of good and high quality have.
KINDS = ((500, 375, 16, 6.0, 2.0), (5000, 3333, 2, 3.0, 6.0), (5000, 3333, 2, 6.0, 6.0))
TURNS = {500: (20, 8), 5000: (6, 1)}  # by width: turns of each loader, batches per turn
STEPS = 8
CROPS = ("data.crop_unit=area", "data.crop_scale=[0.3, 1.0]")  # like torchvision's RandomResizedCrop


def rows() -> Iterator[Row]:
    """Yield (what was measured, figure, target). Compares CPU time of one thread; ours and the rival alternate."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_masks(Path(folder) / "masks")
            for number, (width, height, count, grain, goal) in enumerate(KINDS):
                images = Path(folder) / str(number)
                print(f"loader: {width}×{height} px, {count} JPEGs …", file=sys.stderr)
                megabytes = write_jpegs(images, width, height, count, grain)
                ours, rival = seconds(images, Path(folder) / "masks", *TURNS[width])
                what = f"from {width}×{height} JPEGs of {megabytes:.2g} MB"
                yield f"samples per second and core {what}", f"{1 / ours:.0f}", ""
                yield f"the same, ours / PIL and torchvision {what}", f"{rival / ours:.2f}", f"{goal:g}"
            torch.set_num_threads(threads[0])
            share = waiting(Path(folder) / "1", Path(folder) / "masks")
            yield f"share of training steps of {BATCH} that waits for two workers {what}", f"{share:.4f}", ""
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def write_jpegs(folder: Path, width: int, height: int, count: int, grain: float) -> float:
    """Write a resized photograph of docs/ as JPEGs with grain, every other one mirrored. Returns MB per file."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with Image.open(PROJECT / "docs/chelsea.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    for i in range(count):
        noisy = pixels[:, :: 1 - 2 * (i % 2)] + grain * rng.standard_normal(pixels.shape, np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
    return sum(path.stat().st_size for path in folder.iterdir()) / count / 1e6


def write_masks(folder: Path) -> None:
    folder.mkdir()
    for i in range(MASKS):
        mask = draw_mask(np.random.default_rng(i), 512, "mixed", 0.05 + 0.45 * i / MASKS)
        write_mask(folder / f"{i}.png", mask)


def waiting(images: Path, masks: Path) -> float:
    """Return the share of the time of training steps that is spent waiting for a batch, without the first step."""
    places = (f"data.train={images}", f"masks.train_dir={masks}")
    small = (f"data.image_size={SIZE}", "data.workers=2", f"train.batch_size={BATCH}")
    config = load_config(overrides=[*places, *small, *CROPS])
    net = PConvUNet().to(memory_format=torch.channels_last)
    criterion = InpaintingLoss(VGG16Features(), config.loss.weights.model_dump())
    batches = iter(training_batches(training_samples(config), config, 0, STEPS))
    ends: list[float] = []
    waited = 0.0
    for _ in tqdm(range(STEPS), desc="steps", leave=False):
        start = time.perf_counter()
        image, mask = next(batches)
        waited += time.perf_counter() - start if ends else 0
        net.zero_grad(set_to_none=True)
        criterion(net(image, mask), image, mask)[0].backward()
        ends.append(time.perf_counter())
    return waited / (ends[-1] - ends[0])


def seconds(images: Path, masks: Path, turns: int, batches: int) -> tuple[float, float]:
    """Return the median CPU seconds per sample, in batches of float32 tensors, of ours and the rival."""
    places = (f"data.train={images}", f"masks.train_dir={masks}")
    small = (f"data.image_size={SIZE}", "data.workers=0", f"train.batch_size={BATCH}")
    config = load_config(overrides=[*places, *small, *CROPS])
    samples = training_samples(config)
    ours = iter(training_batches(samples, config, 0, (1 + turns) * batches))
    rivals = rival_batches([Path(path) for path in samples.images], sorted(masks.iterdir()), config)
    torch.manual_seed(0)
    times: dict[str, list[float]] = {"ours": [], "rival": []}
    for turn in range(1 + turns):
        for name, loader in (("ours", ours), ("rival", rivals)):
            start = time.process_time()
            for _ in range(batches):
                next(loader)
            if turn:  # the first one is warm-up
                times[name].append((time.process_time() - start) / BATCH / batches)
    return statistics.median(times["ours"]), statistics.median(times["rival"])


def rival_batches(images: list[Path], masks: list[Path], config: Config) -> Iterator[list[Tensor]]:
    """Yield batches made the usual way, with the same augmentations: crop and flip of the image; dilation, rotation,
    shift, zoom and flip of the mask. OpenCV dilates: PIL's MinFilter and torch's max_pool2d take 100 times as long."""
    of_image, of_mask = rival_transforms(config)
    rng = np.random.default_rng(0)
    low, high = config.masks.dilate
    while True:
        pairs = []
        for _ in range(BATCH):
            image = of_image(Image.open(images[rng.integers(len(images))]).convert("RGB"))
            grey = np.asarray(Image.open(masks[rng.integers(len(masks))]).convert("L"))
            side = int(rng.integers(low, high + 1))
            mask = Image.fromarray(cv2.erode(grey, np.ones((side, side), np.uint8)))
            pairs.append((image, (of_mask(mask) > 0.5).float()))
        yield default_collate(pairs)


def rival_transforms(config: Config) -> tuple[Callable[[Image.Image], Tensor], Callable[[Image.Image], Tensor]]:
    """Return torchvision's transforms of the image and of the mask."""
    size, mode = config.data.image_size, transforms.InterpolationMode
    end = (transforms.RandomHorizontalFlip(), transforms.ToTensor())
    crop = transforms.RandomResizedCrop(size, scale=config.data.crop_scale, interpolation=mode.BICUBIC)
    turn = transforms.RandomAffine(180, translate=(0.1, 0.1), interpolation=mode.NEAREST)
    part = transforms.RandomResizedCrop(size, scale=(0.5, 1), ratio=(1, 1), interpolation=mode.NEAREST)
    return transforms.Compose([crop, *end]), transforms.Compose([turn, part, *end])


if __name__ == "__main__":
    show(rows())
