"""Draw irregular holes that cover a given share of the image, in three styles.

Each style draws on a small canvas and stops close to that share: shapes and strokes shorten the last piece, contours
sort their pieces and take as many as needed. The canvas is then resized with soft edges, and a threshold selects the
exact number of pixels. So every share is reached without redrawing.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np

from utils.config import MASK_STYLES

_CANVAS = 256  # px, side of the canvas of all styles: holes look alike at any image size
_WIDE = 364  # px, side of the canvas of contours before they are rotated: _CANVAS times the square root of 2
_MAX_PIECES = 400  # maximum per mask; if they cover too little, the holes are dilated
_SOFTNESS = 1.0  # px of the canvas, standard deviation of the blur before the threshold: hides the canvas' pixels
_SHARES = 64  # steps for shortening the last piece
_GOLDEN = (5**0.5 - 1) / 2
_ZERO, _UNIT = 128, 32  # mean and standard deviation of noise in uint8
_NEVER = 65535  # time of pixels that no contour reaches
_LATEST = 12.0  # delay of contours that would cross a border to keep clear, in standard deviations of time

# How contours change with the hole ratio. Tuned so that the number of connected holes (8 neighbours) and the largest
# inscribed circle match the paper's published test masks; figures are in test_masks.py.
_RATIOS = (0.055, 0.15, 0.25, 0.35, 0.45, 0.55)
_CLUMPING = (0.2, 1.0, 1.8, 3.3, 3.5, 5.0)  # how strongly pieces cluster in the same parts of the image; 0 = not at all
_GAPS = (0.6, 0.4, 0.25, 0.2, 0.25, 0.25)  # width of the gaps in the lines, as a level of noise of unit variance
_DILATION = (0.18, 0.20, 0.23, 0.27, 0.30, 0.63)  # mean side of the dilation square, as a share of 9 to 49 px

# Draws a piece at a share of its full extent, in (0,1], on a canvas: uint8, 1 = hole.
Piece = Callable[[np.ndarray, float], None]


def draw_mask(
    rng: np.random.Generator, size: int, style: str | Mapping[str, float], ratio: float, border: int = 0
) -> np.ndarray:
    """Draw one mask: uint8 (size,size), 1 = valid, 0 = hole.

    style: one of MASK_STYLES, "mixed" for a random one, or the share of each. Exactly ratio · size² pixels (rounded, at
    least one) are hole, all at least `border` px from the image's edge. The mask depends only on the arguments and the
    state of `rng`. Raises ValueError if the style is unknown or the holes do not fit.
    """
    if not isinstance(style, str):
        shares = np.array([style.get(name, 0.0) for name in MASK_STYLES])
        style = MASK_STYLES[rng.choice(len(MASK_STYLES), p=shares / shares.sum())]
    if style == "mixed":
        style = MASK_STYLES[rng.integers(len(MASK_STYLES))]
    side = size - 2 * border  # the canvas represents the part of the image that may become hole
    pixels = max(1, round(ratio * size * size))
    if side < 1 or pixels > side * side:
        raise ValueError(f"no room for {pixels} px of holes in {size}x{size} px with a border of {border} px")
    unit = _CANVAS / 512 * size / side  # px of the canvas per px of a 512 px image
    area = max(1, round(_CANVAS**2 * pixels / (side * side)))
    inside = border > 0  # no piece crosses the edge
    if style == "shapes":
        canvas = _drawn_until(_shapes(rng, area, inside), area)
    elif style == "strokes":
        canvas = _drawn_until(_strokes(rng, ratio, unit, inside), area)
    elif style == "contours":
        canvas = _contours(rng, area, ratio, unit, inside)
    else:
        raise ValueError(f"style {style!r} must be one of {', '.join(MASK_STYLES)}, mixed")
    mask = np.ones((size, size), np.uint8)
    mask[border : size - border, border : size - border] = _cut(_scaled(_grown(canvas, area), side), pixels)
    return mask


def spread_ratio(number: int, low: float, high: float, size: int) -> float:
    """Return the hole ratio of mask `number` in a set whose ratios spread evenly from `low` to `high`.

    Uses multiples of the golden ratio modulo 1: the first k are spread evenly for every k. A mask of size² pixels can
    have exactly this ratio. It is strictly between `low` and `high`, since rounding would decide the bin at an edge.
    """
    least = math.floor(low * size * size) + 1
    most = max(least, math.ceil(high * size * size) - 1)
    place = (0.5 + number * _GOLDEN) % 1
    return (least + math.floor(place * (most - least + 1))) / (size * size)


# --- from the canvas to the image ------------------------------------------------------------------------------


def _grown(canvas: np.ndarray, area: int) -> np.ndarray:
    """Return the canvas with its holes dilated pixel by pixel until they cover about `area` px or more."""
    while cv2.countNonZero(canvas) < 0.99 * area:
        canvas = cv2.dilate(canvas, np.ones((3, 3), np.uint8))
    return canvas


def _scaled(canvas: np.ndarray, side: int) -> np.ndarray:
    """Resize the canvas to (side,side), uint8 from 0 = hole to 255 = valid, with soft edges."""
    soft = cv2.GaussianBlur((1 - canvas) * np.uint8(255), (5, 5), _SOFTNESS)
    return cv2.resize(soft, (side, side), interpolation=cv2.INTER_LINEAR if side >= _CANVAS else cv2.INTER_AREA)


def _cut(soft: np.ndarray, pixels: int) -> np.ndarray:
    """Return a mask whose holes are the `pixels` lowest values of a uint8 map; the last ones among equal values."""
    level = _level(soft, pixels)
    valid = soft > level
    surplus = valid.size - np.count_nonzero(valid) - pixels
    valid.ravel()[np.flatnonzero(soft == level)[:surplus]] = True
    return valid.view(np.uint8)


def _level(values: np.ndarray, pixels: int) -> int:
    """Return the lowest level that at least `pixels` of the values, uint8 or uint16, do not exceed."""
    levels = range(np.iinfo(values.dtype).max + 1)
    return bisect.bisect_left(levels, pixels, key=lambda level: int(np.count_nonzero(values <= level)))


# --- shapes and strokes: pieces, one after another -------------------------------------------------------------


def _drawn_until(pieces: Iterator[Piece], area: int) -> np.ndarray:
    """Draw pieces on a canvas until they cover `area` px. The last piece is shortened as needed."""
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    for draw in itertools.islice(pieces, _MAX_PIECES):
        whole = _with(canvas, draw, 1.0)
        if cv2.countNonZero(whole) >= area:
            return _shortened(canvas, draw, area)
        canvas = whole
    return canvas


def _shortened(canvas: np.ndarray, draw: Piece, area: int) -> np.ndarray:
    """Return the canvas with the smallest share of a piece that covers `area` px."""

    def covered(step: int) -> int:
        return cv2.countNonZero(_with(canvas, draw, step / _SHARES))

    return _with(canvas, draw, bisect.bisect_left(range(_SHARES), area, lo=1, key=covered) / _SHARES)


def _with(canvas: np.ndarray, draw: Piece, share: float) -> np.ndarray:
    canvas = canvas.copy()
    draw(canvas, share)
    return canvas


def _shapes(rng: np.random.Generator, area: int, inside: bool) -> Iterator[Piece]:
    """Yield lines, circles and ellipses endlessly, sized for `area` px. inside: none crosses the canvas' edge."""
    share = min(area / _CANVAS**2, 0.9)
    count = rng.integers(10, 30) if inside else rng.integers(3, 25)
    mean_side = _CANVAS * math.sqrt(-math.log1p(-share) / count)  # of squares that cover the share at random places
    while True:
        long = 0.5 * mean_side * rng.uniform(0.5, 1.6)  # half the longer axis
        wide = long
        kind = rng.integers(3)
        if kind > 0:
            stretch = rng.uniform(1.0, 2.0 if kind == 1 else 3.0)
            long, wide = long * stretch, long / stretch
        reach = min(long + wide if kind == 2 else long, 0.5 * _CANVAS) if inside else 0.0
        x, y = rng.uniform(reach, _CANVAS - reach, 2).tolist()
        yield _shape(bool(kind == 2), x, y, long, wide, rng.uniform(0, math.pi))


