"""Broken images and masks: checks, and the record of the images that a run replaced."""

from __future__ import annotations

import bisect
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.images import open_image, to_rgb
from data.schedule import Schedule
from utils.config import Config
from utils.errors import UserError
from utils.files import append, write_atomically

SMALLEST = 16  # px of the shorter side, as the minimum of data.image_size: less is too small to learn from
LEAST_MET = 1000  # images; data.max_bad is a share of at least this many, or of all: few say little

_LINE = re.compile(rb"\d+\t[^\t]+\t[^\t]+")


def read_picture(path: str) -> Image.Image:
    """Read an image file as 8-bit RGB, upright; the first frame of an animation.

    Raises UserError if it cannot be read or is too small.
    """
    image = to_rgb(open_image(path))
    check_size(path, *image.size)
    return image


def check_size(path: str, width: int, height: int) -> None:
    """Raise UserError if an image is too small for training."""
    if min(width, height) < SMALLEST:
        raise UserError(f"image {path} is {width}×{height} px; the shorter side must be at least {SMALLEST} px")


def not_all_hole(mask: np.ndarray, path: str | Path, hole: str) -> np.ndarray:
    """Return the mask, already cropped to the training size. Raises UserError if it has no valid pixel."""
    if not mask.any():
        size = f"{mask.shape[1]}×{mask.shape[0]} px"
        raise UserError(f"mask {path}: cropped to {size} it is all hole; remove it, or change masks.hole ({hole} now)")
    return mask


class Fault(NamedTuple):
    """An image that could not be used, and the number of the sample that read it."""

    number: int
    path: str
    reason: str


class BadFiles:
    """bad_files.txt of a run: per broken image the first step that read it, its path and the reason, tab-separated.

    All ranks append to this file and read each other's lines. So each image is listed once, and all ranks have the same
    count at the same step.
    """

    def __init__(self, path: Path, config: Config, images: int) -> None:
        self.path = path
        self.schedule = Schedule(config)
        self.max_bad = config.data.max_bad
        self.images = images
        self._names: set[str] = set()
        self._steps: list[int] = []  # sorted
        self._read = 0  # bytes read of the file
        self._warned = False  # whether a failed write was reported

    def rewind(self, step: int) -> None:
        """Drop incomplete lines, and lines of later steps, which a resumed run writes again."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        kept = [line + b"\n" for line in lines if _LINE.fullmatch(line) and int(line.split(b"\t")[0]) <= step]
        write_atomically(self.path, lambda temporary: temporary.write_bytes(b"".join(kept)))

    def note(self, fault: Fault) -> None:
        """Record an image that has no line yet, in the file and on stderr; only on stderr if the disk is full."""
        self._read_on()
        name, reason = one_line(fault.path), one_line(fault.reason)
        if name in self._names:
            return
        step = self.schedule.step_of(fault.number) + 1
        try:
            append(self.path, f"{step}\t{name}\t{reason}\n".encode())
        except OSError as error:
            self._take_up(step, name)  # only on this rank
            if not self._warned:
                self._warned = True
                disk = f"{error.strerror or error}: {error.filename or self.path}"
                tqdm.write(f"warning: {self.path.name} can't be written; the run continues: {disk}", file=sys.stderr)
        tqdm.write(f"warning: {reason}; another picture replaces it", file=sys.stderr)

    def count(self, step: int) -> int:
        """Return how many broken images the run has found up to `step`, on all ranks."""
        self._read_on()
        return bisect.bisect_right(self._steps, step)

    def check(self, step: int) -> None:
        """Raise UserError if more images are broken than data.max_bad allows."""
        count, met = self.count(step), min(self.schedule.samples_before(step), self.images)
        allowed = self.max_bad * max(met, min(self.images, LEAST_MET))
        if count > allowed:
            raise UserError(
                f"step {step}: {count} of the {met} pictures read so far are broken; data.max_bad = {self.max_bad:g}"
                f" allows {int(allowed)}. {self.path} names them. Fix them, or resume with a larger data.max_bad"
            )

    def _read_on(self) -> None:
        """Read the lines that any rank has appended since the last call."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.split(b"\n")[:-1]:
            step, name, _ = line.decode().split("\t")
            self._take_up(int(step), name)

    def _take_up(self, step: int, name: str) -> None:
        if name not in self._names:
            self._names.add(name)
            bisect.insort(self._steps, step)


def one_line(text: str) -> str:
    """Return a text as one line of UTF-8. File names in it may contain any byte."""
    plain = text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return plain.encode("utf-8", "backslashreplace").decode()
