"""Measure how well networks and classical methods fill holes. `python evaluate.py --help` says how."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from utils.arguments import path_argument, whole_number
from utils.errors import UserError, reports_user_errors
from utils.files import write_atomically
from utils.startup import import_torch

if TYPE_CHECKING:  # torch takes seconds to import: --help and argument errors are answered before
    import numpy as np
    import torch

    from evaluation.baselines import Fill
    from evaluation.gallery import Case
    from evaluation.learned import SetMetrics
    from evaluation.pairing import EvaluationPair
    from evaluation.results import ResultsFolder
    from evaluation.summary import Estimate, Key, Row

    Read = Callable[[EvaluationPair], tuple[np.ndarray, np.ndarray]]  # image (H,W,3), mask (H,W)
    Distances = Callable[[np.ndarray], dict[str, float]]  # of a composite (H,W,3) to the truth

BASELINES = ("telea", "navier-stokes", "biharmonic", "mean")
EXTRAS = ("lpips", "fid", "inception_score")  # by networks of others: requirements-metrics.txt
PER_PICTURE = ("l1_percent", "psnr", "ssim", "hole_l1_percent", "hole_psnr", "hole_ssim", "perceptual")
LONGEST_WAIT = timedelta(days=7)  # of a process for the slowest


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    models = name_models(args.model)
    names = [*models, *args.baseline]

    from data.listing import find_images, root_of
    from evaluation.pairing import names_of, read_pair, read_pairs
    from evaluation.results import ResultsFolder
    from utils.processes import device_of_rank, processes, wait_for_all

    images = names_of(find_images(args.images, "--images")[: args.limit], root_of(args.images))
    out = ResultsFolder(args.out)
    import_torch()
    with processes(LONGEST_WAIT) as (process, count):
        device = device_of_rank(args.device)
        fills = load_fills(models, args.baseline, device)

        # The pairs: the first process makes them, or takes those of --pairs, and all read them from its file.
        if process == 0:
            begin(out, list(images), models, args)
        wait_for_all()
        pairs = read_pairs(out.pairs)

        def read(pair: EvaluationPair) -> tuple[np.ndarray, np.ndarray]:
            return read_pair(images[pair.image], args.masks / pair.mask, args.hole, args.size)

        # The scores: each process takes every count-th pair, and of it what is missing.
        of_sets = score_pairs(out, pairs[process::count], read, fills, args.extra, device, process)
        wait_for_all()

        # What they say.
        if process == 0:
            rows = out.rows()
            out.write_rows(rows)
            report(out, rows, of_sets, names, settings_of(args, pairs))
            show(out, rows, names, pairs, read, fills)
    return 0


# --- what is measured ------------------------------------------------------------------------------------------


def name_models(models: Sequence[str]) -> dict[str, Path]:
    """Checkpoints by the name that tables call them: NAME of NAME=CKPT, else folder and name of the file."""
    named: dict[str, Path] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = "", text
        checkpoint = Path(os.path.expanduser(path))
        if not checkpoint.is_file():
            raise UserError(f"--model: no such file: {checkpoint}")
        name = name.strip() or "/".join(checkpoint.absolute().with_suffix("").parts[-2:])
        if name in named or name in BASELINES:
            raise UserError(f"--model: two methods are called {name!r}; give a name: --model NAME={path}")
        named[name] = checkpoint
    return named


def begin(out: ResultsFolder, images: Sequence[str], models: Mapping[str, Path], args: argparse.Namespace) -> None:
    """Make the pairs and take up the folder of results. UserError where the folder holds another evaluation."""
    from data.mask_files import hole_bin
    from evaluation.baselines import version_of
    from evaluation.pairing import format_pairs, make_pairs, read_pairs, survey_masks

    if args.pairs:
        pairs = read_pairs(args.pairs)
        unknown = [pair for pair in pairs if pair.image not in set(images)]
        if unknown:
            raise UserError(f"--pairs: {args.pairs} names the image {unknown[0].image}, which {args.images} lacks")
    else:
        masks = survey_masks(args.masks, args.hole, args.size)
        pairs = make_pairs(images, masks, args.seed)
        outside = sum(hole_bin(mask.ratio) is None for mask in masks)
        if outside:
            colour = "; are the holes another colour (--hole)?" if outside > len(masks) / 2 else ""
            print(f"left out: {outside} of {len(masks)} masks, whose hole ratio is in no bin{colour}")
    identities = {
        **{name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in models.items()},
        **{name: version_of(name) for name in args.baseline},
    }
    for name in out.open(format_pairs(pairs), {"size": args.size, "hole": args.hole}, identities):
        print(f"{name}: its file or library has changed, so it is measured anew")
    print(f"{len(pairs)} pairs of {len({pair.image for pair in pairs})} images, {len(identities)} methods")


def load_fills(models: Mapping[str, Path], baselines: Sequence[str], device: torch.device) -> dict[str, Fill]:
    """All methods by name."""
    from evaluation.baselines import FILLS

    fills = {name: fill_of_network(name, path, device) for name, path in models.items()}
    return {**fills, **{name: FILLS[name] for name in baselines}}


def fill_of_network(name: str, path: Path, device: torch.device) -> Fill:
    import torch

    from model import load_for_prediction, predict_whole

    net = load_for_prediction(path, device)

    def fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        mask_tensor = torch.from_numpy(mask).float()[None, None]  # (1,1,H,W)
        try:
            return predict_whole(net, to_tensor(image), mask_tensor)[0].permute(1, 2, 0).numpy()
        except UserError as error:
            raise UserError(f"--model {name}: {error}") from None

    return fill


def composite_of(fill: Fill, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """I_comp (H,W,3) of a method, which never sees what the hole held."""
    import numpy as np

    valid = mask[..., None] > 0
    return np.where(valid, image, fill(np.where(valid, image, np.float32(0)), mask))


# --- scores ----------------------------------------------------------------------------------------------------


def score_pairs(
    out: ResultsFolder,
    pairs: Sequence[EvaluationPair],
    read: Read,
    fills: Mapping[str, Fill],
    extras: Sequence[str],
    device: torch.device,
    process: int,
) -> dict[Key, Estimate]:
    """Append a row for each pair and method that lacks one. Returns what is a score of whole sets: FID, for one."""
    from tqdm import tqdm

    from evaluation.metrics import hole_metrics, picture_metrics
    from evaluation.summary import Row

    sets = load_set_metrics(out, device) if "fid" in extras or "inception_score" in extras else None
    done = {(row.pair, row.method): row.scores for row in out.rows()}
    wanted = {*PER_PICTURE, *(["lpips"] if "lpips" in extras else [])}

    def is_missing(pair: EvaluationPair, name: str) -> bool:
        unseen = sets is not None and Row(*pair, name, {}) not in sets
        return unseen or not done.get((pair.pair, name), {}).keys() >= wanted

    todo = [(pair, missing) for pair in pairs if (missing := [name for name in fills if is_missing(pair, name)])]
    if todo:
        distances_to = load_distances(extras, device)
        with out.append_to(process) as rows, tqdm(todo, unit="pair", disable=process > 0) as bar:
            try:
                for pair, missing in bar:
                    image, mask = read(pair)
                    distances = distances_to(image)
                    for name in missing:
                        comp = composite_of(fills[name], image, mask)
                        scores = {**picture_metrics(comp, image), **hole_metrics(comp, image, mask), **distances(comp)}
                        row = Row(*pair, name, scores)
                        rows.append(row)
                        if sets is not None:
                            sets.update(row, to_tensor(comp), to_tensor(image))
            finally:
                if sets is not None:
                    sets.save(out.features(process))
    of_sets = sets.compute() if sets is not None else {}
    return {key: estimate for key, estimate in of_sets.items() if key.metric in extras and key.method in fills}


def load_set_metrics(out: ResultsFolder, device: torch.device) -> SetMetrics:
    """FID and Inception score, with what an earlier run has seen."""
    from evaluation.learned import SetMetrics, load_inception

    sets = SetMetrics(load_inception(device))
    for path in out.all_features():
        sets.load(path)
    return sets


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    """(1,3,H,W) of a picture (H,W,3)."""
    import torch

    return torch.from_numpy(picture).permute(2, 0, 1)[None]


def load_distances(extras: Sequence[str], device: torch.device) -> Callable[[np.ndarray], Distances]:
    """What networks see between a composite and the truth: VGG-16's distance and, if asked for, LPIPS."""
    import torch

    from loss import perceptual
    from model import VGG16Features

    vgg = VGG16Features().to(device)
    lpips = None
    if "lpips" in extras:
        from evaluation.learned import load_lpips

        lpips = load_lpips(device)

    @torch.inference_mode()
    def distances_to(truth: np.ndarray) -> Distances:
        truth_tensor = to_tensor(truth).to(device)
        psi_gt = vgg(truth_tensor)

        @torch.inference_mode()
        def distances(comp: np.ndarray) -> dict[str, float]:
            tensor = to_tensor(comp).to(device)
            values = {"perceptual": float(perceptual(vgg(tensor), psi_gt))}
            if lpips is not None:
                values["lpips"] = lpips(tensor, truth_tensor)
            return values

        return distances

    return distances_to


