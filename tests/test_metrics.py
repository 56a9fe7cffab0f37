"""L1, PSNR and SSIM: values by hand and from a second implementation."""

import numpy as np
import pytest
from skimage import metrics

from utils.metrics import PSNR_CEILING, l1_percent, picture_metrics, psnr, ssim
from utils.pictures import COLUMNS, sheet


def pictures(seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random((48, 40, 3)).astype(np.float32)
    return np.clip(truth + rng.normal(0, 0.1, truth.shape), 0, 1).astype(np.float32), truth


def test_by_hand():
    truth = np.full((16, 16, 3), 0.25, np.float32)
    changed = truth.copy()
    changed[:8] += 0.5  # half of the picture by a half
    assert l1_percent(changed, truth) == pytest.approx(25)
    assert psnr(changed, truth) == pytest.approx(-10 * np.log10(0.125))


def test_psnr_equals_scikit_image():
    composite, truth = pictures()
    assert psnr(composite, truth) == pytest.approx(metrics.peak_signal_noise_ratio(truth, composite, data_range=1))


def test_ssim_of_two_flat_pictures_by_hand():
    """Without variance SSIM is (2ab + C1) / (a² + b² + C1), C1 = 0.01²."""
    a, b = np.full((16, 16, 3), 0.2), np.full((16, 16, 3), 0.6)
    assert ssim(a, b) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4))


def test_ssim_of_one_window_by_hand():
    """Of 11×11 px all but the centre is border: one window, weighed by a Gaussian of sigma 1.5."""
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 11, 11))
    distance = np.arange(-5, 6) ** 2
    weights = np.exp(-(distance[:, None] + distance) / (2 * 1.5**2))
    weights /= weights.sum()
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    assert ssim(np.stack([a] * 3, 2), np.stack([b] * 3, 2)) == pytest.approx(expected)


def test_a_perfect_picture():
    _, truth = pictures()
    assert picture_metrics(truth, truth) == {"l1_percent": 0, "psnr": PSNR_CEILING, "ssim": pytest.approx(1)}


def test_sheet_shows_every_picture_where_its_title_says():
    rows = [[np.full((32, 32, 3), (row * 5 + column) / 10, np.float32) for column in range(5)] for row in range(2)]
    picture = sheet(rows)
    assert len(COLUMNS) == 5
    assert picture.dtype == np.uint8
    for row in range(2):
        for column in range(5):
            pixel = picture[16 + row * 36 + 16, column * 36 + 16]
            assert pixel.tolist() == [round((row * 5 + column) / 10 * 255)] * 3
