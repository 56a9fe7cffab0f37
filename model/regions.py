"""What the network has to see of a picture to fill a part of it, and the parts that the holes of a picture make up.

A pixel of the result depends on a finite part of the picture, as each convolution sees a finite window. Pixels farther
away can be left out, and the result is the same to rounding. The part that is cut out begins at a multiple of 2**depth,
so that the strides fall on the same pixels as in the whole picture. All numbers here are computed from the layers'
kernels, strides and paddings.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any, NamedTuple

from torch import Tensor

from model.network import Crop, PConvUNet

# Px of a cut-out that a network of 32 base channels predicts at once: 0.4 GB. Larger parts are split.
LARGEST = 2**22
# A cut-out costs as much time as so many px more: what is the same for all sizes.
OVERHEAD = 2**14


Slices = tuple[EllipsisType, slice, slice]


class Span(NamedTuple):
    """Pixels `start` to `stop` - 1 of an axis."""

    start: int
    stop: int

    def within(self, size: int) -> Span:
        return Span(max(0, self.start), min(size, self.stop))

    def aligned(self, step: int) -> Span:
        """The smallest span around this one whose ends are multiples of `step`."""
        return Span(self.start // step * step, -(-self.stop // step) * step)

    def relative_to(self, other: Span) -> slice:
        return slice(self.start - other.start, self.stop - other.start)

    @property
    def length(self) -> int:
        return self.stop - self.start


class Box(NamedTuple):
    """A rectangle of px."""

    rows: Span
    columns: Span

    def relative_to(self, other: Box) -> Slices:
        """The slices that cut this box out of what lies in the other."""
        return ..., self.rows.relative_to(other.rows), self.columns.relative_to(other.columns)

    @property
    def slices(self) -> Slices:
        """The slices that cut this box out of a picture (…,H,W)."""
        return ..., slice(*self.rows), slice(*self.columns)

    @property
    def pixels(self) -> int:
        return self.rows.length * self.columns.length


class Level(NamedTuple):
    """The layers between a level and the one below: the encoder's down, the decoder's up. Lengths are px."""

    kernel: int
    stride: int
    padding: int
    margin: int  # how far the decoder's kernel, which is odd and has the stride 1, sees beyond its middle


def levels_of(net: PConvUNet) -> list[Level]:
    """The network's layers, from the picture down."""
    encoder: Any = net.encoder
    decoder: Any = reversed(net.decoder)
    return [
        Level(down.conv.kernel_size[0], down.conv.stride[0], down.conv.padding[0], up.conv.kernel_size[0] // 2)
        for down, up in zip(encoder, decoder, strict=True)
    ]


def decoder_spans(net: PConvUNet, span: Span) -> list[Span]:
    """Of the maps of level 0 (the picture), 1, …, depth: what the decoder needs to compute `span` of the picture."""
    spans = [span]
    for level in levels_of(net):
        start, stop = spans[-1]
        spans.append(Span((start - level.margin) // 2, (stop - 1 + level.margin) // 2 + 1))
    return spans


def seen(net: PConvUNet, span: Span) -> Span:
    """What the U-Net sees along an axis to predict `span`, as if the picture had no end."""
    *spans, (start, stop) = decoder_spans(net, span)
    for level, (first, end) in reversed(list(zip(levels_of(net), spans, strict=True))):
        # The encoder's window, and the decoder's: it takes the encoder's input, too.
        start = min(start * level.stride - level.padding, first - level.margin)
        stop = max((stop - 1) * level.stride - level.padding + level.kernel, end + level.margin)
    return Span(start, stop)


def reach(net: PConvUNet) -> int:
    """How many px away from a pixel of the result a pixel of the picture may lie and still change it, base apart."""
    spans = [(start, seen(net, Span(start, start + 1))) for start in range(2**net.depth)]
    return max(max(start - span.start, span.stop - 1 - start) for start, span in spans)


class Part(NamedTuple):
    """A part of a picture that is predicted at once: `box`, for which the U-Net has to see `window`."""

    box: Box
    window: Box


def part_of(net: PConvUNet, box: Box, size: tuple[int, int]) -> Part:
    """box: in a picture of `size`, height and width, which are multiples of 2**depth."""
    rows, columns = (
        seen(net, span).aligned(2**net.depth).within(length) for span, length in zip(box, size, strict=True)
    )
    return Part(box, Box(rows, columns))


def unet_within(net: PConvUNet, image: Tensor, mask: Tensor, part: Part) -> Tensor:
    """net.unet of a picture, at part.box alone: (N,3,h,w). image, mask: what lies in part.window."""
    spans = [_crops_of(net, *axis) for axis in zip(part.box, part.window, strict=True)]
    crops = [
        Crop((down[0], across[0]), (down[1], across[1])) for down, across in zip(spans[0][0], spans[1][0], strict=True)
    ]
    return net.unet(image, mask, crops)[..., spans[0][1], spans[1][1]]


def _crops_of(net: PConvUNet, span: Span, window: Span) -> tuple[list[tuple[slice, slice]], slice]:
    """Of one axis: what each level's decoder block takes of the features below and of those that skip, and where `span`
    lies in what comes out at last."""
    crops = []
    at_hand = Span(window.start >> net.depth, window.stop >> net.depth)  # of the map below the block
    for level, needed in reversed(list(enumerate(decoder_spans(net, span)[1:]))):
        taken = Span(max(needed.start, at_hand.start), min(needed.stop, at_hand.stop))
        beyond = Span(2 * taken.start, 2 * taken.stop)  # of the map that the block makes
        crops.append(
            (taken.relative_to(at_hand), beyond.relative_to(Span(window.start >> level, window.stop >> level)))
        )
        at_hand = beyond
    return crops[::-1], span.relative_to(at_hand)


def largest_window(net: PConvUNet) -> int:
    """Px of a window that the network predicts in less than 1 GB."""
    return LARGEST * 32 // max(32, net.base_channels)


def parts_of(net: PConvUNet, hole: Tensor, size: tuple[int, int], largest: int) -> list[Part]:
    """Parts that hold all holes, at little cost: near holes share a part, far ones do not.

    hole: bool (H,W). size: as of part_of. largest: px of the largest window; a part larger than that is split, as long
    as that makes it smaller.
    """

    def cost(part: Part) -> int:
        # The decoder, two thirds of the work, computes the box alone.
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

    near = max(reach(net), 2**net.depth)  # px: what lies nearer together shares most of its window
    height, width = hole.shape
    return split(Box(Span(0, height), Span(0, width)))


def tight_box(hole: Tensor, box: Box) -> Box | None:
    """The smallest box around what is True within `box`; None where nothing is."""
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
    """`box` in two: cut in the widest gap between holes, or in the middle of its longer side where there is none."""
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
    """The longest run of False in a bool vector whose ends are True; an empty one where all are."""
    places = occupied.nonzero()[:, 0]
    distances = places.diff()
    if not len(distances) or int(distances.max()) == 1:
        return Span(0, 0)
    before = int(distances.argmax())
    return Span(int(places[before]) + 1, int(places[before + 1]))