# --- what the scores say ---------------------------------------------------------------------------------------


def report(
    out: ResultsFolder,
    rows: Sequence[Row],
    of_sets: Mapping[Key, Estimate],
    names: Sequence[str],
    settings: Mapping[str, str],
) -> None:
    """The tables: in the terminal, as Markdown and as JSON; and a plot of each metric."""
    from evaluation.plots import draw_plots
    from evaluation.report import summary_json, summary_markdown, terminal_table
    from evaluation.summary import differences, summarise

    summary = {**summarise(rows), **of_sets}
    compared = differences(rows, names[0])
    markdown = summary_markdown(summary, compared, names, settings)
    text = json.dumps(summary_json(summary, compared, names, settings), indent=2) + "\n"
    write_atomically(out.summary_markdown, lambda part: part.write_text(markdown, encoding="utf-8"))
    write_atomically(out.summary_json, lambda part: part.write_text(text, encoding="utf-8"))
    draw_plots(out.path, summary, names)
    print(terminal_table({key: value for key, value in summary.items() if not key.metric.startswith("hole_")}, names))


def show(
    out: ResultsFolder,
    rows: Sequence[Row],
    names: Sequence[str],
    pairs: Sequence[EvaluationPair],
    read: Read,
    fills: Mapping[str, Fill],
) -> None:
    """The gallery: of every bin the best, the median and the worst case of the first method, all methods beside it."""
    from tqdm import tqdm

    from evaluation.gallery import Case, choose, write_gallery
    from evaluation.pictures import masked

    scores = {(row.pair, row.method): row.scores for row in rows}
    chosen = choose(rows, names[0])

    def cases() -> Iterator[Case]:
        for number, rank in tqdm(chosen, desc="gallery", unit="pair", leave=False):
            pair = pairs[number]
            image, mask = read(pair)
            yield Case(
                pair=number,
                image=pair.image,
                bin=pair.bin,
                border=pair.border,
                ratio=pair.ratio,
                rank=rank,
                masked=masked(image, mask[..., None]),
                truth=image,
                composites={name: composite_of(fills[name], image, mask) for name in names},
                scores={name: scores[number, name] for name in names},
            )

    page = write_gallery(out.gallery, cases(), names, f"{out.path.name}: {len(pairs)} pairs")
    print(f"tables: {out.summary_markdown}; rows: {out.results}; plots: {out.path}; to look at: {page}")


