"""Fill deep holes on a reduced image first, then octave by octave.

A network fills best near the rim of a hole. Pixels deeper than a radius are filled on the image at half size, where the
same hole is half as deep, by the same rule. Enlarged again they count as valid. A ring along the rim remains, and the
network has context on both sides of it.

If no hole is much deeper than those in training, a single pass is about as good, with other errors. Then the result is
the mean of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from model.base import pull
from model.filler import Filler, Read, shrunk
from model.network import PConvUNet
from model.regions import Box, Span, tight_box

# px of an image that are reduced or enlarged at once.
_STRIP = 2**22
# px. With a narrower ring per octave, interpolation would fill more of a hole than the network.
_LEAST_RADIUS = 8.0
# A single pass counts where no hole is deeper than this multiple of the radius of the holes in training.
_SINGLE = 2
# px around the deep pixels that are kept at half size: most windows of the network lie within.
_AROUND = 1024


class OctaveFiller:
    """Like Filler: iterate over (box, values (1,3,h,w)); the boxes cover `wanted`. Later values replace earlier ones.

    read: returns a box of the image. valid: bool (H,W), False in holes. wanted: bool (H,W); None: the holes.
    radius: px, how far from the rim of a hole the network fills well; infinite for a single pass.
    `len` counts the parts of all octaves; tick is called after each part. Errors: see Filler.
    """

    def __init__(
        self,
        net: PConvUNet,
        read: Read,
        valid: Tensor,
        wanted: Tensor | None = None,
        radius: float = math.inf,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.read, self.valid, self.tick = read, valid, tick
        wanted = ~valid if wanted is None else wanted
        self.deep = deeper_than(valid, radius)
        whole = Box(*(Span(0, length) for length in valid.shape))
        self.deep_box = tight_box(self.deep, whole)
        if self.deep_box is None:
            self.filler = Filler(net, read, valid, wanted)
            self.below: OctaveFiller | None = None
            self.single: Filler | None = None
            return
        self.filler = Filler(net, self._read_filled, valid | self.deep, wanted & ~self.deep)
        self.valid_below = shrunk(valid, 2)
        wanted_below = _interpolated_from(self.deep) & ~self.valid_below
        self.below = OctaveFiller(net, self._read_below, self.valid_below, wanted_below, radius, tick)
        limit = _SINGLE * float(net.hole_radius)  # 0 if unknown
        self.single = Filler(net, read, valid, wanted) if limit and not deeper_than(valid, limit).any() else None
        self.box = tight_box(wanted | self.deep, whole) or whole  # of all parts
        self.box_below = _half(self.deep_box, self.valid_below)
        self._image_below = torch.empty(0)  # that box at half size, filled on iteration
        self._kept: tuple[Box, Tensor] | None = None  # a larger box at half size, for all reads within

    def __len__(self) -> int:
        return sum(len(filler) for filler in (self.filler, self.below, self.single) if filler is not None)

    def __iter__(self) -> Iterator[tuple[Box, Tensor]]:
        if self.single is None:
            yield from self._by_octaves()
            return
        filled = torch.zeros(1, 3, self.box.rows.length, self.box.columns.length)
        for box, values in self._by_octaves():
            filled[box.relative_to(self.box)] = values.to(filled)
        for box, values in self.single:
            yield box, (values + filled[box.relative_to(self.box)].to(values)) / 2
            self.tick()

    def _by_octaves(self) -> Iterator[tuple[Box, Tensor]]:
        """Iterate like __iter__, without the single pass."""
        if self.below is not None and self.deep_box is not None:
            around = Box(*(Span(start - _AROUND, stop + _AROUND) for start, stop in self.box_below))
            around = around.within(self.valid_below.shape)
            self._kept = around, self._read_below(around)
            self._image_below = self._read_below(self.box_below).clone()
            for box, values in self.below:
                part = self._image_below[box.relative_to(self.box_below)]
                part.copy_(torch.where(self.valid_below[box.slices], part, values.to(part)))
            for strip in _strips(self.deep_box):
                yield strip, self._enlarged(strip)
        for box, values in self.filler:
            yield box, self._with_deep(values, box)
            self.tick()

    def _read_filled(self, box: Box) -> Tensor:
        return self._with_deep(self.read(box), box)

    def _with_deep(self, image: Tensor, box: Box) -> Tensor:
        """Return a box of the image whose deep pixels are replaced by the enlarged fill."""
        inner = tight_box(self.deep, box)
        if inner is None:
            return image
        image, part = image.clone(), inner.relative_to(box)
        deep = self.deep[inner.slices].to(image.device)
        image[part] = torch.where(deep, self._enlarged(inner).to(image), image[part])
        return image

    def _read_below(self, box: Box) -> Tensor:
        """Return a box of the image at half size: the mean of the valid pixels in each 2×2 window."""
        if self._kept and all(
            own.start <= span.start and span.stop <= own.stop for own, span in zip(self._kept[0], box, strict=True)
        ):
            return self._kept[1][box.relative_to(self._kept[0])]
        strips = []
        for strip in _strips(box):
            twice = Box(*(Span(2 * start, 2 * stop) for start, stop in strip)).within(self.valid.shape)
            strips.append(pull(self.read(twice), self.valid[twice.slices][None, None], 1)[-1][0])
        return torch.cat(strips, 2)

    def _enlarged(self, box: Box) -> Tensor:
        """Return a box within `deep_box`, interpolated bilinearly from the half-size image."""
        cut = _half(box, self.valid_below)
        image = self._image_below[cut.relative_to(self.box_below)]
        enlarged = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
        return enlarged[box.relative_to(Box(*(Span(2 * start, 2 * stop) for start, stop in cut)))]


def trusted_radius(net: PConvUNet, valid: Tensor, scale: float | None) -> float:
    """Return the radius for OctaveFiller, px. valid: bool (H,W). scale: see inpaint; ValueError if below 1.

    By default it is a quarter of the radius of the holes in training, if the weights record that: a network fills best
    near the rim. docs/ablations.md compares other fractions for the shipped weights.
    """
    if scale is None:
        known = float(net.hole_radius)
        return max(_LEAST_RADIUS, known / 4) if known else math.inf
    if not scale >= 1:
        raise ValueError(f"scale must be at least 1, got {scale:g}")
    return math.inf if scale == 1 else max(_LEAST_RADIUS, largest_radius(valid) / scale)


def largest_radius(valid: Tensor) -> int:
    """Return px from the deepest hole pixel to the nearest True of a bool (H,W), to 8 %; 0 if all or none are True."""
    low, high = 0, 1
    while deeper_than(valid, high).any():
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if deeper_than(valid, middle).any() else (low, middle)
    return low


def write(parts: Iterable[tuple[Box, Tensor]], image: Tensor, hole: Tensor) -> None:
    """Write parts (box, values) in place into an image (1,3,H,W) where `hole`, bool (1,1,H,W), is True."""
    for box, values in parts:
        part = image[box.slices]
        part.copy_(torch.where(hole[box.slices], values.to(part), part))


def deeper_than(valid: Tensor, radius: float) -> Tensor:
    """Return which pixels of a bool (H,W) have no True nearer than `radius` px. There is no True outside the image.

    An octagon around the circle replaces it, so px up to 8 % deeper may be missed. All False if none is True.
    """
    deep = torch.zeros_like(valid)
    hole = tight_box(~valid, Box(*(Span(0, length) for length in valid.shape)))
    if hole is None or not radius < math.hypot(*valid.shape) or not valid.any():
        return deep  # no pixel is farther than the diagonal from a True, and the padding below grows with the radius
    # An octagon is a square, dilated along both diagonals.
    straight, diagonal = round((math.sqrt(2) - 1) * radius), round((1 - math.sqrt(0.5)) * radius)
    margin = straight + 2 * diagonal
    if min(hole.rows.length, hole.columns.length) <= margin and margin < min(valid.shape):
        return deep  # too narrow to be deep, unless the image is as narrow
    around = Box(
        *(
            Span(start - margin, stop + margin).within(length)
            for (start, stop), length in zip(hole, valid.shape, strict=True)
        )
    )
    room = 2 * diagonal  # padding for shifts beyond the edge and back
    near = F.pad(valid[around.slices], (room, room, room, room))
    for step, count in (((1, 0), straight), ((0, 1), straight), ((1, 1), diagonal), ((1, -1), diagonal)):
        near = _widened(near, step, count)
        near = _widened(near, (-step[0], -step[1]), count)
    deep[around.slices] = ~near[room : near.shape[0] - room, room : near.shape[1] - room]
    return deep


def _widened(x: Tensor, step: tuple[int, int], count: int) -> Tensor:
    """Return the union of x, bool (H,W), and of x shifted by 1 to `count` steps."""
    height, width = x.shape
    covered = 0  # steps
    while covered < count:
        by = min(covered + 1, count - covered)
        down, across = by * step[0], by * step[1]
        wider = x.clone()
        if abs(down) < height and abs(across) < width:
            to = wider[max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)]
            to |= x[max(-down, 0) : height - max(down, 0), max(-across, 0) : width - max(across, 0)]
        x = wider
        covered += by
    return x


def _half(box: Box, valid_below: Tensor) -> Box:
    """Return the box at half size, of an image with valid pixels (H,W), that a box is interpolated from."""
    return Box(*(Span((start - 1) // 2, stop // 2 + 1) for start, stop in box)).within(valid_below.shape)


def _interpolated_from(deep: Tensor) -> Tensor:
    """Return which half-size pixels the True pixels of `deep`, bool (H,W), are interpolated from."""
    height, width = deep.shape
    even = F.pad(deep, (0, width % 2, 0, height % 2))
    return F.max_pool2d(even[None, None].float(), 4, 2, 1)[0, 0] > 0


def _strips(box: Box) -> Iterator[Box]:
    """Split a box into strips with an even number of rows, except the last."""
    rows = max(2, _STRIP // box.columns.length // 2 * 2)
    for top in range(box.rows.start, box.rows.stop, rows):
        yield box._replace(rows=Span(top, min(top + rows, box.rows.stop)))
