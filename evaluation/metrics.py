"""L1, PSNR and SSIM of a composite against the truth, as the paper reports them (§4.3), and over only the hole."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from skimage.metrics import structural_similarity


class Metric(NamedTuple):
    """How a metric is displayed, and which direction is better."""

    label: str
    digits: int  # after the decimal point
    higher_is_better: bool
    extra: bool = False  # by a third-party network, measured only with --extra


# All metrics, in display order. Their names are used in files and code.
METRICS = {
    "l1_percent": Metric("L1 %", 2, False),
    "psnr": Metric("PSNR dB", 2, True),
    "ssim": Metric("SSIM", 3, True),
    "hole_l1_percent": Metric("L1 % in the hole", 2, False),
    "hole_psnr": Metric("PSNR dB in the hole", 2, True),
    "hole_ssim": Metric("SSIM in the hole", 3, True),
    "perceptual": Metric("VGG-16 distance", 4, False),
    "lpips": Metric("LPIPS", 4, False, extra=True),
    "fid": Metric("FID", 2, False, extra=True),
    "inception_score": Metric("Inception score", 2, True, extra=True),
}

# An image without error has infinite PSNR; differences beyond this are invisible in 8-bit images.
PSNR_CEILING = 100.0

SSIM_RADIUS = 5  # px, of its window


def picture_metrics(composite: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return L1 in percent, PSNR in dB and SSIM of one image. Both are float (H,W,3) in [0,1], at least 11×11 px."""
    return {"l1_percent": l1_percent(composite, truth), "psnr": psnr(composite, truth), "ssim": ssim(composite, truth)}


def hole_metrics(composite: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return the same three over only the hole. mask: (H,W), 0 = hole, with at least one hole pixel."""
    hole = mask == 0
    return {
        "hole_l1_percent": l1_percent(composite[hole], truth[hole]),
        "hole_psnr": psnr(composite[hole], truth[hole]),
        "hole_ssim": float(ssim_map(composite, truth)[hole].mean(dtype=np.float64)),
    }


def l1_percent(composite: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean |difference| over all pixels and channels, in percent of the range."""
    return 100 * float(np.mean(np.abs(composite - truth), dtype=np.float64))


def psnr(composite: np.ndarray, truth: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB for a range of 1; at most PSNR_CEILING."""
    mse = float(np.mean(np.square(composite - truth), dtype=np.float64))
    return float(np.minimum(PSNR_CEILING, -10 * np.log10(np.maximum(mse, 1e-30))))  # np.minimum and np.maximum keep NaN


def ssim(composite: np.ndarray, truth: np.ndarray) -> float:
    """Return structural similarity (Wang et al. 2004), the mean over pixels whose window is inside the image."""
    r = SSIM_RADIUS
    return float(ssim_map(composite, truth)[r:-r, r:-r].mean(dtype=np.float64))


def ssim_map(composite: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return SSIM per pixel (H,W): Gaussian window of 11×11 px, sigma 1.5, mean over channels, mirror padding."""
    _, similarity = structural_similarity(
        composite,
        truth,
        data_range=1.0,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return similarity.mean(2)
