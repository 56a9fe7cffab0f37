"""Measure how well networks and classical methods fill holes. See `python evaluate.py --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from evaluation.baselines import FILLS
from evaluation.models import name_models
from utils.arguments import add_hole, path_argument, whole_number
from utils.errors import reports_user_errors
from utils.startup import import_torch

EXTRAS = ("lpips", "fid", "inception_score")  # they use third-party networks: requirements-metrics.txt


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    models = name_models(args.model)

    from data.listing import find_images

    images = find_images(args.images, "--images")[: args.limit]

    import_torch()
    from evaluation.scoring import evaluate

    evaluate(args, images, models)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure how well networks and classical methods fill holes: L1, PSNR, SSIM and more per bin of"
        " hole ratios, with tables, plots and pictures. If started again, it computes only what is missing.",
        epilog="example: python evaluate.py --images photos --masks test_masks --model weights.safetensors"
        " --baseline all --out runs/evaluation; on several cores or devices: torchrun --nproc_per_node=2 evaluate.py …",
    )
    parser.add_argument("--images", required=True, metavar="DIR|LIST", help="folder, list of paths, or `sample`")
    parser.add_argument(
        "--masks",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="folder of masks; `masks.py --benchmark DIR` makes a test set",
    )
    add_hole(parser)
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]CKPT",
        help="a checkpoint or weights file, or `shipped`; repeatable",
    )
    parser.add_argument(
        "--baseline", action="extend", nargs="+", default=[], choices=(*FILLS, "all"), help="classical methods"
    )
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--size", type=whole_number(16), metavar="S", help="size of images and masks in px (default: each mask's)"
    )
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="use only the first N images (default: all)")
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="seed of the pairing of images and masks (default: 0)",
    )
    parser.add_argument(
        "--pairs", type=path_argument, metavar="FILE", help="use the pairs in this pairs.csv of an earlier evaluation"
    )
    parser.add_argument(
        "--extra",
        action="extend",
        nargs="+",
        default=[],
        choices=EXTRAS,
        help="more metrics; they need requirements-metrics.txt",
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (default: auto)"
    )
    args = parser.parse_args(argv)
    if "all" in args.baseline:
        args.baseline = [*args.baseline, *FILLS]
    args.baseline = [name for name in dict.fromkeys(args.baseline) if name != "all"]
    args.extra = list(dict.fromkeys(args.extra))
    if not args.model and not args.baseline:
        parser.error("nothing to measure: name a --model or a --baseline")
    if args.pairs and (args.limit or args.seed):
        parser.error("--pairs determines all pairs: leave out --limit and --seed")
    return args


if __name__ == "__main__":
    sys.exit(main())
