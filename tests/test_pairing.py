"""Pairing of images and masks, resizing to one size, and the file that stores the pairs."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.mask_files import HOLE_BINS, bin_name, border_width, keeps_border, write_mask
from evaluation.pairing import (
    EvaluationPair,
    MaskFile,
    format_pairs,
    make_pairs,
    names_of,
    read_pair,
    read_pairs,
    survey_masks,
)
from utils.errors import UserError


def masks_of(per_cell, bins=range(6), borders=("free", "any")):
    cells = [(index, border) for index in bins for border in borders]
    return [
        MaskFile(f"{index}{border}{k}.png", HOLE_BINS[index][1] - 0.01, border)
        for index, border in cells
        for k in range(per_cell)
    ]


def test_every_image_meets_one_mask_of_every_bin_and_border():
    pairs = make_pairs(["a", "b", "c"], masks_of(5), seed=0)
    assert [pair.pair for pair in pairs] == list(range(36))
    for image in "abc":
        met = [(pair.bin, pair.border) for pair in pairs if pair.image == image]
        assert met == [(bin_name(index), border) for index in range(6) for border in ("free", "any")]
    for pair in pairs:
        assert pair.mask.startswith(f"{[bin_name(i) for i in range(6)].index(pair.bin)}{pair.border}")


def test_a_bin_without_masks_is_left_out():
    pairs = make_pairs(["a"], [*masks_of(1, bins=[2], borders=["any"]), MaskFile("x", 0.7, "any")], seed=0)
    assert pairs == [EvaluationPair(0, "a", "2any0.png", "0.2-0.3", "any", 0.29)]


def test_a_mask_is_a_function_of_seed_image_and_bin():
    images = [f"{i}" for i in range(20)]
    pairs = make_pairs(images, masks_of(50), seed=0)
    assert make_pairs(images[:7], masks_of(50), seed=0) == pairs[: 7 * 12]
    one_bin = make_pairs(images, masks_of(50, bins=[3], borders=["any"]), seed=0)
    assert [pair.mask for pair in one_bin] == [
        pair.mask for pair in pairs if (pair.bin, pair.border) == ("0.3-0.4", "any")
    ]
    assert [pair.mask for pair in make_pairs(images, masks_of(50), seed=1)] != [pair.mask for pair in pairs]


def test_every_mask_comes_once_before_one_comes_twice():
    pairs = make_pairs([f"{i}" for i in range(25)], masks_of(10, bins=[0], borders=["any"]), seed=3)
    masks = [pair.mask for pair in pairs]
    assert len(set(masks[:10])) == len(set(masks[10:20])) == 10
    assert masks[:10] != masks[10:20]
    assert set(Counter(masks).values()) == {2, 3}


def test_bins_have_orders_of_their_own():
    pairs = make_pairs([f"{i}" for i in range(20)], masks_of(20), seed=0)
    orders = {
        tuple(p.mask[-6:] for p in pairs if (p.bin, p.border) == cell) for cell in {(p.bin, p.border) for p in pairs}
    }
    assert len(orders) == 12


def test_no_mask_in_any_bin():
    with pytest.raises(UserError, match=r"none of the 2 masks .* from 0\.005 to 0\.900"):
        make_pairs(["a"], [MaskFile("x", 0.9, "any"), MaskFile("y", 0.005, "any")], seed=0)


def square(size, top, left, side):
    mask = np.ones((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 0
    return mask


def test_border_of_a_mask():
    assert [border_width(size) for size in (512, 256, 64)] == [50, 25, 7]
    assert keeps_border(square(64, 7, 7, 50))
    for top, left in ((6, 7), (7, 6), (8, 7), (7, 8)):
        assert not keeps_border(square(64, top, left, 50))


def test_survey_measures_masks_and_believes_an_index(tmp_path):
    write_mask(tmp_path / "a.png", square(64, 20, 20, 16))
    write_mask(tmp_path / "b.png", square(64, 0, 20, 32))
    assert survey_masks(tmp_path, "black", None) == [MaskFile("a.png", 1 / 16, "free"), MaskFile("b.png", 0.25, "any")]
    assert [m.ratio for m in survey_masks(tmp_path, "white", None)] == [15 / 16, 0.75]
    # A mask of the `anywhere` kind can be away from the edge by chance.
    (tmp_path / "index.csv").write_text("file,ratio,bin,border\na.png,0.06,0.01-0.1,0\nb.png,0.25,0.2-0.3,7\n")
    assert [m.border for m in survey_masks(tmp_path, "black", None)] == ["any", "free"]
    (tmp_path / "index.csv").write_text("name\na.png\n")
    with pytest.raises(UserError, match="index"):
        survey_masks(tmp_path, "black", None)


def test_survey_measures_masks_as_they_are_met(tmp_path):
    wide = np.ones((32, 64), np.uint8)
    wide[:, :16] = 0  # cropped when the mask becomes a square
    wide[8:16, 24:40] = 0
    write_mask(tmp_path / "a.png", wide)
    assert survey_masks(tmp_path, "black", 32)[0].ratio == 8 * 16 / 32**2


def test_survey_of_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no masks in the folder"):
        survey_masks(tmp_path, "black", None)


def test_pairs_come_back_from_their_file(tmp_path):
    path = tmp_path / "pairs.csv"
    pairs = [
        EvaluationPair(0, 'a, "b"\nc.png', "ä.png", "0.1-0.2", "free", 0.1 + 0.2 / 3),
        EvaluationPair(1, "sub/x\udcff.png", "m.png", "", "any", 0.7),
    ]
    path.write_text(format_pairs(pairs), encoding="utf-8", errors="surrogateescape", newline="")
    assert read_pairs(path) == pairs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line"),
        ("a,b\n1,2\n", "first line"),
        ("pair,image,mask,bin,border,ratio\n", "no pairs"),
        ("pair,image,mask,bin,border,ratio\n0,a,b,0.1-0.2,any,x\n", "could not convert"),
        ("pair,image,mask,bin,border,ratio\n0,a,b,0.1-0.2\n", "float"),
        ("pair,image,mask,bin,border,ratio\n5,a,b,0.1-0.2,any,0.1\n", "line 2"),
        ("pair,image,mask,bin,border,ratio\n0,a,b,0.1-0.3,any,0.1\n", "line 2"),
        ("pair,image,mask,bin,border,ratio\n0,a,b,0.1-0.2,near,0.1\n", "line 2"),
    ],
)
def test_a_file_that_holds_no_pairs(tmp_path, text, words):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        read_pairs(tmp_path / "pairs.csv")


def test_names_are_relative_to_the_folder(tmp_path):
    inside, outside = str(tmp_path / "in" / "sub" / "a.png"), str(tmp_path / "b.png")
    assert names_of([inside, outside], tmp_path / "in") == {"sub/a.png": inside, outside: outside}


def test_a_pair_has_the_size_of_its_mask_or_the_one_asked_for(tmp_path):
    ramp = np.zeros((40, 80, 3), np.uint8)
    ramp[:, :40, 0], ramp[:, 40:, 0] = 255, 51
    Image.fromarray(ramp).save(tmp_path / "image.png")
    write_mask(tmp_path / "mask.png", square(32, 4, 8, 16)[:24])
    image, mask = read_pair(str(tmp_path / "image.png"), tmp_path / "mask.png", "black", None)
    assert image.shape == (24, 32, 3)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(mask, square(32, 4, 8, 16)[:24])
    np.testing.assert_allclose(image[12, [2, 29], 0], [1, 0.2], rtol=1e-6)
    image, mask = read_pair(str(tmp_path / "image.png"), tmp_path / "mask.png", "black", 48)
    assert image.shape == (48, 48, 3)
    assert mask.shape == (48, 48)
    assert set(np.unique(mask)) == {0, 1}


def test_a_mask_without_hole_or_too_small(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    write_mask(tmp_path / "mask.png", np.ones((32, 32), np.uint8))
    with pytest.raises(UserError, match="no black pixel"):
        read_pair(str(tmp_path / "image.png"), tmp_path / "mask.png", "black", None)
    write_mask(tmp_path / "mask.png", square(15, 4, 4, 4))
    with pytest.raises(UserError, match="at least 16"):
        read_pair(str(tmp_path / "image.png"), tmp_path / "mask.png", "black", None)
