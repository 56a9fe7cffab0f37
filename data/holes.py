"""Irregular holes at a wanted hole-to-image ratio, in three styles.

Every style paints an *order*: for each pixel of a small canvas the time at which it becomes hole. The pixels that
come first are the hole, as many as the ratio asks for, so that any ratio can be reached without trial and error.
A soft copy of them is scaled to the image's size and cut there at the exact number of pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

STYLES = ("shapes", "strokes", "contours")

CANVAS = 256  # px, side of the canvas on which all holes are drawn: masks look alike at any size
_WIDE = 364  # px, side of the canvas before contours are rotated: CANVAS times the square root of 2, rounded up
_NEVER = 65535  # the order of a pixel that nothing reaches


def draw_mask(rng: np.random.Generator, size: int, style: str, ratio: float, border: int = 0) -> np.ndarray:
    """Draw one mask: uint8 (size,size), 1 = valid, 0 = hole.

    `style` is one of STYLES, or "mixed": one of them at random. Exactly `ratio` times size² pixels (rounded, at
    least one) are hole, none of them within `border` px of the image's edge. The mask is a function of the
    arguments and the state of `rng` alone. ValueError where the style is unknown or the holes have no room.
    """
    if style == "mixed":
        style = STYLES[rng.integers(len(STYLES))]
    if style not in STYLES:
        raise ValueError(f"style {style!r} must be one of {', '.join(STYLES)}, mixed")
    side = size - 2 * border
    pixels = max(1, round(ratio * size * size))
    if side < 1 or pixels > side * side:
        raise ValueError(f"no room for {pixels} px of holes in {size}x{size} px with a border of {border} px")
    share = pixels / (side * side)
    unit = CANVAS / 512 * size / side
    if style == "contours":
        order = _contours(rng, ratio, unit, border > 0)
    else:
        order = np.zeros((256,256),np.uint16)
    soft = _soft_holes(order, share, side)
    mask = np.ones((size, size), np.uint8)
    mask[border : size - border, border : size - border] = 1 - _cut(soft, pixels)
    return mask


def _soft_holes(order: np.ndarray, share: float, side: int) -> np.ndarray:
    pixels = round(share * order.size)
    while True:
        times = order.ravel()
        limit = int(np.partition(times, pixels - 1 if pixels else 0)[max(pixels - 1, 0)])
        if limit < _NEVER:
            break
        order = cv2.erode(order, np.ones((9, 9), np.uint8))
    upto = np.count_nonzero(order <= limit)
    below = np.count_nonzero(order < limit)
    hole = order <= limit if upto - pixels <= pixels - below else order < limit
    soft = cv2.GaussianBlur(hole.astype(np.uint8) * 255, (0, 0), 1.0)
    return cv2.resize(soft, (side, side), interpolation=cv2.INTER_LINEAR if side >= CANVAS else cv2.INTER_AREA)


def _cut(soft, pixels):
    counts = cv2.calcHist([soft], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    above = np.cumsum(counts[::-1])[::-1]  # number of pixels >= level
    level = int(np.flatnonzero(above >= pixels)[-1])
    hole = (soft >= level).astype(np.uint8)
    surplus = int(above[level]) - pixels
    if surplus:
        hole.ravel()[np.flatnonzero(soft == level)[:surplus]] = 0
    return hole


def _noise(rng, cells):
    return cv2.resize(rng.standard_normal((cells, cells), np.float32), (_WIDE, _WIDE), interpolation=cv2.INTER_CUBIC)


K = 5
P = dict(
    ratio=[0.055, 0.15, 0.25, 0.35, 0.45, 0.55],
    clump=[0.4, 1.0, 1.8, 3, 3.3, 4],
    single=[1]*6,
    gaps=[.5, .4, .25, .25, .25, .25],
    mu=[.2,.2,.22,.25,.35,.53],
)


def _contours(rng, ratio, unit, inside):
    p = {k: float(np.interp(ratio, P["ratio"], P[k])) for k in P}
    lines = np.zeros((_WIDE, _WIDE), np.uint8)
    # level lines of smooth noise at several scales
    for cells in rng.choice([4, 6, 9, 14], 2, replace=False):
        bands = (_noise(rng, int(cells)) * 1.2 + rng.uniform(0, 1) + 50).astype(np.uint8)
        lines |= cv2.morphologyEx(bands, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    # long straight edges
    for _ in range(rng.integers(2, 8)):
        start = rng.uniform(0, _WIDE, 2)
        angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.15, 6))
        steps = rng.uniform(10, 50) * np.stack([np.cos(angle), np.sin(angle)], 1)
        cv2.polylines(lines, [np.int32(start + np.cumsum(steps, 0))], False, 1)
    lines[np.abs(_noise(rng, int(rng.integers(8, 24)))) < p["gaps"]] = 0
    # clusters of fragments
    frag = []
    for _ in range(rng.integers(2, 7)):
        n = rng.integers(4, 20)
        a = rng.uniform(0, _WIDE, 2) + rng.normal(0, 18, (n, 2))
        b = a + rng.normal(0, 5, (n, 2))
        frag.extend(np.int32(np.stack([a, b], 1)))
    cv2.polylines(lines, frag, False, 1)
    count, labels, boxes, centres = cv2.connectedComponentsWithStats((lines != 0).astype(np.uint8), connectivity=8)
    density = _noise(rng, int(rng.integers(3, 6)))
    x, y = centres.astype(int).T
    piece = p["clump"] * density[y, x] + p["single"] * rng.standard_normal(count)
    time = piece[labels] + 0.3 * density
    times = np.where(lines > 0, time * 4000 + 30000, _NEVER).clip(0, _NEVER).astype(np.uint16)
    d = max(1, round((9 + 40 * rng.beta(K*p["mu"],K*(1-p["mu"]))) * unit))
    times = cv2.erode(times, np.ones((d, d), np.uint8))
    # times tie-break
    turn = cv2.getRotationMatrix2D((_WIDE / 2, _WIDE / 2), rng.uniform(0, 360), 1)
    turn[:, 2] += (CANVAS - _WIDE) / 2
    return cv2.warpAffine(times, turn, (CANVAS, CANVAS), flags=cv2.INTER_NEAREST, borderValue=_NEVER)