def settings_of(args: argparse.Namespace, pairs: Sequence[EvaluationPair]) -> dict[str, str]:
    """What was evaluated, for those who read the tables later."""
    import torch

    from evaluation.baselines import version_of

    images = {pair.image for pair in pairs}
    masks = {pair.mask for pair in pairs}
    return {
        "images": f"{len(images)} of {args.images}",
        "masks": f"{len(masks)} of {args.masks}, holes {args.hole}",
        "pairs": f"{len(pairs)}, " + (f"from {args.pairs}" if args.pairs else f"seed {args.seed}"),
        "size": f"{args.size}×{args.size} px" if args.size else "that of each mask",
        "versions": ", ".join([f"torch {torch.__version__}", *(version_of(name) for name in ("telea", "biharmonic"))]),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


# --- the command line ------------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure how well networks and classical methods fill holes: L1, PSNR, SSIM and more per bin of"
        " hole ratios, with tables, plots and pictures. Started again, it computes only what is missing.",
        epilog="example: python evaluate.py --images photos --masks test_masks --model weights.safetensors"
        " --baseline all --out runs/evaluation; on several cores or devices: torchrun --nproc_per_node=2 evaluate.py …",
    )
    parser.add_argument("--images", required=True, metavar="DIR|LIST", help="folder, list of paths, or `sample`")
    parser.add_argument(
        "--masks",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="masks; `masks.py --benchmark DIR` makes a test set",
    )
    parser.add_argument("--hole", choices=("black", "white"), default="black", help="colour of the holes (black)")
    parser.add_argument(
        "--model", action="append", default=[], metavar="[NAME=]CKPT", help="a checkpoint or weights file; repeatable"
    )
    parser.add_argument(
        "--baseline", action="extend", nargs="+", default=[], choices=(*BASELINES, "all"), help="classical methods"
    )
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="the folder of results")
    parser.add_argument("--size", type=whole_number(16), metavar="S", help="px of image and mask (that of each mask)")
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="take the first N images (all)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the pairing (0)")
    parser.add_argument("--pairs", type=path_argument, metavar="FILE", help="a pairs.csv to take the pairs from")
    parser.add_argument(
        "--extra", action="extend", nargs="+", default=[], choices=EXTRAS, help="needs requirements-metrics.txt"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (auto)")
    args = parser.parse_args(argv)
    if "all" in args.baseline:
        args.baseline = [*args.baseline, *BASELINES]
    args.baseline = [name for name in dict.fromkeys(args.baseline) if name != "all"]
    args.extra = list(dict.fromkeys(args.extra))
    if not args.model and not args.baseline:
        parser.error("nothing to measure: name a --model or a --baseline")
    if args.pairs and (args.limit or args.seed):
        parser.error("--pairs says all about the pairs: leave --limit and --seed out")
    return args


if __name__ == "__main__":
    sys.exit(main())
