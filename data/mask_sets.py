"""Folders of masks: for training and validation, test sets like the paper's, and statistics of a folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data.holes import draw_mask, spread_ratio
from data.locking import locked
from data.mask_files import HOLE_BINS, INDEX, bin_name, border_width, hole_ratio, write_mask
from data.mask_stats import describe, draw_histogram, measure
from data.names import is_image_name, list_images
from data.order import BENCHMARK_MASKS, TRAIN_MASKS, VAL_MASKS, generator
from data.parallel import in_processes
from utils.config import Config, Style
from utils.errors import UserError
from utils.files import write_atomically

_OWN_MARK = ("Software", "masks.py --stats")  # PNG text that marks our histograms; only these are overwritten

RECORD = "masks.json"  # in every folder that masks.py fills: marks it as ours and records how the masks were made
OWN_NAME = re.compile(r"\d{6,}\.png|\.\d{6,}\.png\.part")  # masks, and partial files of a killed run


# --- making masks ----------------------------------------------------------------------------------------------


class MaskJob(NamedTuple):
    """All inputs of one mask file."""

    path: Path
    seed: int
    purpose: int
    number: int
    size: int  # px
    style: Style
    ratio: float
    border: int = 0  # px


def make_masks(config: Config, force: bool, processes: int | None) -> None:
    """Fill the training and validation folders. If one of them may not be filled, neither is changed."""
    masks, size, seed = config.masks, config.masks.size or config.data.image_size, config.run.seed
    sets = [
        (TRAIN_MASKS, Path(masks.train_dir), masks.train_count, "masks.train_dir"),
        (VAL_MASKS, Path(masks.val_dir), masks.val_count, "masks.val_dir"),
    ]
    with contextlib.ExitStack() as held:
        for _, folder, _, key in sets:
            held.enter_context(opened_folder(folder, force, f"set {key} to another folder"))
        for purpose, folder, count, key in sets:
            jobs = []
            for i in range(count):
                ratio = spread_ratio(i, *masks.hole_ratio, size)
                jobs.append(MaskJob(folder / file_name(i), seed, purpose, i, size, masks.style, ratio))
            settings = {"set": key, "hole_ratio": list(masks.hole_ratio)}
            fill_folder(folder, jobs, settings, processes)


def make_benchmark(folder: Path, config: Config, per_bin: int, size: int, force: bool, processes: int | None) -> None:
    """Make a test set like the paper's (§4.1): per bin, `per_bin` masks with a border and as many without."""
    wide = border_width(size)
    room = (size - 2 * wide) ** 2 / size**2
    jobs: list[MaskJob] = []
    rows = []
    for index, (low, high) in enumerate(HOLE_BINS):
        for border in (wide, 0):
            purpose = BENCHMARK_MASKS + 2 * index + (border == 0)
            # The border takes much of a small image: the last bin ends where a hole with a shape still fits.
            high_here = min(high, 0.97 * room) if border else high
            for i in range(per_bin):
                ratio = spread_ratio(i, low, high_here, size)
                path = folder / file_name(len(jobs))
                jobs.append(MaskJob(path, config.run.seed, purpose, i, size, config.masks.style, ratio, border))
                rows.append((path.name, bin_name(index), border))
    with opened_folder(folder, force, "name another folder", (RECORD, INDEX)):
        (folder / INDEX).unlink(missing_ok=True)  # index of the replaced masks
        ratios = fill_folder(folder, jobs, {"set": "benchmark", "per_bin": per_bin, "border": wide}, processes)
        lines = [
            f"{name},{ratio:.6f},{bin_text},{border}"
            for (name, bin_text, border), ratio in zip(rows, ratios, strict=True)
        ]
        text = "\n".join(["file,ratio,bin,border", *lines]) + "\n"
        write_atomically(folder / INDEX, lambda part: part.write_text(text, encoding="utf-8"))


def file_name(number: int) -> str:
    return f"{number:06d}.png"


@contextlib.contextmanager
def opened_folder(folder: Path, force: bool, otherwise: str, writes: Sequence[str] = (RECORD,)) -> Iterator[None]:
    """Lock a folder that masks may be written to within the block. Raises UserError like check_folder."""
    check_folder(folder, force, otherwise, writes)  # before a new folder is made
    with locked(folder):
        check_folder(folder, force, otherwise, writes)  # another process may have filled it
        yield


