"""The classical methods on images with a known answer."""

import numpy as np
import pytest

from evaluation.baselines import FILLS, mean_colour, version_of
from evaluation.scoring import composite_of


def ramp():
    """Return an image that rises evenly from left to right, with another offset in each channel."""
    across = np.linspace(0, 0.6, 40, dtype=np.float32)
    return np.stack([np.tile(across + start, (32, 1)) for start in (0, 0.1, 0.3)], 2)


def hole():
    mask = np.ones((32, 40), np.uint8)
    mask[8:20, 10:24] = 0
    return mask


@pytest.mark.parametrize(
    ("name", "worst"),
    [
        ("telea", 2.1 / 255),
        ("navier-stokes", 0),
        ("biharmonic", 0),
        ("push-pull", 1e-6),
        ("thin-plate", 1e-6),
        ("mean", 0),
    ],
)
def test_a_flat_picture_is_filled_flat(name, worst):
    flat = np.full((32, 40, 3), 0.2, np.float32)
    filled = FILLS[name](np.where(hole()[..., None] > 0, flat, np.float32(0)), hole())
    assert filled.dtype == np.float32
    np.testing.assert_allclose(filled, flat, atol=worst + 1e-6)


@pytest.mark.parametrize(
    ("name", "worst"), [("biharmonic", 0.001), ("thin-plate", 0.02), ("telea", 0.1), ("navier-stokes", 0.1)]
)
def test_a_ramp_is_continued(name, worst):
    """A ramp solves the biharmonic equation exactly; the others come close. The mean colour is off by at least 0.15."""
    known = np.where(hole()[..., None] > 0, ramp(), np.float32(0))
    assert np.abs(FILLS[name](known, hole()) - ramp()).max() < worst
    assert np.abs(mean_colour(known, hole()) - ramp()).max() > 0.1


def test_mean_colour_by_hand():
    image = np.zeros((4, 4, 3), np.float32)
    image[0] = (0.4, 0.8, 0.2)
    mask = np.ones((4, 4), np.uint8)
    mask[3] = 0
    filled = mean_colour(image, mask)
    np.testing.assert_allclose(filled[3], np.broadcast_to(np.float32([0.4, 0.8, 0.2]) / 3, (4, 3)), rtol=1e-6)
    np.testing.assert_array_equal(filled[:3], image[:3])


@pytest.mark.parametrize("name", FILLS)
def test_a_composite_keeps_the_valid_part_and_never_sees_the_hole(name):
    rng = np.random.default_rng(0)
    image = rng.random((32, 40, 3)).astype(np.float32)
    other = np.where(hole()[..., None] > 0, image, rng.random((32, 40, 3)).astype(np.float32))
    comp = composite_of(FILLS[name], image, hole())
    np.testing.assert_array_equal(comp[hole() > 0], image[hole() > 0])
    np.testing.assert_array_equal(comp, composite_of(FILLS[name], other, hole()))


def test_no_method_is_shown_what_the_hole_held():
    seen = []
    image = np.full((32, 40, 3), 0.7, np.float32)
    composite_of(lambda shown, mask: seen.append(shown) or shown, image, hole())
    np.testing.assert_array_equal(seen[0], np.where(hole()[..., None] > 0, np.float32(0.7), np.float32(0)) * np.ones(3))


@pytest.mark.parametrize("name", ["biharmonic", "thin-plate"])
def test_a_method_that_overshoots_stays_in_range(name):
    image = np.zeros((32, 40, 3), np.float32)
    image[:, ::2] = 1
    filled = FILLS[name](np.where(hole()[..., None] > 0, image, np.float32(0)), hole())
    assert filled.min() >= 0
    assert filled.max() <= 1


def test_versions_name_the_library():
    names = {name: version_of(name).split()[0] for name in FILLS}
    assert {
        name: names[name] for name in ("telea", "navier-stokes", "biharmonic", "push-pull", "thin-plate", "mean")
    } == {
        "telea": "OpenCV",
        "navier-stokes": "OpenCV",
        "biharmonic": "scikit-image",
        "push-pull": "torch",
        "thin-plate": "torch",
        "mean": "NumPy",
    }
    assert all(version_of(name).split()[1][0].isdigit() for name in FILLS)
