"""L1, PSNR and SSIM of a composite against the truth, as the paper reports them (§4.3)."""

from __future__ import annotations

import numpy as np

# A picture without any error has no finite PSNR; 8-bit pictures can't be told apart beyond this anyway.
PSNR_CEILING = 100.0


def picture_metrics(composite: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """L1 in percent, PSNR in dB, SSIM of one picture; both float (H,W,3) in [0,1], at least 11 px high and wide."""
    return {"l1_percent": l1_percent(composite, truth), "psnr": psnr(composite, truth), "ssim": ssim(composite, truth)}


def l1_percent(composite: np.ndarray, truth: np.ndarray) -> float:
    """Mean |difference| over all pixels and channels, in percent of the range."""
    return 100 * float(np.mean(np.abs(composite - truth), dtype=np.float64))


def psnr(composite: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for a range of 1; at most PSNR_CEILING."""
    mse = float(np.mean(np.square(composite - truth), dtype=np.float64))
    return min(PSNR_CEILING, -10 * float(np.log10(max(mse, 1e-30))))


def ssim(composite: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of Wang et al. 2004: Gaussian window of 11×11 px, sigma 1.5, mean over channels."""
    from skimage.metrics import structural_similarity  # a second to import: only where a metric is asked for

    value = structural_similarity(
        composite, truth, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(value)