def _shape(is_line: bool, x: float, y: float, long: float, wide: float, angle: float) -> Piece:
    """Return a line with round ends or an ellipse, half axes `long` and `wide` px, growing from its centre."""

    def draw(canvas: np.ndarray, share: float) -> None:
        if is_line:
            dx, dy = share * long * math.cos(angle), share * long * math.sin(angle)
            start, end = (round(x - dx), round(y - dy)), (round(x + dx), round(y + dy))
            cv2.line(canvas, start, end, 1, max(1, round(2 * share * wide)))
        else:
            axes = max(1, round(share * long * 16)), max(1, round(share * wide * 16))  # in 1/16 px
            centre = round(x * 16), round(y * 16)
            cv2.ellipse(canvas, centre, axes, math.degrees(angle), 0, 360, 1, -1, cv2.LINE_8, 4)

    return draw


def _strokes(rng: np.random.Generator, ratio: float, unit: float, inside: bool) -> Iterator[Piece]:
    """Yield strokes of a free-form zigzag brush endlessly. inside: none crosses the canvas' edge."""
    widest = 24 + 60 * ratio  # px at 512
    while True:
        width = max(1, round(rng.uniform(10, widest) * unit))
        count = int(rng.integers(3, 13))
        turns = rng.normal(0, 0.9, count + 1)
        turns[::2] -= 0.6
        turns[1::2] += 0.6
        turns[0] = rng.uniform(0, 2 * math.pi)
        steps = rng.uniform(16, 100, count + 1) * unit * np.exp(1j * turns.cumsum())  # x + iy
        steps[0] = complex(*rng.uniform(0, _CANVAS, 2))  # from the canvas' corner to the start
        points = steps.cumsum().view(np.float64).reshape(-1, 2)
        if inside:
            reach = width / 2 + 1
            span = _CANVAS - 2 * reach
            points = reach + span - np.abs(np.mod(points - reach, 2 * span) - span)  # reflect at the edges
        yield _stroke(points, width)


