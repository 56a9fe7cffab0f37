"""Make masks with irregular holes, or print statistics of a mask folder. See `python masks.py --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.arguments import colour, whole_number
from utils.config_files import DEFAULT_CONFIG, load_config
from utils.errors import UserError, reports_user_errors


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    config = load_config(args.config or DEFAULT_CONFIG, args.overrides)

    from data.mask_sets import make_benchmark, make_masks, show_stats

    if args.stats:
        hole = args.hole_colour or config.masks.hole
        return show_stats(Path(args.stats), hole, Path(args.out or "mask_stats.png"), args.processes)
    if config.masks.hole != "black":
        raise UserError(
            f"masks.hole: {config.masks.hole!r}, but masks.py writes black holes; set masks.hole=black, here and for"
            " training on them"
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
        " With --benchmark, make a test set like the paper's. With --stats, print statistics of a folder of masks.",
        epilog="The same config gives the same files, whatever the number of processes: mask number i depends only"
        " on run.seed, the set and i. For a test set like the paper's: python masks.py --benchmark datasets/test_masks"
        " --per-bin 1000 --size 512 masks.style=contours",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--benchmark",
        metavar="DIR",
        help="fill DIR with a test set: --per-bin masks of masks.style for each of six bins of hole ratios, with holes"
        " at least 50/512 of the size away from the edge, and as many with holes anywhere; and index.csv: file, ratio,"
        " bin, border (px, 0 = anywhere)",
    )
    kind.add_argument(
        "--stats",
        metavar="DIR",
        help="count the masks in DIR per bin of hole ratios, draw a histogram, and check whether the holes seem to have"
        " the colour that masks.hole sets",
    )
    parser.add_argument("--config", metavar="FILE", help="config file (default: config.yml beside this script)")
    parser.add_argument("--force", action="store_true", help="replace masks that masks.py wrote there before")
    parser.add_argument(
        "--processes", type=whole_number(1), metavar="N", help="number of processes (default: one per core)"
    )
    parser.add_argument(
        "--per-bin", type=whole_number(1), metavar="N", help="with --benchmark: masks per bin and border"
    )
    parser.add_argument(
        "--size",
        type=whole_number(32),
        metavar="S",
        help="with --benchmark: size of the masks in px (default: data.image_size)",
    )
    parser.add_argument(
        "--hole-colour",
        type=colour,
        metavar="#RRGGBB",
        help="with --stats: colour of the holes instead of masks.hole",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="with --stats: histogram to write, a .png (default: mask_stats.png)"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override values of the config")
    args = parser.parse_intermixed_args(argv)
    if args.benchmark and not args.per_bin:
        parser.error("--benchmark needs --per-bin N, the number of masks for each bin and border (the paper's: 1000)")
    for option, value in (("--per-bin", args.per_bin), ("--size", args.size)):
        if value and not args.benchmark:
            parser.error(f"{option} needs --benchmark; without it, the config sets the number of masks and their size")
    if args.out is not None and not args.stats:
        parser.error("--out needs --stats")
    if args.hole_colour and not args.stats:
        parser.error("--hole-colour needs --stats; the masks that masks.py makes have black holes")
    if args.force and args.stats:
        parser.error("--force cannot be combined with --stats, which changes no masks")
    for option in ("benchmark", "stats", "out", "config"):
        if getattr(args, option) == "":
            parser.error(f"--{option} is empty")
    return args


if __name__ == "__main__":
    sys.exit(main())
