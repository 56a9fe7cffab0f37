"""Broken pictures and masks: checks, and the record of the pictures that a run replaced."""

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

SMALLEST = 16  # px of the shorter side, the least data.image_size: in less there is nothing to learn from
LEAST_MET = 1000  # images; data.max_bad is a share of at least so many, or of all: a share of fewer would say little

_LINE = re.compile(rb"\d+\t[^\t]+\t[^\t]+")


def read_picture(path: str) -> Image.Image:
    """An image file as 8-bit RGB, upright; of an animation the first picture.

    UserError where it can't be read, or is too small.
    """
    image = to_rgb(open_image(path))
    check_size(path, *image.size)
    return image


def check_size(path: str, width: int, height: int) -> None:
    """UserError where a picture is too small to be trained on."""
    if min(width, height) < SMALLEST:
        raise UserError(f"image {path} is {width}×{height} px; the shorter side must be at least {SMALLEST} px")


def not_all_hole(mask: np.ndarray, path: str | Path, hole: str) -> np.ndarray:
    """Return the mask, cropped to the size of training. UserError where it has no valid pixel."""
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
    """bad_files.txt of a run: for each broken picture the first step that met it, its path, the reason; between tabs.

    All ranks append to the one file and read what the others appended. So each picture is named once, and all ranks
    count the same at the same step.
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
        """Drop the lines of later steps, which a resumed run writes again, and a line that was cut off."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        kept = [line + b"\n" for line in lines if _LINE.fullmatch(line) and int(line.split(b"\t")[0]) <= step]
        write_atomically(self.path, lambda temporary: temporary.write_bytes(b"".join(kept)))

    def note(self, fault: Fault) -> None:
        """Record a picture that has no line yet, in the file and on stderr; with a full disk on stderr alone."""
        self._read_on()
        name, reason = one_line(fault.path), one_line(fault.reason)
        if name in self._names:
            return
        step = self.schedule.step_of(fault.number) + 1
        try:
            append(self.path, f"{step}\t{name}\t{reason}\n".encode())
        except OSError as error:
            self._take_up(step, name)  # on this rank alone
            if not self._warned:
                self._warned = True
                disk = f"{error.strerror or error}: {error.filename or self.path}"
                tqdm.write(f"warning: {self.path.name} can't be written, the run goes on: {disk}", file=sys.stderr)
        tqdm.write(f"warning: {reason}; another picture stands in for it", file=sys.stderr)

    def count(self, step: int) -> int:
        """How many broken pictures the run has met up to `step`, on all ranks."""
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
        """Read the lines that this and other ranks have appended."""
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
    """A text as one line of UTF-8. File names in it may hold any byte."""
    plain = text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return plain.encode("utf-8", "backslashreplace").decode()
