"""Make masks with irregular holes, or look at a folder of masks. `python masks.py --help` says how."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.arguments import whole_number
from utils.errors import UserError, reports_user_errors
from utils.files import write_atomically
from utils.parallel import in_processes

if TYPE_CHECKING:  # numpy, cv2 and Pillow are imported where they are used: --help and wrong arguments answer at once
    from utils.config import Config, HoleColour, Style

RECORD = "masks.json"  # lies in every folder that masks.py fills: how the masks were made, and that it was masks.py
OWN_NAME = re.compile(r"\d{6,}\.png|\.\d{6,}\.png\.part")  # masks, and what a killed run left of one


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    from utils.config import DEFAULT_CONFIG, load_config

    config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
    if args.stats:
        return show_stats(Path(args.stats), config.masks.hole, Path(args.out or "mask_stats.png"), args.processes)
    if config.masks.hole == "white":
        raise UserError(
            "masks.hole: 'white', but masks.py writes black holes; set masks.hole=black, here and for training on them"
        )
    if args.benchmark:
        size = args.size or config.data.image_size
        make_benchmark(Path(args.benchmark), config, args.per_bin, size, args.force, args.processes)
    else:
        make_masks(config, args.force, args.processes)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="masks.py",
        description="Fill masks.train_dir and masks.val_dir of the config with masks: PNG, holes black, valid white."
        " With --benchmark make a test set like the paper's; with --stats look at a folder of masks.",
        epilog="The same config gives the same files, whatever the number of processes: mask number i is a function"
        " of run.seed, the set and i. For a test set like the paper's: python masks.py --benchmark datasets/test_masks"
        " --per-bin 1000 --size 512 masks.style=contours",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--benchmark",
        metavar="DIR",
        help="fill DIR with six bins of hole ratios x (holes 50/512 of the size away from the edge | anywhere)"
        " x --per-bin masks of masks.style, and index.csv: file, ratio, bin, border (px, 0 = anywhere)",
    )
    kind.add_argument(
        "--stats",
        metavar="DIR",
        help="count the masks of DIR per bin of hole ratios, say which colour the holes seem to have, and draw a"
        " histogram; masks.hole says which colour they do have",
    )
    parser.add_argument("--config", metavar="FILE", help="the config (config.yml beside this script)")
    parser.add_argument("--force", action="store_true", help="replace the masks that masks.py made there before")
    parser.add_argument("--processes", type=whole_number(1), metavar="N", help="processes (one per core)")
    parser.add_argument(
        "--per-bin", type=whole_number(1), metavar="N", help="with --benchmark: masks per bin and border"
    )
    parser.add_argument("--size", type=whole_number(32), metavar="S", help="with --benchmark: px (data.image_size)")
    parser.add_argument("--out", metavar="FILE", help="with --stats: the histogram, a .png (mask_stats.png)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values instead of the config's")
    args = parser.parse_intermixed_args(argv)
    if args.benchmark and not args.per_bin:
        parser.error("--benchmark needs --per-bin N, the number of masks for each bin and border (the paper's: 1000)")
    for option, value in (("--per-bin", args.per_bin), ("--size", args.size)):
        if value and not args.benchmark:
            parser.error(f"{option} goes with --benchmark; without it the config says how many masks, and their size")
    if args.out is not None and not args.stats:
        parser.error("--out goes with --stats")
    if args.force and args.stats:
        parser.error("--force does not go with --stats, which changes no masks")
    for option in ("benchmark", "stats", "out", "config"):
        if getattr(args, option) == "":
            parser.error(f"--{option} is empty")
    return args


# --- making masks ----------------------------------------------------------------------------------------------


class MaskJob(NamedTuple):
    """All that one mask file is a function of."""

    path: Path
    seed: int
    purpose: int
    number: int
    size: int  # px
    style: Style
    ratio: float
    border: int = 0  # px


def make_masks(config: Config, force: bool, processes: int | None) -> None:
    """Fill the training and the validation folder. Neither is touched where one of them may not be."""
    from data.holes import spread_ratio
    from data.order import TRAIN_MASKS, VAL_MASKS

    masks, size, seed = config.masks, config.masks.size or config.data.image_size, config.run.seed
    sets = [
        (TRAIN_MASKS, Path(masks.train_dir), masks.train_count, "masks.train_dir"),
        (VAL_MASKS, Path(masks.val_dir), masks.val_count, "masks.val_dir"),
    ]
    for _, folder, _, key in sets:
        check_folder(folder, force, f"set {key} to another")
    for purpose, folder, count, key in sets:
        jobs = []
        for i in range(count):
            ratio = spread_ratio(i, *masks.hole_ratio, size)
            jobs.append(MaskJob(folder / file_name(i), seed, purpose, i, size, masks.style, ratio))
        settings = {"set": key, "hole_ratio": list(masks.hole_ratio)}
        fill_folder(folder, jobs, settings, processes)


def make_benchmark(folder: Path, config: Config, per_bin: int, size: int, force: bool, processes: int | None) -> None:
    """Make a test set as the paper's (§4.1), with `per_bin` masks for each bin with a border and as many without."""
    from data.holes import spread_ratio
    from data.mask_files import HOLE_BINS, INDEX, bin_name, border_width
    from data.order import BENCHMARK_MASKS

    check_folder(folder, force, "name another", (RECORD, INDEX))
    wide = border_width(size)
    room = (size - 2 * wide) ** 2 / size**2
    jobs: list[MaskJob] = []
    rows = []
    for index, (low, high) in enumerate(HOLE_BINS):
        for border in (wide, 0):
            purpose = BENCHMARK_MASKS + 2 * index + (border == 0)
            # Small images have a wide border: there the last bin ends where a mask still has a shape.
            high_here = min(high, 0.97 * room) if border else high
            for i in range(per_bin):
                ratio = spread_ratio(i, low, high_here, size)
                path = folder / file_name(len(jobs))
                jobs.append(MaskJob(path, config.run.seed, purpose, i, size, config.masks.style, ratio, border))
                rows.append((path.name, bin_name(index), border))
    (folder / INDEX).unlink(missing_ok=True)  # of the masks that go
    ratios = fill_folder(folder, jobs, {"set": "benchmark", "per_bin": per_bin, "border": wide}, processes)
    lines = [
        f"{name},{ratio:.6f},{bin_text},{border}" for (name, bin_text, border), ratio in zip(rows, ratios, strict=True)
    ]
    text = "\n".join(["file,ratio,bin,border", *lines]) + "\n"
    write_atomically(folder / INDEX, lambda part: part.write_text(text, encoding="utf-8"))


