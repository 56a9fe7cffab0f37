"""Broken pictures and masks: which they are, and how a run keeps account of the pictures that others stand in for."""

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
from utils.config import Config, HoleColour
from utils.errors import UserError
from utils.files import append, write_atomically

SMALLEST = 16  # px of the shorter side, the least data.image_size: in less there is nothing to learn from
LEAST_MET = 1000  # images; data.max_bad is a share of at least so many, or of all: few tell nothing about the rest

_LINE = re.compile(rb"\d+\t[^\t]+\t[^\t]+")


def read_picture(path: str) -> Image.Image:
    """An image file as 8-bit RGB, upright; of an animation the first picture, which is as whole as any other's.

    UserError where it can't be read, or is too small.
    """
    image = to_rgb(open_image(path))
    check_size(path, *image.size)
    return image


def check_size(path: str, width: int, height: int) -> None:
    """UserError where a picture is too small to be trained on."""
    if min(width, height) < SMALLEST:
        raise UserError(f"image {path} is {width}×{height} px; the shorter side must be at least {SMALLEST} px")


def not_all_hole(mask: np.ndarray, path: str | Path, hole: HoleColour) -> np.ndarray:
    """The mask itself, cropped to the training's size. UserError where it has no valid pixel: nothing to fill from."""
    if not mask.any():
        size = f"{mask.shape[1]}×{mask.shape[0]} px"
        raise UserError(f"mask {path}: cropped to {size} it is all hole; remove it, or change masks.hole ({hole} now)")
    return mask


class Fault(NamedTuple):
    """A picture that could not be used, and the sample that met it."""

    number: int
    path: str
    reason: str


class BadFiles:
    """bad_files.txt of a run: a line for each broken picture, with the step that met it first, its path, the reason.

    Tabs stand between. All processes of a run append to the one file and read what the others appended: so each
    picture is named once, and all count the same at the same step.
    """

    def __init__(self, path: Path, config: Config, images: int) -> None:
        self.path = path
        self.schedule = Schedule(config)
        self.max_bad = config.data.max_bad
        self.images = images
        self._names: set[str] = set()
        self._steps: list[int] = []  # sorted
        self._read = 0  # bytes of the file
        self._warned = False  # that it can't be written

    def rewind(self, step: int) -> None:
        """Drop the lines behind `step`, which a resumed run will write again, and a line that was cut off."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        kept = [line + b"\n" for line in lines if _LINE.fullmatch(line) and int(line.split(b"\t")[0]) <= step]
        write_atomically(self.path, lambda temporary: temporary.write_bytes(b"".join(kept)))

    def note(self, fault: Fault) -> None:
        """Write a line for a picture that has none yet, here and to stderr; without room for it to stderr alone."""
        self._read_on()
        name, reason = one_line(fault.path), one_line(fault.reason)
        if name in self._names:
            return
        step = self.schedule.step_of(fault.number) + 1
        try:
            append(self.path, f"{step}\t{name}\t{reason}\n".encode())
        except OSError as error:
            self._take_up(step, name)  # in this process alone
            if not self._warned:
                self._warned = True
                told = f"{error.strerror or error}: {error.filename or self.path}"
                tqdm.write(f"warning: {self.path.name} can't be written, the run goes on: {told}", file=sys.stderr)
        tqdm.write(f"warning: {reason}; another picture stands in for it", file=sys.stderr)

    def count(self, step: int) -> int:
        """How many broken pictures the run has met up to `step`, in all its processes."""
        self._read_on()
        return bisect.bisect_right(self._steps, step)

    def check(self, step: int) -> None:
        """UserError where more pictures are broken than data.max_bad allows."""
        count, met = self.count(step), min(self.schedule.samples_before(step), self.images)
        allowed = self.max_bad * max(met, min(self.images, LEAST_MET))
        if count > allowed:
            raise UserError(
                f"step {step}: {count} of the {met} pictures met so far are broken; data.max_bad = {self.max_bad:g}"
                f" allows {int(allowed)}. {self.path} names them. Mend them, or resume with a larger data.max_bad"
            )

    def _read_on(self) -> None:
        """Take up the lines that this and other processes have written since."""
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
    """A text as one line of UTF-8: the names of files in it may hold anything."""
    plain = text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return plain.encode("utf-8", "backslashreplace").decode()
