"""L1, PSNR and SSIM: hand-computed values and a second implementation."""

import numpy as np
import pytest
import torch
from skimage import metrics
from torchmetrics.functional import mean_absolute_error
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from evaluation.metrics import PSNR_CEILING, hole_metrics, l1_percent, picture_metrics, psnr, ssim
from evaluation.pictures import COLUMNS, sheet


def pictures(seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random((48, 40, 3)).astype(np.float32)
    return np.clip(truth + rng.normal(0, 0.1, truth.shape), 0, 1).astype(np.float32), truth


def test_by_hand():
    truth = np.full((16, 16, 3), 0.25, np.float32)
    changed = truth.copy()
    changed[:8] += 0.5  # half of the image changes by 0.5
    assert l1_percent(changed, truth) == pytest.approx(25)
    assert psnr(changed, truth) == pytest.approx(-10 * np.log10(0.125))


def test_psnr_equals_scikit_image():
    composite, truth = pictures()
    assert psnr(composite, truth) == pytest.approx(metrics.peak_signal_noise_ratio(truth, composite, data_range=1))


def test_ssim_of_two_flat_pictures_by_hand():
    """Without variance, SSIM is (2ab + C1) / (a² + b² + C1), C1 = 0.01²."""
    a, b = np.full((16, 16, 3), 0.2), np.full((16, 16, 3), 0.6)
    assert ssim(a, b) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4))


def test_ssim_of_one_window_by_hand():
    """In 11×11 px only the centre is no border: one window, with Gaussian weights of sigma 1.5."""
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
    perfect = {"l1_percent": 0, "psnr": PSNR_CEILING, "ssim": pytest.approx(1)}
    assert picture_metrics(truth, truth) | perfect == picture_metrics(truth, truth)


def test_sheet_shows_every_picture_where_its_title_says():
    rows = [[np.full((32, 32, 3), (row * 5 + column) / 10, np.float32) for column in range(5)] for row in range(2)]
    picture = sheet(rows)
    assert len(COLUMNS) == 5
    assert picture.dtype == np.uint8
    for row in range(2):
        for column in range(5):
            pixel = picture[16 + row * 36 + 16, column * 36 + 16]
            assert pixel.tolist() == [round((row * 5 + column) / 10 * 255)] * 3


def test_the_hole_alone_by_hand():
    truth = np.full((32, 32, 3), 0.25, np.float32)
    mask = np.ones((32, 32), np.uint8)
    mask[8:16, 8:24] = 0
    changed = truth.copy()
    changed[8:16, 8:16] += 0.5  # half of the hole
    scores = hole_metrics(changed, truth, mask)
    assert scores["hole_l1_percent"] == pytest.approx(25)
    assert scores["hole_psnr"] == pytest.approx(-10 * np.log10(0.125))
    assert l1_percent(changed, truth) == pytest.approx(25 * 8 * 16 / 32**2)


def test_ssim_of_the_hole_is_the_mean_of_the_map_there():
    composite, truth = pictures()
    full = metrics.structural_similarity(
        composite, truth, data_range=1, channel_axis=2, gaussian_weights=True, use_sample_covariance=False, full=True
    )[1]
    mask = np.ones((48, 40), np.uint8)
    mask[0:7, 3:20] = 0  # includes windows that extend beyond the image
    assert hole_metrics(composite, truth, mask)["hole_ssim"] == pytest.approx(full[0:7, 3:20].mean())
    assert ssim(composite, truth) == pytest.approx(full[5:-5, 5:-5].mean())


def test_a_perfect_hole():
    _, truth = pictures()
    mask = np.ones((48, 40), np.uint8)
    mask[10:20, 10:20] = 0
    perfect = {"hole_l1_percent": 0, "hole_psnr": PSNR_CEILING, "hole_ssim": pytest.approx(1)}
    assert hole_metrics(truth, truth, mask) | perfect == hole_metrics(truth, truth, mask)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4])
def test_a_second_library_agrees(noise):
    """Compares with torchmetrics to 1e-4, only over SSIM windows inside the image: its mean includes all."""
    rng = np.random.default_rng(2)
    truth = np.clip(np.cumsum(rng.normal(0.01, 0.1, (61, 47, 3)), axis=0), 0, 1).astype(np.float32)
    composite = truth.copy()
    composite[20:45, 10:30] = np.clip(truth + rng.normal(0, noise, truth.shape), 0, 1)[20:45, 10:30]
    ours = picture_metrics(composite, truth)
    x, y = (torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous() for picture in (composite, truth))
    _, ssim_map = structural_similarity_index_measure(
        x, y, sigma=1.5, kernel_size=11, data_range=1.0, return_full_image=True
    )
    theirs = {
        "l1_percent": 100 * float(mean_absolute_error(x, y)),
        "psnr": float(peak_signal_noise_ratio(x, y, data_range=1.0)),
        "ssim": float(ssim_map[..., 5:-5, 5:-5].mean()),
    }
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=0, abs=1e-4)
    assert ours["ssim"] < 0.9999  # not the trivial case
