"""Statistics of a folder's masks: measurements, a text report, and a histogram."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.mask_files import HOLE_BINS, alpha_note, bin_name, hole_bin, hole_ratio, read_mask
from utils.errors import UserError, message_of


class Measured(NamedTuple):
    """Measurements of one mask file, or why it could not be read."""

    path: Path
    fault: str | None = None
    ratio: float = 0.0
    holes: int = 0
    radius: float = 0.0  # of the largest inscribed circle, as a share of the shorter side
    grey: float = 0.0  # share of pixels that are neither black nor white
    size: tuple[int, int] = (0, 0)  # width, height in px
    by_alpha: bool = False  # whether the file's alpha channel is the mask


def count_holes(mask: np.ndarray) -> int:
    """Return the number of connected holes of a mask (H,W), 0 = hole, with 8 neighbours."""
    return int(cv2.connectedComponents((mask == 0).astype(np.uint8), connectivity=8)[0]) - 1


def inscribed_radius(mask: np.ndarray) -> float:
    """Return the radius of the largest circle in the holes of a mask (H,W), 0 = hole, as a share of the shorter side.

    It is the distance from the deepest hole pixel to the nearest valid pixel, centre to centre. The outside of the
    image is not valid, so a hole at the edge may contain part of a circle. Infinite without a valid pixel.
    """
    if not mask.any():
        return math.inf
    depth = cv2.distanceTransform((mask == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float(depth.max()) / min(mask.shape)


def measure(job: tuple[Path, str]) -> Measured:
    path, hole = job
    try:
        mask, grey, by_alpha = read_mask(path, hole)
    except UserError as error:
        return Measured(path, message_of(error))
    size = (mask.shape[1], mask.shape[0])
    return Measured(path, None, hole_ratio(mask), count_holes(mask), inscribed_radius(mask), grey, size, by_alpha)


def describe(masks: Sequence[Measured], hole: str) -> str:
    """Return a report: sizes, polarity, grey files, and a table with one line per bin of hole ratios."""
    sizes = Counter(mask.size for mask in masks).most_common()
    shown = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes[:5])
    grey = sum(mask.grey > 0 for mask in masks)
    very_grey = sum(mask.grey > 0.01 for mask in masks)
    lines = [
        f"sizes: {shown}" + (f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""),
        f"not binary: {grey / len(masks):.1%} of the files ({grey}) have grey pixels,"
        f" {very_grey / len(masks):.1%} ({very_grey}) more than 1 % of them",
        polarity(masks, hole),
        *special(masks, hole),
        "",
        "hole ratio  masks   share  holes  largest inscribed circle (radius / side)",
    ]
    bins: list[list[Measured]] = [[] for _ in HOLE_BINS]
    outside: list[Measured] = []
    for mask in masks:
        index = hole_bin(mask.ratio)
        (outside if index is None else bins[index]).append(mask)
    for index, members in enumerate(bins):
        line = f"{bin_name(index):10}{len(members):7}{len(members) / len(masks):8.1%}"
        if members:
            line += f"{_mean([m.holes for m in members]):7.1f}  {_mean([m.radius for m in members]):.3f}"
        lines.append(line)
    lines.append(f"{'outside':10}{len(outside):7}{len(outside) / len(masks):8.1%}")
    return "\n".join(lines)


def special(masks: Sequence[Measured], hole: str) -> list[str]:
    """Return lines about masks without holes, which train nothing, and about masks from alpha channels."""
    empty, by_alpha = sum(mask.ratio == 0 for mask in masks), sum(mask.by_alpha for mask in masks)
    lines = [f"without a hole: {empty} ({empty / len(masks):.1%})"] if empty else []
    return [*lines, f"{by_alpha} with an alpha channel: {alpha_note(hole)}"] if by_alpha else lines


def polarity(masks: Sequence[Measured], hole: str) -> str:
    """Guess which colour the holes have: the rarer one, as most masks are less than half hole."""
    black = _mean([mask.ratio for mask in masks])
    if hole == "white":
        black = 1 - black
    if hole not in ("black", "white"):
        return f"polarity: {black:.1%} of the pixels are {hole}"
    text = f"polarity: {1 - black:.1%} white, {black:.1%} black"
    if 0.4 <= black <= 0.6:
        return f"{text}; too even to tell which is the hole"
    seems = "black" if black < 0.5 else "white"
    if seems == hole:
        return f"{text}; holes are probably {seems}, as masks.hole says"
    return f"{text}; holes are probably {seems.upper()}, but masks.hole says {hole}: try masks.hole={seems}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- the histogram ---------------------------------------------------------------------------------------------

WIDTH, HEIGHT, MARGIN = 1000, 720, 60  # px of the histogram image
PLOT_TOP, PLOT_BOTTOM = 90, 370  # px, ends of the vertical axis
THUMBNAIL = 130  # px
PAPER, INK, FAINT = "#ffffff", "#20262e", "#c9d1da"
COLOURS = ("#9ecae1", "#3182bd")  # of the bars, alternating by bin
COLOUR_OUTSIDE = "#b0b0b0"


def draw_histogram(masks: Sequence[Measured], hole: str, folder: Path) -> Image.Image:
    """Draw the hole ratios in steps of 0.01, the bin edges, and two masks per bin."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    font, large = ImageFont.load_default(14), ImageFont.load_default(20)
    draw.text((MARGIN, 20), f"Hole ratios of {len(masks)} masks", INK, large)
    draw.text((MARGIN, 48), str(folder), INK, font)
    draw_bars(draw, [mask.ratio for mask in masks], font)
    column = (WIDTH - 2 * MARGIN) / len(HOLE_BINS)
    for index in range(len(HOLE_BINS)):
        left = round(MARGIN + index * column + (column - THUMBNAIL) / 2)
        members = sorted((mask for mask in masks if hole_bin(mask.ratio) == index), key=lambda mask: mask.ratio)
        draw.text((left, PLOT_BOTTOM + 34), f"{bin_name(index)}: {len(members)}", INK, font)
        for row, member in enumerate(members[:: max(1, len(members) - 1)][:2]):  # smallest and largest ratio
            top = PLOT_BOTTOM + 56 + row * (THUMBNAIL + 8)
            picture.paste(thumbnail(member.path, hole), (left, top))
            draw.rectangle((left - 1, top - 1, left + THUMBNAIL, top + THUMBNAIL), outline=FAINT)
    return picture


