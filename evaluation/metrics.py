"""L1, PSNR and SSIM of a composite against the truth, as the paper reports them (§4.3), and over the hole alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from skimage.metrics import structural_similarity


class Metric(NamedTuple):
    """How a metric is shown, and which way is better."""

    label: str
    digits: int  # behind the decimal point
    higher_is_better: bool
    extra: bool = False  # by a network of others, measured where --extra asks for it


# All that is known of a composite, in the order in which it is shown. The names are those of files and of the code.
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

# A picture without any error has no finite PSNR; 8-bit pictures can't be told apart beyond this anyway.
PSNR_CEILING = 100.0

SSIM_RADIUS = 5  # px around the centre of its window


def picture_metrics(composite: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """L1 in percent, PSNR in dB, SSIM of one picture; both float (H,W,3) in [0,1], at least 11 px high and wide."""
    return {"l1_percent": l1_percent(composite, truth), "psnr": psnr(composite, truth), "ssim": ssim(composite, truth)}


def hole_metrics(composite: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The same three over the hole alone. mask: (H,W), 0 = hole, with at least one pixel of hole."""
    hole = mask == 0
    return {
        "hole_l1_percent": l1_percent(composite[hole], truth[hole]),
        "hole_psnr": psnr(composite[hole], truth[hole]),
        "hole_ssim": float(ssim_map(composite, truth)[hole].mean(dtype=np.float64)),
    }


def l1_percent(composite: np.ndarray, truth: np.ndarray) -> float:
    """Mean |difference| over all pixels and channels, in percent of the range."""
    return 100 * float(np.mean(np.abs(composite - truth), dtype=np.float64))


def psnr(composite: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for a range of 1; at most PSNR_CEILING."""
    mse = float(np.mean(np.square(composite - truth), dtype=np.float64))
    return float(np.minimum(PSNR_CEILING, -10 * np.log10(np.maximum(mse, 1e-30))))  # numpy's, as NaN stays NaN


def ssim(composite: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of Wang et al. 2004, the mean over the pixels whose window lies in the picture."""
    r = SSIM_RADIUS
    return float(ssim_map(composite, truth)[r:-r, r:-r].mean(dtype=np.float64))


def ssim_map(composite: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """SSIM at each pixel (H,W): Gaussian window of 11×11 px, sigma 1.5, mean over channels; mirrored at the edges."""
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
