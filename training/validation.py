"""Validation of a run on its held-out pairs."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.loader import Batches
from evaluation.metrics import picture_metrics
from evaluation.pictures import masked, sheet
from model.composite import composite
from utils.processes import gather_on_rank_0, rank_and_world_size

PICTURES = 6  # rows of the sheet


@torch.no_grad()
def validate(net: nn.Module, pairs: Batches, device: torch.device) -> tuple[dict[str, float], np.ndarray | None]:
    """Return the mean metrics of the composites over the held-out pairs, and a sheet of the first, uint8 (H,W,3).

    Rank 0 returns them for the pairs of all ranks; the other ranks return {} and None.
    """
    numbers = iter(pairs.sampler)
    scores: dict[int, dict[str, float]] = {}  # by number of the pair
    rows: dict[int, list[np.ndarray]] = {}
    training = net.training
    net.eval()
    for images, masks in tqdm(
        pairs, desc="evaluating", unit="batch", leave=False, disable=rank_and_world_size()[0] > 0
    ):
        outputs = net(images.to(device), masks.to(device)).float().cpu().clamp(0, 1)
        composites = composite(images, outputs, masks)
        for batch in zip(images, masks, outputs, composites, strict=True):
            image, mask, output, comp = (tensor.permute(1, 2, 0).numpy() for tensor in batch)  # (H,W,C)
            number = next(numbers)
            scores[number] = picture_metrics(comp, image)
            if number < PICTURES:
                rows[number] = [masked(image, mask), mask, output, comp, image]
    net.train(training)
    scores, rows = dict(gather_on_rank_0([*scores.items()])), dict(gather_on_rank_0([*rows.items()]))
    if not scores:
        return {}, None
    means = {name: float(np.mean([scores[number][name] for number in sorted(scores)])) for name in scores[0]}
    return means, sheet([rows[number] for number in sorted(rows)])
