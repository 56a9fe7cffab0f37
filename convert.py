"""Convert a network's file to another format. See `python convert.py --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.arguments import path_argument, whole_number
from utils.errors import UserError, reports_user_errors
from utils.startup import import_torch

FORMS = {
    ".safetensors": "weights file of this project",
    ".onnx": "ONNX, image and mask in, composite out",
    ".pt2": "torch.export program, image and mask in, composite out",
}


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    check_output(args.input, args.output)

    import_torch()
    from model.export import convert

    # Prints a note if the file is another project's.
    net = convert(args.input, args.output, args.half, args.hole_radius, args.mix)
    size = f"{net.depth} levels, {net.base_channels} base channels"
    print(f"{args.output}: {FORMS[args.output.suffix]}, {size}, from {args.input}")
    return 0


def check_output(source: Path, output: Path) -> None:
    """Raise UserError if the output's suffix is unknown, or if it would overwrite a folder or the input."""
    if output.suffix not in FORMS:
        raise UserError(f"OUT must end in {' or '.join(FORMS)}, which selects the format: {output}")
    if output.is_dir():
        raise UserError(f"OUT is an existing folder: {output}; name a file")
    if output.exists() and source.exists() and os.path.samefile(source, output):
        raise UserError(f"OUT {output} is the file IN {source} and would be overwritten; name another file")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    forms = "; ".join(f"{suffix}: {form}" for suffix, form in FORMS.items())
    parser = argparse.ArgumentParser(
        description="Convert a network's file to another format.",
        epilog="example: python convert.py 1000000.pth weights/places2.safetensors",
    )
    parser.add_argument(
        "input", type=path_argument, metavar="IN", help="a checkpoint or weights file, of this or another project"
    )
    parser.add_argument("output", type=path_argument, metavar="OUT", help=f"the file to write ({forms})")
    parser.add_argument("--half", action="store_true", help="write convolution weights as float16: half the size")
    parser.add_argument(
        "--hole-radius",
        type=whole_number(1),
        metavar="PX",
        help="record in OUT the radius, in px, of the largest circle in the holes of the network's training",
    )
    parser.add_argument(
        "--mix",
        nargs=2,
        metavar=("OTHER", "SHARE"),
        help="average the weights with those of OTHER, which count SHARE (0 to 1): for two networks that were trained"
        " from the same network with different losses",
    )
    args = parser.parse_args(argv)
    if [] in (args.input, args.output):  # argparse's result for a second `--`
        parser.error("the following arguments are required: IN, OUT")
    if args.half and args.output.suffix != ".safetensors":
        parser.error("--half is for .safetensors files")
    if args.hole_radius and args.output.suffix != ".safetensors":
        parser.error("--hole-radius is for .safetensors files: the others fill in a single pass")
    if args.mix:
        try:
            args.mix = path_argument(args.mix[0]), float(args.mix[1])
        except ValueError:
            parser.error(f"--mix: SHARE must be a number between 0 and 1, got {args.mix[1]!r}")
        if not 0 <= args.mix[1] <= 1:
            parser.error(f"--mix: SHARE must be between 0 and 1, got {args.mix[1]:g}")
    return args


if __name__ == "__main__":
    sys.exit(main())
