"""Prediction of parts of an image, each from the window that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from model.base import plate_reach, pull, push, push_pull
from model.network import PConvUNet
from model.regions import Box, Span, largest_window, parts_of, unet_within
from utils.errors import UserError

# Returns a box of an image: float (1,3,h,w) in [0,1].
Read = Callable[[Box], Tensor]


class Filler:
    """Iterate over predicted parts of an image: (box, values (1,3,h,w)). `len` is the number of parts.

    Each part is predicted from its receptive field and that of the base, so time and memory scale with the holes.
    Values are in [0,1] and match a prediction of the full image to rounding. Raises UserError if they are not finite.

    read: returns a box of the image. valid: bool (H,W), False in holes. wanted: bool (H,W), covered by the boxes; None:
    the holes. largest: px of the largest window to predict at once; by default one that needs less than 1 GB.
    """

    def __init__(
        self, net: PConvUNet, read: Read, valid: Tensor, wanted: Tensor | None = None, largest: int | None = None
    ) -> None:
        self.net, self.read, self.valid = net, read, valid
        self.largest = largest or largest_window(net)
        multiple = 2**net.depth
        height, width = (-(-length // multiple) * multiple for length in valid.shape)
        self.size = height, width  # of the image, padded with hole
        wanted = ~valid if wanted is None else wanted
        self.parts = parts_of(net, wanted.cpu(), self.size, self.largest)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[tuple[Box, Tensor]]:
        with _evaluating(self.net), torch.no_grad():
            below = self._levels_below() if self.net.base != "none" and self.parts else None
            for part in self.parts:
                image, mask = self._cut(part.window)
                base = None if below is None else self._base(image, mask, part.window, *below)
                values = unet_within(self.net, image, mask, part, base)
                if base is not None:
                    values = values + base[part.box.relative_to(part.window)]
                if not values.isfinite().all():
                    raise UserError(
                        "the network's output is not finite: its training diverged or its file is damaged; use another"
                    )
                yield part.box, values.clamp(0, 1)

    def _cut(self, box: Box) -> tuple[Tensor, Tensor]:
        """Return image (1,3,h,w) and mask (1,1,h,w) of a box in the padded image, as input for the network."""
        weight = next(self.net.parameters())  # has the dtype and device of the model
        inside = box.within(self.valid.shape)
        padding = (0, box.columns.stop - inside.columns.stop, 0, box.rows.stop - inside.rows.stop)
        image, mask = self.read(inside), self.valid[inside.slices][None, None]
        return F.pad(image.to(weight), padding), F.pad(mask.to(weight), padding)

    def _base(self, image: Tensor, mask: Tensor, window: Box, below: Tensor, place: Box) -> Tensor:
        """Return the base in a window. below, place: the level from which it is interpolated, filled, and its box.

        It is that of the full image wherever the decoder reads it. Nearer to the window's edge it may differ.
        """
        depth = self.net.depth
        wider = self._wider(window)
        coarse = Box(*(Span(span.start >> depth, span.stop >> depth) for span in wider))
        *finer, _ = pull(*((image, mask) if wider == window else self._cut(wider)), depth)
        base = push(finer, below[coarse.relative_to(place)], self.net.plate_levels)
        return base[window.relative_to(wider)].to(image)

    def _wider(self, window: Box) -> Box:
        """Return the window that determines the base in a window: wider by what the base's relaxed levels read.

        They read through holes only, so it is no wider if there is no hole near the window's edge.
        """
        reach, step = plate_reach(self.net.plate_levels), 2**self.net.depth
        inner = Box(
            *(
                Span(start + step * (start > 0), max(start + step * (start > 0), stop - step * (stop < length)))
                for (start, stop), length in zip(window, self.size, strict=True)
            )
        )
        holes = [box.pixels - int(self.valid[box.slices].sum()) for box in (window, inner)]  # px, with the padding
        if not reach or holes[0] == holes[1]:
            return window
        wider = Box(*(Span(start - reach, stop + reach).aligned(step) for start, stop in window))
        return wider.within(self.size)

    def _levels_below(self) -> tuple[Tensor, Box]:
        """Return the base's filled level at 1/2**depth of the image's size, and the box of that level that it covers.

        How far the base reads depends on the holes: until each px of a coarser level contains a valid one.
        """
        multiple = 2**self.net.depth
        windows = [self._wider(window) for _, window in self.parts]
        needed = Box(
            *(
                Span(min(span.start for span in spans) // multiple, max(span.stop for span in spans) // multiple)
                for spans in zip(*windows, strict=True)
            )
        )
        place = surroundings(shrunk(self.valid, multiple), needed)
        step = max(1, self.largest // (place.columns.length * multiple**2))  # rows of that level per strip
        strips = []
        for top in range(place.rows.start, place.rows.stop, step):
            rows = Span(top, min(top + step, place.rows.stop))
            strip = Box(*(Span(span.start * multiple, span.stop * multiple) for span in (rows, place.columns)))
            strips.append(pull(*self._cut(strip), self.net.depth)[-1])
        images, masks = zip(*strips, strict=True)
        return push_pull(torch.cat(images, 2), torch.cat(masks, 2)), place


def surroundings(valid: Tensor, box: Box) -> Box:
    """Return the box that push_pull must read to fill `box` as in the full image. valid: bool (H,W)."""
    whole = Box(*(Span(0, length) for length in valid.shape))
    spans, step = list(box), 1
    while True:
        seen = Box(
            *(
                Span(span.start * step, span.stop * step).within(length)
                for span, length in zip(spans, valid.shape, strict=True)
            )
        )
        if seen == whole or bool(shrunk(valid[seen.slices], step).all()):
            return seen
        # Each level is interpolated from the next coarser one, with a margin of 1 px on each side.
        spans = [Span((start - 1) // 2, stop // 2 + 1) for start, stop in spans]
        step *= 2


def shrunk(valid: Tensor, step: int) -> Tensor:
    """Return which squares of `step` px of a bool (H,W) contain a True. The last ones may be cut off."""
    rows, columns = (-length % step for length in valid.shape)
    padded = F.pad(valid, (0, columns, 0, rows))
    return padded.unflatten(1, (-1, step)).any(2).unflatten(0, (-1, step)).any(1)


@contextmanager
def _evaluating(net: PConvUNet) -> Iterator[None]:
    """Put the network in evaluation mode within the block, then restore its mode."""
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)