def file_name(number: int) -> str:
    return f"{number:06d}.png"


def check_folder(folder: Path, force: bool, otherwise: str, writes: Sequence[str] = (RECORD,)) -> None:
    """UserError where masks may not be written into a folder.

    It may hold no images, or with `force` only such as masks.py made there, as the folder's record says. Of the files
    that are written beside the masks (`writes`) none may be there from others. What else lies there stays untouched.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"a file, where masks need a folder: {folder}; {otherwise}")
    from data.images import is_image_name

    names = sorted(path.name for path in folder.iterdir())
    images = [name for name in names if is_image_name(name)]
    ours = is_ours(folder)
    if images and not force:
        remedy = "--force replaces the masks that masks.py made there" if ours else "masks.py did not make them"
        raise UserError(f"{folder} already holds {len(images)} images, which stay untouched: {remedy}; or {otherwise}")
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
    """Whether the record in a folder says that masks.py filled it, or began to."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("made_by") == "masks.py"


def fill_folder(folder: Path, jobs: Sequence[MaskJob], settings: dict[str, Any], processes: int | None) -> list[float]:
    """Write the masks of `jobs` into a folder that `check_folder` let pass; its old masks go. Returns hole ratios."""
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
    """Draw a mask and write its file, which has its name only when it is whole. Returns the hole ratio.

    Not by `write_atomically`: it waits for the disk, which takes longer than to draw a mask anew.
    """
    from data.holes import draw_mask
    from data.mask_files import hole_ratio, write_mask
    from data.order import generator

    mask = draw_mask(generator(job.purpose, job.number, job.seed), job.size, job.style, job.ratio, job.border)
    part = job.path.with_name(f".{job.path.name}.part")
    write_mask(part, mask)
    os.replace(part, job.path)
    return hole_ratio(mask)


# --- looking at masks ------------------------------------------------------------------------------------------


def show_stats(folder: Path, hole: HoleColour, out: Path, processes: int | None) -> int:
    """Print what the masks of a folder are like and draw a histogram. Exit code 1 where a file can't be read."""
    from data.images import list_images
    from data.mask_stats import describe, draw_histogram, measure

    paths = list_images(folder)
    if not paths:
        raise UserError(f"no images in {folder}, which --stats named; it looks for masks in the folder itself")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out: {str(out)!r} must end in .png")
    if out.resolve().parent == folder.resolve():
        raise UserError(f"the histogram {out} would lie among the masks; name another place with --out FILE")
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out: no such folder: {out.parent}")
    found = list(in_processes(measure, [(path, hole) for path in paths], processes, str(folder), "masks"))
    masks = [mask for mask in found if mask.fault is None]
    for mask in found:
        if mask.fault is not None:
            print(f"unreadable: {mask.fault}", file=sys.stderr)
    print(f"{folder}: {len(masks)} masks, {len(found) - len(masks)} unreadable files; holes are {hole} (masks.hole)")
    if masks:
        print(describe(masks, hole))
        draw_histogram(masks, hole, folder).save(out)
        print(f"histogram: {out}")
    return 0 if len(masks) == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