def _stroke(points: np.ndarray, width: int) -> Piece:
    """Return a brush stroke of `width` px along `points`, (N,2) in px as x, y, growing from its start."""

    def draw(canvas: np.ndarray, share: float) -> None:
        reach = share * (len(points) - 1)
        last = math.ceil(reach)
        upto = points[: last + 1].copy()
        upto[-1] -= (last - reach) * (upto[-1] - upto[-2])
        cv2.polylines(canvas, [np.rint(upto).astype(np.int32)], False, 1, width)

    return draw


# --- contours: all pieces at once, sorted ----------------------------------------------------------------------


def _contours(rng: np.random.Generator, area: int, ratio: float, unit: float, inside: bool) -> np.ndarray:
    """Draw broken outlines, dilated by a square of 9 to 49 px (at 512), rotated, shifted and cropped; about `area` px.

    They imitate the paper's masks (§4.1), which come from occlusions between video frames. Each piece of a line has a
    time at which it becomes hole; the pieces up to some time cover the area. inside: pieces close to the canvas' edge
    come last.
    """
    mean = np.interp(ratio, _RATIOS, _DILATION)
    dilation = max(1, round((9 + 40 * rng.beta(5 * mean, 5 - 5 * mean)) * unit))
    turn = cv2.getRotationMatrix2D((_WIDE / 2, _WIDE / 2), rng.uniform(0, 360), 1.0)
    turn = turn - np.array([[0, 0, (_WIDE - _CANVAS) / 2]] * 2)  # keeps the centre of the wide canvas
    lines = _outlines(rng, float(np.interp(ratio, _RATIOS, _GAPS)))
    places = np.flatnonzero(lines)
    times = _times(rng, lines, places, float(np.interp(ratio, _RATIOS, _CLUMPING)))
    if inside:
        y, x = np.divmod(places, _WIDE)
        times += _edge_delay(turn[:, :1] * x + turn[:, 1:2] * y + turn[:, 2:], dilation)
    order = np.full((_WIDE, _WIDE), _NEVER, np.uint16)
    # In uint16: 2000 steps per standard deviation of a piece's time. The clip only affects extreme times.
    order.ravel()[places] = (times * 2000 + 25000).clip(0, _NEVER - 1)
    dilated = cv2.erode(order, np.ones((dilation, dilation), np.uint8))  # the earliest time within the square
    cropped = cv2.warpAffine(dilated, turn, (_CANVAS, _CANVAS), flags=cv2.INTER_NEAREST, borderValue=[_NEVER])
    return _earliest(cropped, area)


