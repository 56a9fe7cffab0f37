"""Time and memory of predict.py, start to exit, on a photograph of 12 megapixels against the size of the hole.

Run from the project's folder: python -m benchmarks.photograph [PLOT]
PLOT: a .png to plot both into. Takes ten minutes on two idle cores.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from benchmarks.reference import OrdinaryUNet
from benchmarks.tables import Row, show
from data.mask_files import read_mask, write_mask
from data.order import generator
from data.photo import WHOLE, read_photo, write_photo
from model import load_model
from model.composite import composite
from model.inpainting import predict_padded
from utils.arguments import DEFAULT_WEIGHTS

PROJECT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 4000, 3000  # px
HOLES = (100, 300, 1000, 2000, HEIGHT - 2)  # px, sides of squares; the last is all but a frame
MANY, SMALL = 20, 100  # number of scattered holes, and their side in px
ROUNDS = 2

# Runs a command and prints its seconds and peak resident kB. It runs in a separate small process, because on Linux the
# peak of a child includes the memory of the process that forked it.
_MEASURE = """
import os, sys, time
start = time.perf_counter()
child = os.fork()
if not child:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(bool(status))
"""

Measured = tuple[float, float]  # seconds, GB


def rows(plot: Path | None = None) -> Iterator[Row]:
    """Yield (what was measured, figure, target). Figures are minima over interleaved runs."""
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name))
    empty, ordinary = figures["import torch"], figures["ordinary"]
    for side in HOLES:
        ours = figures[f"{side}"]
        what = f"predict.py on {WIDTH}×{HEIGHT} px, a hole of {WIDTH - 2 if side == HOLES[-1] else side}×{side} px"
        yield f"{what}: ours, ordinary", f"{ours[0]:.1f} s, {ordinary[0]:.1f} s", ""
        yield (
            f"{what}: peak memory above `import torch`",
            f"{ours[1] - empty[1]:.2f} GB, {ordinary[1] - empty[1]:.2f} GB",
            "",
        )
    allowed = 1.8 * empty[0] + figures["decode and write"][0]
    yield (
        "predict.py, a hole of 300×300 px / (1.8 × `import torch` + decoding + writing by Pillow)",
        f"{figures['300'][0] / allowed:.2f} ({figures['300'][0]:.1f} s / {allowed:.1f} s)",
        "1",
    )
    yield f"predict.py, {MANY} holes of {SMALL}×{SMALL} px", "{:.1f} s, {:.2f} GB".format(*figures["many"]), ""
    if plot:
        draw(figures, plot)


def measure(folder: Path) -> dict[str, Measured]:
    make_files(folder)
    photo, weights = str(folder / "photo.jpg"), str(DEFAULT_WEIGHTS)
    masks = {path.stem: str(path) for path in folder.glob("*.png")}
    output = str(folder / "out" / "a.png")
    commands = {
        "import torch": ["-c", "import torch"],
        **{
            name: ["predict.py", "--image", photo, "--mask", mask, "--model", weights, "--output", output]
            for name, mask in masks.items()
        },
        "ordinary": ["-m", "benchmarks.photograph", photo, masks["300"], weights, output],
    }
    runs: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in tqdm(range(ROUNDS), desc="predict.py, 12 megapixels", leave=False):
        for name, command in commands.items():
            runs[name].append(run(command))
    least = {name: (min(s for s, _ in measured), min(gb for _, gb in measured)) for name, measured in runs.items()}
    start = time.perf_counter()
    with Image.open(photo) as image:
        image.convert("RGB").save(folder / "out" / "b.png")
    return {**least, "decode and write": (time.perf_counter() - start, 0.0)}


def make_files(folder: Path) -> None:
    """Write the cat of docs/, enlarged and with camera noise, and masks named by the sides of their holes."""
    rng = generator(0, 0, 0)
    with Image.open(PROJECT / "docs" / "chelsea.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    noisy = pixels + rng.normal(0, 4, pixels.shape)
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / "photo.jpg", quality=92)
    for side in HOLES:
        write_hole(folder / f"{side}.png", [((HEIGHT - side) // 2, (WIDTH - side) // 2)], side)
    places = [(int(rng.integers(HEIGHT - SMALL)), int(rng.integers(WIDTH - SMALL))) for _ in range(MANY)]
    write_hole(folder / "many.png", places, SMALL)
    (folder / "out").mkdir()


def write_hole(path: Path, corners: Sequence[tuple[int, int]], side: int) -> None:
    """Write a mask with square holes. The largest side gives a hole of the full image but for a frame."""
    mask = np.ones((HEIGHT, WIDTH), np.uint8)
    for top, left in corners:
        mask[top : top + side, left : left + side] = 0
    if side == HOLES[-1]:
        mask[1:-1, 1:-1] = 0
    write_mask(path, mask)


def run(command: Sequence[str]) -> Measured:
    """Run Python with these arguments. Returns its seconds and peak resident GB."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *command], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed")
    seconds, kilobytes = done.stdout.split()
    return float(seconds), float(kilobytes) / 1e6


def draw(figures: dict[str, Measured], path: Path) -> None:
    """Plot time and memory against the side of the hole into a PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    empty = figures["import torch"]
    for axes, index, unit in zip(figure.subplots(1, 2), (0, 1), ("seconds", "GB above `import torch`"), strict=True):
        less = empty[1] if index else 0
        axes.plot(HOLES, [figures[f"{side}"][index] - less for side in HOLES], "o-", label="ours")
        axes.axhline(figures["ordinary"][index] - less, color="C1", label="ordinary U-Net on the whole picture")
        if not index:
            axes.axhline(empty[0], color="0.6", linestyle=":", label="import torch")
        axes.set(xlabel="side of the hole, px", ylabel=unit, ylim=(0, None), xscale="log")
        axes.set_xticks(HOLES, [str(side) for side in HOLES[:-1]] + ["all"])
        axes.minorticks_off()
        axes.legend(fontsize="small")
    figure.suptitle(f"predict.py on a photograph of {WIDTH}×{HEIGHT} px")
    figure.savefig(path, dpi=110)


def repair_ordinarily(photo_path: str, mask_path: str, net_path: str, output: str) -> None:
    """Do the work of predict.py with the ordinary U-Net: read, predict, compose, write."""
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
        show(rows(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
