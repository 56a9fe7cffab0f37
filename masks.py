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
    parser.add_argument(
        "--hole-colour",
        type=colour,
        metavar="#RRGGBB",
        help="with --stats: colour of the holes instead of masks.hole",
    )
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
    if args.hole_colour and not args.stats:
        parser.error("--hole-colour goes with --stats; masks.py makes black holes")
    if args.force and args.stats:
        parser.error("--force does not go with --stats, which changes no masks")
    for option in ("benchmark", "stats", "out", "config"):
        if getattr(args, option) == "":
            parser.error(f"--{option} is empty")
    return args


if __name__ == "__main__":
    sys.exit(main())