def check_folder(folder: Path, force: bool, otherwise: str, writes: Sequence[str] = (RECORD,)) -> None:
    """Raise UserError if masks may not be written to a folder.

    It must contain no images or, with `force`, only images that masks.py made there, according to the folder's record.
    Files named in `writes`, written beside the masks, may exist only if masks.py made them. Other files are kept.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"must be a folder, but is a file: {folder}; {otherwise}")
    names = sorted(path.name for path in folder.iterdir())
    images = [name for name in names if is_image_name(name)]
    ours = is_ours(folder)
    if images and not force:
        remedy = "to replace these masks, add --force, or" if ours else "masks.py did not make them;"
        raise UserError(f"{folder} already holds {len(images)} images, which stay untouched: {remedy} {otherwise}")
    foreign = [name for name in images if not ours or not OWN_NAME.fullmatch(name)]
    if foreign:
        raise UserError(
            f"{folder} holds {len(foreign)} images that masks.py did not make, such as {foreign[0]};"
            f" --force does not replace them: {otherwise}, or move them away"
        )
    taken = [name for name in writes if name in names and not ours]
    if taken:
        raise UserError(f"{folder} holds a {taken[0]} that masks.py did not write; {otherwise}, or move it away")


def is_ours(folder: Path) -> bool:
    """Return whether the record in a folder says that masks.py has filled it, or started to."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("made_by") == "masks.py"


def fill_folder(folder: Path, jobs: Sequence[MaskJob], settings: dict[str, Any], processes: int | None) -> list[float]:
    """Write the masks of `jobs` to a folder that passed `check_folder`, replacing old masks. Returns hole ratios."""
    folder.mkdir(parents=True, exist_ok=True)
    job = jobs[0]
    record = {"made_by": "masks.py", "seed": job.seed, "size": job.size, "style": job.style, "count": len(jobs)}
    text = json.dumps({**record, **settings}, indent=2) + "\n"
    write_atomically(folder / RECORD, lambda part: part.write_text(text, encoding="utf-8"))
    for path in folder.iterdir():
        if OWN_NAME.fullmatch(path.name):
            path.unlink()
    start = time.perf_counter()
    ratios = list(in_processes(write_job, jobs, processes, str(folder), "masks"))
    seconds = time.perf_counter() - start
    speed = len(jobs) / seconds
    print(f"{len(jobs)} masks of {job.size}x{job.size} px in {folder} ({seconds:.1f} s, {speed:.0f} a second)")
    return ratios


def write_job(job: MaskJob) -> float:
    """Draw a mask and write its file, renamed into place when complete. Returns the hole ratio.

    `write_atomically` would wait for the disk; redrawing a lost mask takes less time.
    """
    mask = draw_mask(generator(job.purpose, job.number, job.seed), job.size, job.style, job.ratio, job.border)
    part = job.path.with_name(f".{job.path.name}.part")
    write_mask(part, mask)
    os.replace(part, job.path)
    return hole_ratio(mask)


# --- mask statistics -------------------------------------------------------------------------------------------


def is_own_histogram(path: Path) -> bool:
    """Return whether a file is a histogram from show_stats."""
    try:
        with Image.open(path) as image:
            return image.info.get(_OWN_MARK[0]) == _OWN_MARK[1]
    except (OSError, ValueError, SyntaxError):
        return False


def show_stats(folder: Path, hole: str, out: Path, processes: int | None) -> int:
    """Print statistics of a folder's masks and draw a histogram. Returns exit code 1 if a file cannot be read."""
    paths = list_images(folder)
    if not paths:
        raise UserError(f"--stats: no images in {folder}; masks must lie directly in the folder")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out: {str(out)!r} must end in .png")
    if out.resolve().parent == folder.resolve():
        raise UserError(f"the histogram {out} would be among the masks; name another place with --out FILE")
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out: no such folder: {out.parent}")
    if out.exists() and not is_own_histogram(out):
        raise UserError(f"--out: {out} exists and is not a histogram by masks.py, so it is kept; name another file")
    found = list(in_processes(measure, [(path, hole) for path in paths], processes, str(folder), "masks"))
    masks = [mask for mask in found if mask.fault is None]
    for mask in found:
        if mask.fault is not None:
            print(f"unreadable: {mask.fault}", file=sys.stderr)
    print(f"{folder}: {len(masks)} masks, {len(found) - len(masks)} unreadable files; holes are {hole}")
    if masks:
        print(describe(masks, hole))
        marks = PngInfo()
        marks.add_text(*_OWN_MARK)
        draw_histogram(masks, hole, folder).save(out, pnginfo=marks)
        print(f"histogram: {out}")
    return 0 if len(masks) == len(found) else 1
