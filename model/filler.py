"""Prediction of parts of a picture, each from the window of the picture that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from model.base import pull, push, push_pull
from model.network import PConvUNet
from model.regions import Box, Part, Span, largest_window, parts_of, unet_within
from utils.errors import UserError

# A part of an image: float (1,3,h,w) in [0,1].
Read = Callable[[Box], Tensor]


class Filler:
    """The parts of a picture that are to be predicted: `len` of them, and an iterator over (box, values (1,3,h,w)).

    Each part is predicted from what the network sees around it, so that time and memory follow the holes. The values
    in [0,1] are those that the whole picture gives, to rounding. UserError where they are not finite.

    read: of a part of the picture. valid: bool (H,W), False in holes. wanted: bool (H,W), all of it is in the boxes.
    largest: px of the largest part that the network takes at once; a default that needs less than 1 GB.
    """

    def __init__(
        self, net: PConvUNet, read: Read, valid: Tensor, wanted: Tensor | None = None, largest: int | None = None
    ) -> None:
        self.net, self.read, self.valid = net, read, valid
        self.largest = largest or largest_window(net)
        multiple = 2**net.depth
        height, width = (-(-length // multiple) * multiple for length in valid.shape)
        self.size = height, width  # of the picture padded with hole
        wanted = ~valid if wanted is None else wanted
        self.parts = parts_of(net, wanted.cpu(), self.size, self.largest)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[tuple[Box, Tensor]]:
        with _evaluating(self.net), torch.no_grad():
            below = self._levels_below() if self.net.base != "none" and self.parts else None
            for part in self.parts:
                image, mask = self._cut(part.window)
                values = unet_within(self.net, image, mask, part)
                if below is not None:
                    values = values + self._base(image, mask, part, *below)
                if not values.isfinite().all():
                    raise UserError(
                        "the network's output is not finite: its training diverged or its file is damaged; use another"
                    )
                yield part.box, values.clamp(0, 1)

    def _cut(self, box: Box) -> tuple[Tensor, Tensor]:
        """Image (1,3,h,w) and mask (1,1,h,w) as the network wants them, of a box in the padded picture."""
        weight = next(self.net.parameters())  # it has the type and the device that the model computes with
        inside = Box(*(span.within(length) for span, length in zip(box, self.valid.shape, strict=True)))
        padding = (0, box.columns.stop - inside.columns.stop, 0, box.rows.stop - inside.rows.stop)
        image, mask = self.read(inside), self.valid[inside.slices][None, None]
        return F.pad(image.to(weight), padding), F.pad(mask.to(weight), padding)

    def _base(self, image: Tensor, mask: Tensor, part: Part, below: Tensor, place: Box) -> Tensor:
        """The base at part.box: the window's levels, and the filled level that comes after them.

        A window has room for it: the base sees as far along its first `depth` levels as the decoder does.
        """
        depth = self.net.depth
        window = Box(*(Span(span.start >> depth, span.stop >> depth) for span in part.window))
        *finer, _ = pull(image, mask, depth)
        filled = push(finer, below[window.relative_to(place)])
        return filled[part.box.relative_to(part.window)].to(image)

    def _levels_below(self) -> tuple[Tensor, Box]:
        """The base's filled level 2**depth times as coarse as the picture, and the box of its px that was needed.

        How far the base sees depends on the holes: up to where each px of a coarser level holds something valid.
        """
        multiple = 2**self.net.depth
        windows = [window for _, window in self.parts]
        needed = Box(
            *(
                Span(min(span.start for span in spans) // multiple, max(span.stop for span in spans) // multiple)
                for spans in zip(*windows, strict=True)
            )
        )
        place = surroundings(shrunk(self.valid, multiple), needed)
        step = max(1, self.largest // (place.columns.length * multiple**2))  # rows of px of that level at once
        strips = []
        for top in range(place.rows.start, place.rows.stop, step):
            rows = Span(top, min(top + step, place.rows.stop))
            strip = Box(*(Span(span.start * multiple, span.stop * multiple) for span in (rows, place.columns)))
            strips.append(pull(*self._cut(strip), self.net.depth)[-1])
        images, masks = zip(*strips, strict=True)
        return push_pull(torch.cat(images, 2), torch.cat(masks, 2)), place


def surroundings(valid: Tensor, box: Box) -> Box:
    """What push_pull has to see of a picture to fill `box` of it as it does with the whole. valid: bool (H,W)."""
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
        # A level is interpolated from the one below, a px beyond on each side.
        spans = [Span((start - 1) // 2, stop // 2 + 1) for start, stop in spans]
        step *= 2


def shrunk(valid: Tensor, step: int) -> Tensor:
    """Which squares of `step` px of a bool (H,W) hold a True; those at the end may be cut."""
    rows, columns = (-length % step for length in valid.shape)
    padded = F.pad(valid, (0, columns, 0, rows))
    return padded.unflatten(1, (-1, step)).any(2).unflatten(0, (-1, step)).any(1)


@contextmanager
def _evaluating(net: PConvUNet) -> Iterator[None]:
    """The network in evaluation mode, and then as it was."""
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)