def draw_bars(draw: ImageDraw.ImageDraw, ratios: Sequence[float], font: Any) -> None:
    """Draw the axes, the bin edges, and a bar for each 0.01 of the hole ratio."""
    bars = Counter(max(0, math.ceil(round(ratio * 100, 6)) - 1) for ratio in ratios)  # bar k is (k, k + 1] hundredths
    last = max(61, *bars) + 1
    tallest = max(bars.values())
    step = (WIDTH - 2 * MARGIN) / last
    for share in (0.5, 1.0):
        y = PLOT_BOTTOM - share * (PLOT_BOTTOM - PLOT_TOP)
        draw.line((MARGIN, y, WIDTH - MARGIN, y), FAINT)
        draw.text((MARGIN - 8, y), f"{share * tallest:g}", INK, font, anchor="rm")
    for edge in sorted({edge for ends in HOLE_BINS for edge in ends}):
        x = MARGIN + edge * 100 * step
        draw.line((x, PLOT_TOP - 8, x, PLOT_BOTTOM + 6), FAINT)
        draw.text((x, PLOT_BOTTOM + 16), f"{edge:g}", INK, font, anchor="mm")
    for bar, count in bars.items():
        index = hole_bin((bar + 0.5) / 100)
        top = PLOT_BOTTOM - count / tallest * (PLOT_BOTTOM - PLOT_TOP)
        colour = COLOUR_OUTSIDE if index is None else COLOURS[index % 2]
        draw.rectangle((MARGIN + bar * step + 1, top, MARGIN + (bar + 1) * step - 1, PLOT_BOTTOM), colour)
    draw.line((MARGIN, PLOT_BOTTOM, WIDTH - MARGIN, PLOT_BOTTOM), INK)


def thumbnail(path: Path, hole: str) -> Image.Image:
    """Return a mask file at THUMBNAIL px, hole in black."""
    mask = read_mask(path, hole).valid
    return Image.fromarray(mask * 255).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
