"""Run an evaluation: every method fills every pair of image and mask; write scores, tables, plots and a gallery."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from data.listing import root_of
from data.mask_files import hole_bin
from data.names import as_stored, list_images
from evaluation.baselines import FILLS, Fill, version_of
from evaluation.gallery import Case, choose, write_gallery
from evaluation.metrics import METRICS, hole_metrics, picture_metrics
from evaluation.pairing import (
    EvaluationPair,
    as_listed,
    check_pairs,
    format_pairs,
    make_pairs,
    names_of,
    read_pair,
    read_pairs,
    survey_masks,
)
from evaluation.pictures import masked
from evaluation.plots import draw_plots
from evaluation.report import summary_json, summary_markdown, terminal_table
from evaluation.results import ResultsFolder
from evaluation.summary import Estimate, Key, Row, differences, summarise
from loss import perceptual
from model import VGG16Features, inpaint, load_for_prediction
from utils.errors import UserError
from utils.files import write_atomically
from utils.processes import device_of_rank, processes, wait_for_all

if TYPE_CHECKING:
    from evaluation.learned import SetMetrics

Read = Callable[[EvaluationPair], tuple[np.ndarray, np.ndarray]]  # image (H,W,3), mask (H,W)
Distances = Callable[[np.ndarray], dict[str, float]]  # from a composite (H,W,3) to the truth

LONGEST_WAIT = timedelta(days=7)  # of a process for the slowest one


def evaluate(args: argparse.Namespace, paths: Sequence[str], models: Mapping[str, Path]) -> None:
    """Run evaluate.py.

    args: the arguments of evaluate.py. paths: the images. models: checkpoints by name.
    Raises UserError if something is missing or does not match.
    """
    names = [*models, *args.baseline]
    images = names_of(paths, root_of(args.images))
    out = ResultsFolder(args.out)
    with processes(LONGEST_WAIT) as (process, count), contextlib.ExitStack() as held:
        if process == 0:
            held.enter_context(out.lock())
        device = device_of_rank(args.device)
        fills = load_fills(models, args.baseline, device)

        # Pairs: rank 0 makes them, or takes those of --pairs, and all ranks read them from its file.
        if process == 0:
            begin(out, images, models, args)
        wait_for_all()
        pairs = read_pairs(out.pairs)

        def read(pair: EvaluationPair) -> tuple[np.ndarray, np.ndarray]:
            return read_pair(images[pair.image], args.masks / pair.mask, args.hole, args.size)

        # Scores: each rank takes every count-th pair and computes its missing rows.
        of_sets = score_pairs(out, pairs[process::count], read, fills, args.extra, device, process)
        wait_for_all()

        # Report.
        if process == 0:
            rows = out.rows()
            out.write_rows(rows)
            check_complete(rows, pairs, names)
            report(out, rows, of_sets, names, settings_of(args, pairs))
            show(out, rows, names, pairs, read, fills)


# --- pairs and methods -----------------------------------------------------------------------------------------


def begin(out: ResultsFolder, images: Mapping[str, str], models: Mapping[str, Path], args: argparse.Namespace) -> None:
    """Make the pairs and open the results folder. Raises UserError if it holds another evaluation.

    images: paths by their names in pairs.csv.
    """
    if Path(args.images).is_dir() and args.masks.is_dir() and args.masks.samefile(args.images):
        raise UserError(f"--masks: {args.masks} is the folder of the images; name the folder of the masks")
    if args.pairs:
        pairs = as_listed(read_pairs(args.pairs), images, [path.name for path in list_images(args.masks)])
        unknown = [pair for pair in pairs if pair.image not in images]
        if unknown:
            raise UserError(f"--pairs: {args.pairs} names the image {unknown[0].image}, which {args.images} lacks")
        named = {pair.mask for pair in pairs}
        check_pairs(pairs, survey_masks(args.masks, args.hole, args.size, names=named), args.pairs)
    else:
        masks = survey_masks(args.masks, args.hole, args.size)
        pairs = make_pairs(list(images), masks, args.seed)
        outside = sum(hole_bin(mask.ratio) is None for mask in masks)
        if outside:
            colour = "; are the holes another colour (--hole)?" if outside > len(masks) / 2 else ""
            print(f"left out: {outside} of {len(masks)} masks, because their hole ratios are in no bin{colour}")
    identities = {
        **{name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in models.items()},
        **{name: version_of(name) for name in args.baseline},
    }
    files = [*(images[name] for name in dict.fromkeys(pair.image for pair in pairs))]
    files += [str(args.masks / name) for name in dict.fromkeys(pair.mask for pair in pairs)]
    settings = {"size": args.size, "hole": args.hole, "files": digest(files)}
    for name in out.open(format_pairs(pairs), settings, identities):
        print(f"{name}: its file or library has changed, so it is measured again")
    print(f"{len(pairs)} pairs of {len({pair.image for pair in pairs})} images, {len(identities)} methods")


def digest(paths: Sequence[str]) -> str:
    """Return a SHA-256 of the contents of these files, in order. Raises UserError if one is missing."""
    whole = hashlib.sha256()
    for path in tqdm(paths, desc="files", unit="file", leave=False, delay=1):
        try:
            whole.update(hashlib.sha256(Path(as_stored(path)).read_bytes()).digest())
        except FileNotFoundError:
            raise UserError(f"no such file: {path}") from None
    return whole.hexdigest()


def check_complete(rows: Sequence[Row], pairs: Sequence[EvaluationPair], names: Sequence[str]) -> None:
    """Raise UserError if a row is missing: methods must be compared on the same pairs."""
    there = {(row.pair, row.method) for row in rows}
    missing = sum((pair.pair, name) not in there for pair in pairs for name in names)
    if missing:
        raise UserError(
            f"{missing} of {len(pairs) * len(names)} rows of scores are missing; start the evaluation again"
        )


def load_fills(models: Mapping[str, Path], baselines: Sequence[str], device: torch.device) -> dict[str, Fill]:
    """Return all methods by name."""
    fills = {name: fill_of_network(name, path, device) for name, path in models.items()}
    return {**fills, **{name: FILLS[name] for name in baselines}}


def fill_of_network(name: str, path: Path, device: torch.device) -> Fill:
    try:
        net = load_for_prediction(path, device)
    except UserError as error:
        raise UserError(f"--model {name}: {error}") from None

    def fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        mask_tensor = torch.from_numpy(mask).float()[None, None]  # (1,1,H,W)
        try:
            return inpaint(net, to_tensor(image), mask_tensor)[0].permute(1, 2, 0).numpy()
        except UserError as error:
            raise UserError(f"--model {name}: {error}") from None

    return fill


def composite_of(fill: Fill, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return I_comp (H,W,3) of a method. Hole pixels are set to 0 in its input."""
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
    """Append a row for each pair and method that lacks one. Returns the scores of sets: FID and Inception score."""
    sets = load_set_metrics(out, device) if "fid" in extras or "inception_score" in extras else None
    done = {(row.pair, row.method): row.scores for row in out.rows()}
    wanted = {
        *(name for name, metric in METRICS.items() if not metric.extra),
        *(["lpips"] if "lpips" in extras else []),
    }

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
    """Return FID and Inception score with the features of earlier runs."""
    learned = _learned()
    sets = learned.SetMetrics(learned.load_inception(device))
    for path in out.all_features():
        sets.load(path)
    return sets


