"""LPIPS, FID and Inception score by torchmetrics (requirements-metrics.txt), with downloaded weights."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from evaluation.summary import Estimate, Key, Row, groups
from utils.errors import UserError
from utils.files import write_atomically

try:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import AlexNet_Weights
except ImportError as error:
    raise UserError(
        f"no packages for LPIPS, FID and Inception score: {error}; `pip install -r requirements-metrics.txt`"
    ) from None

SMALLEST_LPIPS = 31  # px: AlexNet's pooling reduces smaller images to nothing


def load_lpips(device: torch.device | str) -> Callable[[Tensor, Tensor], float]:
    """Return LPIPS (Zhang et al. 2018, AlexNet): a distance of two images (1,3,H,W) in [0,1], 0 if they are equal.

    Raises UserError if the weights are unavailable. The distance raises it for images below SMALLEST_LPIPS.
    """
    _fetch("LPIPS", AlexNet_Weights.DEFAULT.url)
    network = LearnedPerceptualImagePatchSimilarity("alex").net.to(device)

    def distance(composite: Tensor, truth: Tensor) -> float:
        if min(composite.shape[2:]) < SMALLEST_LPIPS:
            height, width = composite.shape[2:]
            raise UserError(
                f"LPIPS needs pictures of at least {SMALLEST_LPIPS} px; one is {width}x{height}: leave LPIPS out"
                " or evaluate at a larger size"
            )
        with torch.inference_mode():
            return float(network(composite.to(device), truth.to(device), normalize=True))

    return distance


def load_inception(device: torch.device | str) -> nn.Module:
    """Return the Inception network for SetMetrics. Raises UserError if its weights are unavailable."""
    _fetch("FID and Inception score", URL_INCEPTION_V3)
    return NoTrainInceptionV3("inception-v3-compat", ["2048"]).to(device)


class SetMetrics:
    """FID (Heusel et al. 2017) and Inception score (Salimans et al. 2016) by method, hole bin and border.

    network: maps images, uint8 (N,3,H,W), to features (N,D); `network.fc.weight` (C,D) maps these to the logits of
    the Inception score. Each image passes the network once; its features are kept, 8 KB per image.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._seen: dict[tuple[int, str], tuple[Row, str, np.ndarray]] = {}  # by pair and method: key of truth, (D,)
        self._truths: dict[str, np.ndarray] = {}  # features (D,), by key

    def __contains__(self, row: Row) -> bool:
        """Return whether the composite of this pair and method has been added."""
        return (row.pair, row.method) in self._seen

    def update(self, row: Row, composite: Tensor, truth: Tensor) -> None:
        """Add a composite and its truth, both (1,3,H,W) in [0,1]. A truth's features are computed once per size."""
        key = f"{tuple(truth.shape[2:])} {row.image}"
        if key not in self._truths:
            self._truths[key] = self._features(truth)
        self._seen[row.pair, row.method] = row, key, self._features(composite)

    def compute(self) -> dict[Key, Estimate]:
        """Return both scores per group of `summarise`, without intervals. Groups of one pair are skipped.

        All ranks must call it. Rank 0 returns the scores over the images of all ranks, the others return {}.
        """
        whole = self
        if distributed.is_initialized():
            whole = SetMetrics(self.network)
            for state in _gathered(self._state()):
                whole._add(state)
        estimates: dict[Key, Estimate] = {}
        for bin_, border, members in groups([whole._seen[key][0] for key in sorted(whole._seen)]):
            for method in sorted({row.method for row in members}):
                pairs = [row.pair for row in members if row.method == method]
                if len(pairs) > 1:
                    for metric, score in whole._scores(method, pairs).items():
                        estimates[Key(method, metric, bin_, border)] = Estimate(score, None, None, len(pairs))
        return estimates

    def save(self, path: Path) -> None:
        """Write the features atomically, so that an evaluation can be resumed."""

        def write(part: Path) -> None:
            with part.open("wb") as file:  # np.savez would append .npz to a path
                np.savez(file, **self._state())

        write_atomically(path, write)

    def load(self, path: Path) -> None:
        """Add the features of a file written by `save`."""
        with np.load(path) as state:
            self._add(state)

    def _features(self, picture: Tensor) -> np.ndarray:
        """Return the features (D,) of an image (1,3,H,W) in [0,1], rounded to 8 bits like a file."""
        pixels = (picture.to(self._classes().device).clamp(0, 1) * 255).round().byte()
        with torch.inference_mode():
            return self.network(pixels)[0].float().cpu().numpy()

    def _classes(self) -> Tensor:
        """Return the weight (C,D) of the last layer. By convention the Inception score ignores its bias."""
        return self.network.get_parameter("fc.weight").detach()

    def _scores(self, method: str, pairs: Sequence[int]) -> dict[str, float]:
        seen = [self._seen[pair, method] for pair in pairs]
        composites = torch.from_numpy(np.stack([features for _, _, features in seen])).double()
        truths = torch.from_numpy(np.stack([self._truths[key] for _, key, _ in seen])).double()
        logits = composites @ self._classes().cpu().double().T
        return {"fid": frechet_distance(composites, truths), "inception_score": inception_score(logits)}

    def _state(self) -> dict[str, Any]:
        """Return the rows and features as plain arrays."""
        return {
            "rows": np.array(json.dumps([(*row[:-1], key) for row, key, _ in self._seen.values()])),
            "composites": np.array([features for _, _, features in self._seen.values()], np.float32),
            "truth_keys": np.array(json.dumps(list(self._truths))),
            "truths": np.array(list(self._truths.values()), np.float32),
        }

    def _add(self, state: Mapping[str, np.ndarray]) -> None:
        for (*row, key), features in zip(json.loads(state["rows"].item()), state["composites"], strict=True):
            added = Row._make([*row, {}])
            self._seen[added.pair, added.method] = added, key, features
        self._truths.update(zip(json.loads(state["truth_keys"].item()), state["truths"], strict=True))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance of Gaussians fitted to two sets of features (N,D), float64; 0 for equal sets."""
    both = torch.cat([first, second])
    if both.shape[0] < both.shape[1]:  # project onto the subspace that they span: the same distance, far faster
        basis = torch.linalg.qr(both.T).Q  # (D, number of rows)
        first, second = first @ basis, second @ basis
    metric = FrechetInceptionDistance(_Given(first.shape[1]), sync_on_compute=False)
    metric.update(first, real=False)
    metric.update(second, real=True)
    return max(0.0, float(metric.compute()))  # rounding can make it negative


def inception_score(logits: Tensor) -> float:
    """Return exp of the mean KL divergence of each image's classes from their mean. logits: (N,C). Range: 1 to C.

    One split instead of the usual ten, which are meant for 50,000 images and make the score depend on their order.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # even a single split is shuffled
        warnings.simplefilter("ignore", UserWarning)  # about memory, and that one split has no standard deviation
        torch.manual_seed(0)
        metric = InceptionScore(_Given(logits.shape[1]), splits=1, sync_on_compute=False)
        metric.update(logits)
        return float(metric.compute()[0])


class _Given(nn.Identity):
    """Replaces the network of a torchmetrics metric: its input is already the features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _gathered(own: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the values of all ranks on rank 0, an empty list on the others."""
    parts: list[dict[str, Any]] | None = None
    if distributed.get_rank() == 0:
        parts = [{}] * distributed.get_world_size()
    distributed.gather_object(own, parts)
    return parts or []


def _fetch(metrics: str, url: str) -> None:
    """Download weights into torch.hub's folder unless present. Raises UserError if that fails.

    The libraries could download them too, but they print messages and do not verify an existing file.
    """
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    digest = path.stem.rpartition("-")[2]  # the name ends in the first digits of the SHA-256
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest)
        except (OSError, RuntimeError) as error:  # no network, no space, a download cut off
            raise UserError(
                f"no weights for {metrics}: {name} could not be downloaded ({error});"
                f" get {url} and put it at {path}, or leave {metrics} out"
            ) from None
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest):
        raise UserError(f"damaged or other weights for {metrics}: {path}; remove it; it is then downloaded again")
