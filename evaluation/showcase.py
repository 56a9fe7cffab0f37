"""Draw the pictures of the docs. The photographs come with scikit-image.

`python -m evaluation.showcase FOLDER [CHECKPOINT]`, or `make figures`, writes into the folder
- repaired.png: damaged or unwanted parts of photographs, filled by Telea's method and by a network;
- large_holes.png: holes larger than those in training, filled in a single pass and octave by octave;
- levels.png: a mask at each level of the encoder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from skimage import data as photographs

from data.holes import draw_mask
from evaluation.baselines import FILLS
from evaluation.pictures import masked, sheet
from model import DEFAULT_WEIGHTS, PartialConv2d, inpaint, load_for_prediction
from model.network import ENCODER_KERNELS

SIZE = 256  # px of each picture
TITLES = ("masked", "Telea", "this network") * 2


def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images (SIZE,SIZE,3), float32 in [0,1], with masks (SIZE,SIZE), uint8, 1 = valid, 0 = hole."""
    astronaut, coffee, cat, rocket = (
        getattr(photographs, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")
    )
    rng = np.random.default_rng(7)
    scratched = np.ones((SIZE, SIZE), np.uint8)
    for _ in range(9):
        points = rng.integers(0, SIZE, 2) + np.cumsum(rng.normal(0, 22, (8, 2)), 0)
        cv2.polylines(scratched, [points.astype(np.int32)], False, 0, 3)
    written = np.ones((SIZE, SIZE), np.uint8)
    for line, word in enumerate(("COFFEE", "every", "morning")):
        cv2.putText(written, word, (12, 75 + 75 * line), cv2.FONT_HERSHEY_DUPLEX, 1.9, 0, 4)
    removed = np.ones((SIZE, SIZE), np.uint8)
    cv2.ellipse(removed, (128, 120), (26, 105), 0, 0, 360, 0, -1)
    blot = np.ones((SIZE, SIZE), np.uint8)
    cv2.ellipse(blot, (150, 150), (52, 38), 30, 0, 360, 0, -1)
    torn = draw_mask(np.random.default_rng(3), SIZE, "contours", 0.3)
    brushed = draw_mask(np.random.default_rng(5), SIZE, "strokes", 0.15)
    return [
        (part(astronaut, 0, 70, 290), scratched),
        (part(coffee, 20, 120, 360), written),
        (part(rocket, 40, 170, 300), removed),
        (part(cat, 0, 60, 300), blot),
        (part(astronaut, 180, 200, 310), torn),
        (part(coffee, 60, 10, 320), brushed),
    ]


def part(photograph: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """Crop a square of a photograph, uint8 (H,W,3), and resize it to SIZE×SIZE px, float32 in [0,1]."""
    square = photograph[top : top + side, left : left + side, :3]
    return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def draw_cases(checkpoint: Path) -> np.ndarray:
    """Return repaired.png, uint8 (H,W,3): two cases per row."""
    net = load_for_prediction(checkpoint)
    rows = []
    for image, mask in cases():
        valid = mask[..., None] > 0
        telea = np.where(valid, image, FILLS["telea"](np.where(valid, image, np.float32(0)), mask))
        image_tensor = torch.from_numpy(image).permute(2, 0, 1)[None]  # (1,3,H,W)
        mask_tensor = torch.from_numpy(mask).float()[None, None]  # (1,1,H,W)
        ours = inpaint(net, image_tensor, mask_tensor)[0].permute(1, 2, 0).numpy()
        rows.append([masked(image, mask[..., None]), telea, ours])
    return sheet([[*left, *right] for left, right in zip(rows[::2], rows[1::2], strict=True)], TITLES)


def draw_large_holes(checkpoint: Path) -> np.ndarray:
    """Return large_holes.png, uint8 (H,W,3): photographs of up to two megapixels, holes of 280 to 600 px."""
    net = load_for_prediction(checkpoint)
    cat = cv2.resize(photographs.chelsea()[:, 60:360], (1400, 1400), interpolation=cv2.INTER_CUBIC)
    astronaut = cv2.resize(photographs.astronaut(), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    rows = []
    for pixels, centre, radii in ((cat, (1000, 900), (260, 210)), (astronaut, (770, 330), (140, 300))):
        image, mask = pixels.astype(np.float32) / 255, np.ones(pixels.shape[:2], np.uint8)
        cv2.ellipse(mask, centre, radii, 20, 0, 360, 0, -1)
        valid = mask[..., None] > 0
        hole_is_black = np.where(valid, image, np.float32(0))
        image_tensor = torch.from_numpy(hole_is_black).permute(2, 0, 1)[None]  # (1,3,H,W)
        mask_tensor = torch.from_numpy(mask).float()[None, None]  # (1,1,H,W)
        fills = [inpaint(net, image_tensor, mask_tensor, scale)[0].permute(1, 2, 0).numpy() for scale in (1, 6)]
        telea = np.where(valid, image, FILLS["telea"](hole_is_black, mask))
        shown = [masked(image, mask[..., None]), telea, *fills]
        rows.append([cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for picture in shown])
    return sheet(rows, ("masked", "Telea", "a single pass", "octave by octave"))


def draw_levels(depth: int = 6) -> np.ndarray:
    """Return levels.png, uint8 (H,W,3): a mask and its update by Eq. 2 at each level of the encoder."""
    mask = torch.from_numpy(draw_mask(np.random.default_rng(3), SIZE, "contours", 0.5)).float()[None, None]
    pictures, titles = [mask], [f"mask, {SIZE} px"]
    for level in range(depth):
        kernel = ENCODER_KERNELS[level] if level < len(ENCODER_KERNELS) else 3
        _, mask = PartialConv2d(1, 1, kernel, stride=2, padding=kernel // 2)(mask, mask)
        pictures.append(torch.nn.functional.interpolate(mask, (SIZE, SIZE)))
        titles.append(f"level {level + 1}, {mask.shape[-1]} px")
    small = [torch.nn.functional.interpolate(picture, (128, 128))[0].permute(1, 2, 0).numpy() for picture in pictures]
    framed = [cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0.6)[..., None] for picture in small]
    return sheet([framed], tuple(titles))


def main(folder: Path, checkpoint: Path = DEFAULT_WEIGHTS) -> None:
    for name, picture in (
        ("repaired.png", draw_cases(checkpoint)),
        ("large_holes.png", draw_large_holes(checkpoint)),
        ("levels.png", draw_levels()),
    ):
        Image.fromarray(picture).save(folder / name, optimize=True)
        print(folder / name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