def _outlines(rng: np.random.Generator, gaps: float) -> np.ndarray:
    """Draw lines one pixel wide, broken by gaps: bool (_WIDE,_WIDE)."""
    lines = np.zeros((_WIDE, _WIDE), bool)
    canvas = lines.view(np.uint8)  # shares memory, for cv2
    for cells in rng.choice([4, 6, 9, 14], 2, replace=False):  # level lines at two scales
        bands = cv2.convertScaleAbs(_noise(rng, int(cells)), alpha=1.2 / _UNIT, beta=rng.uniform(0, 1))
        lines |= cv2.morphologyEx(bands, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    for _ in range(rng.integers(2, 8)):  # long edges, nearly straight
        angles = rng.uniform(0, 2 * math.pi) + rng.normal(0, 0.15, 6).cumsum()
        steps = rng.uniform(10, 50) * np.exp(1j * angles)  # x + iy
        edge = rng.uniform(0, _WIDE, 2) + steps.cumsum().view(np.float64).reshape(-1, 2)
        cv2.polylines(canvas, [edge.astype(np.int32)], False, 1)
    noise, width = _noise(rng, int(rng.integers(8, 24))), round(gaps * _UNIT)
    lines &= (noise <= _ZERO - width) | (noise >= _ZERO + width)
    for _ in range(rng.integers(2, 7)):  # clusters of short fragments and specks
        starts = rng.uniform(0, _WIDE, 2) + rng.normal(0, 18, (rng.integers(4, 20), 2))
        ends = starts + rng.normal(0, 5, starts.shape)
        cv2.polylines(canvas, list(np.stack([starts, ends], 1).astype(np.int32)), False, 1)
    return lines


def _times(rng: np.random.Generator, lines: np.ndarray, places: np.ndarray, clumping: float) -> np.ndarray:
    """Return when the pixels of the lines become hole: float (N,). places: their (N,) indices.

    Pixels of one connected piece have nearly the same time. It is random per piece, and earlier where a smooth map of
    the image is low, so that pieces cluster there. A slope within the pieces breaks ties.
    """
    crowd = (_noise(rng, int(rng.integers(3, 6))).ravel()[places] - float(_ZERO)) / _UNIT
    count, labels = cv2.connectedComponents(lines.view(np.uint8), connectivity=8, ltype=cv2.CV_16U)
    piece = labels.ravel()[places]
    sums, sizes = np.bincount(piece, crowd, count), np.bincount(piece, minlength=count)
    own = clumping * sums / np.maximum(sizes, 1) + rng.standard_normal(count)
    return own[piece] + 0.3 * crowd


def _edge_delay(places: np.ndarray, dilation: int) -> np.ndarray:
    """Return the delay (N,) of pixels whose dilated square may cross the canvas' edge. It falls to 0 further inside.

    places: x and y of the pixels, (2,N), px of the canvas.
    """
    to_edge = np.minimum(places, _CANVAS - 1 - places).min(0)
    room = to_edge - 0.7 * dilation  # half the diagonal of a square
    return np.where(room < 0, _LATEST, 5 * (1 - room / 70).clip(0, 1) ** 2)


def _earliest(order: np.ndarray, area: int) -> np.ndarray:
    """Return about `area` pixels of lowest order as 1: all up to some order or all before it, whichever is closer.

    At least one pixel, and none that no line reaches.
    """
    limit = _level(order, area)
    before, upto = order < limit, order <= limit
    missing, surplus = area - np.count_nonzero(before), np.count_nonzero(upto) - area
    take_before = limit == _NEVER or (missing < surplus and before.any())
    return (before if take_before else upto).astype(np.uint8)


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Return smooth, nearly normal noise, `cells` independent values a side: uint8 (_WIDE,_WIDE), see _ZERO, _UNIT."""
    values = (rng.standard_normal((cells, cells)) * _UNIT + _ZERO).clip(0, 255).astype(np.uint8)
    return cv2.resize(values, (_WIDE, _WIDE), interpolation=cv2.INTER_CUBIC)  # floats take 15 times as long
