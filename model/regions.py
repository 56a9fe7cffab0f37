"""Receptive fields: what the network reads to fill a part of an image, and the parts that cover its holes.

Each convolution has a finite window, so an output pixel depends on a finite part of the image. Pixels further away can
be left out; the result is the same to rounding. A window starts at a multiple of 2**depth, so that strides hit the same
pixels as in the full image. All numbers are computed from the layers' kernels, strides and paddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any, NamedTuple

from torch import Tensor

from model.network import Crop, PConvUNet

# px of a window that a network of 32 base channels predicts at once: 0.4 GB. Larger windows are split.
LARGEST = 2**22
# Fixed cost of a window, as the number of px that take the same time.
OVERHEAD = 2**14


Slices = tuple[EllipsisType, slice, slice]


class Span(NamedTuple):
    """Pixels `start` to `stop` - 1 of an axis."""

    start: int
    stop: int

    def within(self, size: int) -> Span:
        return Span(max(0, self.start), min(size, self.stop))

    def aligned(self, step: int) -> Span:
        """Return the smallest span around this one whose ends are multiples of `step`."""
        return Span(self.start // step * step, -(-self.stop // step) * step)

    def relative_to(self, other: Span) -> slice:
        return slice(self.start - other.start, self.stop - other.start)

    @property
    def length(self) -> int:
        return self.stop - self.start


class Box(NamedTuple):
    """A rectangle of pixels."""

    rows: Span
    columns: Span

    def relative_to(self, other: Box) -> Slices:
        """Return the slices that cut this box out of a tensor that covers the other."""
        return ..., self.rows.relative_to(other.rows), self.columns.relative_to(other.columns)

    def within(self, size: Sequence[int]) -> Box:
        """Return the part of the box that is inside an image. size: its height and width."""
        return Box(*(span.within(length) for span, length in zip(self, size, strict=True)))

    @property
    def slices(self) -> Slices:
        """The slices that cut this box out of an image (…,H,W)."""
        return ..., slice(*self.rows), slice(*self.columns)

    @property
    def pixels(self) -> int:
        return self.rows.length * self.columns.length


class Level(NamedTuple):
    """Layers between a level and the next coarser one: the encoder's, and the decoder's margin. Lengths in px."""

    kernel: int
    stride: int
    padding: int
    margin: int  # how far the decoder's kernel, odd and with stride 1, extends beyond its centre


def levels_of(net: PConvUNet) -> list[Level]:
    """Return the network's levels, finest first."""
    encoder: Any = net.encoder
    decoder: Any = reversed(net.decoder)
    return [
        Level(down.conv.kernel_size[0], down.conv.stride[0], down.conv.padding[0], up.conv.kernel_size[0] // 2)
        for down, up in zip(encoder, decoder, strict=True)
    ]


def decoder_spans(net: PConvUNet, span: Span) -> list[Span]:
    """Return what the decoder needs of levels 0 (the image), 1, …, depth to compute `span` of the image."""
    spans = [span]
    for level in levels_of(net):
        start, stop = spans[-1]
        spans.append(Span((start - level.margin) // 2, (stop - 1 + level.margin) // 2 + 1))
    return spans


def seen(net: PConvUNet, span: Span) -> Span:
    """Return the U-Net's receptive field of `span` along an axis, as if the image had no end."""
    *spans, (start, stop) = decoder_spans(net, span)
    for level, (first, end) in reversed(list(zip(levels_of(net), spans, strict=True))):
        # The encoder's window, and the decoder's, which also reads the encoder's input.
        start = min(start * level.stride - level.padding, first - level.margin)
        stop = max((stop - 1) * level.stride - level.padding + level.kernel, end + level.margin)
    return Span(start, stop)


def reach(net: PConvUNet) -> int:
    """Return how many px away from an output pixel an image pixel can be and still change it, base excluded."""
    spans = [(start, seen(net, Span(start, start + 1))) for start in range(2**net.depth)]
    return max(max(start - span.start, span.stop - 1 - start) for start, span in spans)


class Part(NamedTuple):
    """A part of an image that is predicted at once: `box`, and the `window` that the U-Net reads for it."""

    box: Box
    window: Box


def part_of(net: PConvUNet, box: Box, size: tuple[int, int]) -> Part:
    """Return the part for `box`. size: height and width of the image, multiples of 2**depth."""
    rows, columns = (
        seen(net, span).aligned(2**net.depth).within(length) for span, length in zip(box, size, strict=True)
    )
    return Part(box, Box(rows, columns))


def unet_within(net: PConvUNet, image: Tensor, mask: Tensor, part: Part, base: Tensor | None = None) -> Tensor:
    """Return net.unet of an image only at part.box: (N,3,h,w). image, mask, base: the content of part.window."""
    spans = [_crops_of(net, *axis) for axis in zip(part.box, part.window, strict=True)]
    crops = [
        Crop((down[0], across[0]), (down[1], across[1])) for down, across in zip(spans[0][0], spans[1][0], strict=True)
    ]
    return net.unet(image, mask, base, crops)[..., spans[0][1], spans[1][1]]


def _crops_of(net: PConvUNet, span: Span, window: Span) -> tuple[list[tuple[slice, slice]], slice]:
    """Return each level's crops of the features below and of the skip features, and the slice of the output.

    All for one axis. The slice cuts `span` out of the U-Net's output. window: span of the image that the U-Net reads.
    """
    crops = []
    at_hand = Span(window.start >> net.depth, window.stop >> net.depth)  # in the map below the block
    for level, needed in reversed(list(enumerate(decoder_spans(net, span)[1:]))):
        taken = Span(max(needed.start, at_hand.start), min(needed.stop, at_hand.stop))
        beyond = Span(2 * taken.start, 2 * taken.stop)  # in the block's output
        crops.append(
            (taken.relative_to(at_hand), beyond.relative_to(Span(window.start >> level, window.stop >> level)))
        )
        at_hand = beyond
    return crops[::-1], span.relative_to(at_hand)


def largest_window(net: PConvUNet) -> int:
    """Return px of a window that the network predicts in less than 1 GB."""
    return LARGEST * 32 // max(32, net.base_channels)


def parts_of(net: PConvUNet, hole: Tensor, size: tuple[int, int], largest: int) -> list[Part]:
    """Return parts that cover all holes at low cost: nearby holes share a part, distant ones do not.

    hole: bool (H,W). size: see part_of. largest: px of the largest window; larger ones are split while that makes them
    smaller.
    """

    def cost(part: Part) -> int:
        # The decoder, two thirds of the work, computes only the box.
        return part.window.pixels + 2 * part.box.pixels + OVERHEAD

    def split(box: Box) -> list[Part]:
        tight = tight_box(hole, box)
        if tight is None:
            return []
        whole = part_of(net, tight, size)
        if max(tight.rows.length, tight.columns.length) <= near:
            return [whole]
        parts = [part for half in halves(hole, tight) for part in split(half)]
        cheaper = sum(cost(part) for part in parts) < cost(whole)
        return parts if cheaper or whole.window.pixels > largest else [whole]

    near = max(reach(net), 2**net.depth)  # px: holes closer together share most of their windows
    height, width = hole.shape
    return split(Box(Span(0, height), Span(0, width)))


def tight_box(hole: Tensor, box: Box) -> Box | None:
    """Return the smallest box around the True pixels within `box`; None if there are none."""
    cut = hole[box.slices]
    spans = []
    for axis in (1, 0):
        found = cut.any(axis).nonzero()
        if not len(found):
            return None
        spans.append((int(found[0]), int(found[-1]) + 1))
    (top, bottom), (left, right) = spans
    return Box(
        Span(box.rows.start + top, box.rows.start + bottom), Span(box.columns.start + left, box.columns.start + right)
    )


def halves(hole: Tensor, box: Box) -> tuple[Box, Box]:
    """Split `box` in the widest gap between holes, or in the middle of its longer side if there is no gap."""
    cut = hole[box.slices]
    gaps = [widest_gap(cut.any(axis)) for axis in (1, 0)]
    if any(gap.length for gap in gaps):
        axis = 0 if gaps[0].length >= gaps[1].length else 1
        middle = (gaps[axis].start + gaps[axis].stop) // 2
    else:
        axis = 0 if box.rows.length >= box.columns.length else 1
        middle = box[axis].length // 2
    start, stop = box[axis]
    first, second = Span(start, start + middle), Span(start + middle, stop)
    if axis == 0:
        return box._replace(rows=first), box._replace(rows=second)
    return box._replace(columns=first), box._replace(columns=second)


def widest_gap(occupied: Tensor) -> Span:
    """Return the longest run of False in a bool vector whose ends are True; empty if all are True."""
    places = occupied.nonzero()[:, 0]
    distances = places.diff()
    if not len(distances) or int(distances.max()) == 1:
        return Span(0, 0)
    before = int(distances.argmax())
    return Span(int(places[before]) + 1, int(places[before + 1]))
