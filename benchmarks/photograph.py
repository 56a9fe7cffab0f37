"""predict.py on a photograph of 12 megapixels, whole processes: memory and time against the ordinary U-Net.

Run from the project's folder: python -m benchmarks.photograph
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.reference import OrdinaryUNet
from benchmarks.tables import Row, show
from data.holes import draw_mask
from data.mask_files import read_mask, write_mask
from data.order import generator
from data.photo import WHOLE, read_photo, write_photo
from model import PConvUNet, load_model
from model.composite import composite
from model.inpainting import predict_padded
from utils.checkpoint import save_weights

PROJECT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 4000, 3000  # px
ROUNDS = 2


def rows() -> Iterator[Row]:
    """What was measured, the figure, the figure to reach: of each rival's runs, which come by turns, the least."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        photo, mask, net = (str(folder / file) for file in ("photo.png", "mask.png", "net.safetensors"))
        rivals = {
            "ours": ["predict.py", "--image", photo, "--mask", mask, "--model", net, "--output", str(folder / "a.png")],
            "ordinary": ["-m", "benchmarks.photograph", photo, mask, net, str(folder / "b.png")],
        }
        runs: dict[str, list[tuple[float, float]]] = {rival: [] for rival in rivals}
        for _ in tqdm(range(ROUNDS), desc="predict.py, 12 megapixels", leave=False):
            for rival, command in rivals.items():
                runs[rival].append(run(command))
    figures = {
        "peak memory": ("GB", {rival: min(gigabytes for _, gigabytes in measured) for rival, measured in runs.items()}),
        "time": ("s", {rival: min(seconds for seconds, _ in measured) for rival, measured in runs.items()}),
    }
    for word, (unit, of) in figures.items():
        what = f"predict.py on 12 megapixels, {word}"
        yield f"{what}: ours / ordinary", f"{of['ours'] / of['ordinary']:.2f}", "0.6"
        yield f"{what}: ours, ordinary", f"{of['ours']:.1f} {unit}, {of['ordinary']:.1f} {unit}", ""


def make_files(folder: Path) -> None:
    """The cat of docs/ enlarged, a mask with a quarter of hole, and a network of the usual size with random weights."""
    from PIL import Image

    with Image.open(PROJECT / "docs" / "chelsea.jpg") as image:
        image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(
            folder / "photo.png", compress_level=1
        )
    square = draw_mask(generator(0, 0, 0), WIDTH, "strokes", 0.25)
    write_mask(folder / "mask.png", square[:HEIGHT])
    torch.manual_seed(0)
    save_weights(folder / "net.safetensors", PConvUNet(7, 64).state_dict())


def run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak resident GB of a process of Python."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=PROJECT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1e6


def repair_ordinarily(photo_path: str, mask_path: str, net_path: str, output: str) -> None:
    """What predict.py does, with the ordinary U-Net: read, predict, compose, write."""
    photo = read_photo(Path(photo_path))
    valid = read_mask(mask_path, "black").valid
    net = OrdinaryUNet(load_model(net_path))
    image = torch.from_numpy(photo.rgb()).permute(2, 0, 1)[None]
    mask = torch.from_numpy(valid).float()[None, None]
    with torch.inference_mode():
        result = predict_padded(net, image, mask).clamp(0, 1)  # type: ignore[arg-type]
        result = composite(image, result, mask)
    write_photo(photo.filled([(WHOLE, result[0].permute(1, 2, 0).numpy())], valid), Path(output))


if __name__ == "__main__":
    if len(sys.argv) == 5:
        repair_ordinarily(*sys.argv[1:])
    else:
        show(rows())