def _learned() -> ModuleType:
    """Import evaluation.learned, whose packages only --extra needs. Raises UserError if one is missing."""
    from evaluation import learned

    return learned


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    """Convert an image (H,W,3) to (1,3,H,W)."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


def load_distances(extras: Sequence[str], device: torch.device) -> Callable[[np.ndarray], Distances]:
    """Return a function from a truth to distances of a composite: VGG-16's and, with the extra, LPIPS."""
    vgg = VGG16Features().to(device)
    lpips = _learned().load_lpips(device) if "lpips" in extras else None

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


# --- report ----------------------------------------------------------------------------------------------------


def report(
    out: ResultsFolder,
    rows: Sequence[Row],
    of_sets: Mapping[Key, Estimate],
    names: Sequence[str],
    settings: Mapping[str, str],
) -> None:
    """Print the tables, write them as Markdown and JSON, and plot each metric."""
    summary = {**summarise(rows), **of_sets}
    compared = differences(rows, names[0])
    markdown = summary_markdown(summary, compared, names, settings)
    text = json.dumps(summary_json(summary, compared, names, settings), indent=2) + "\n"
    write_atomically(out.summary_markdown, lambda part: part.write_text(markdown, encoding="utf-8", errors="replace"))
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
    """Write the gallery: best, median and worst case of the first method per bin, with the fills of all methods."""
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
    print(f"tables: {out.summary_markdown}; rows: {out.results}; plots: {out.path}; to view: {page}")


def settings_of(args: argparse.Namespace, pairs: Sequence[EvaluationPair]) -> dict[str, str]:
    """Return a description of the evaluation for the tables."""
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
