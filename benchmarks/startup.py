"""Time of the scripts from process start to exit, relative to `python -c "import torch"`.

Run from the project's folder: python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.tables import Row, show
from data.mask_files import write_mask
from model import PConvUNet
from utils.checkpoint import save_weights

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = ("main.py", "masks.py", "predict.py", "evaluate.py", "convert.py")
DEPTH, BASE_CHANNELS = 7, 64
SIZE = 512  # px
ROUNDS = 9

IMPORT_TORCH = "import torch"
PREDICT = f"predict.py, {SIZE}×{SIZE} px, {DEPTH} levels, {BASE_CHANNELS} base channels"


def rows() -> Iterator[Row]:
    """Yield (what was measured, figure, target)."""
    with tempfile.TemporaryDirectory() as folder:
        prediction = prepare(Path(folder))
        seconds = measure(
            {
                IMPORT_TORCH: ["-c", IMPORT_TORCH],
                PREDICT: prediction,
                **{f"{script} --help": [script, "--help"] for script in SCRIPTS},
            }
        )
    torch = seconds.pop(IMPORT_TORCH)
    yield f'`python -c "{IMPORT_TORCH}"`', f"{statistics.median(torch):.2f} s", ""
    for name, own in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(own, torch, strict=True))
        goal = "1.6" if name == PREDICT else "0.15"
        yield f"{name} / import torch", f"{ratio:.2f} ({statistics.median(own):.2f} s)", goal


def prepare(folder: Path) -> list[str]:
    """Write a network, a photograph and a mask with a quarter of hole. Returns the command that repairs it."""
    mask = np.ones((SIZE, SIZE), np.uint8)
    mask[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4] = 0
    write_mask(folder / "mask.png", mask)
    Image.open(PROJECT / "docs/chelsea.jpg").resize((SIZE, SIZE)).save(folder / "image.png")
    save_weights(folder / "net.safetensors", PConvUNet(DEPTH, BASE_CHANNELS).state_dict())
    files = {"image": "image.png", "mask": "mask.png", "model": "net.safetensors", "output": "output.png"}
    return ["predict.py", *(word for option, name in files.items() for word in (f"--{option}", str(folder / name)))]


def measure(commands: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Return the seconds of each Python command in ROUNDS interleaved rounds, after one that warms the file cache."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in tqdm(range(1 + ROUNDS), desc="startup", unit="round", file=sys.stderr, leave=False):
        for name, arguments in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    return {name: own[1:] for name, own in seconds.items()}


if __name__ == "__main__":
    show(rows())
