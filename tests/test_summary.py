"""Means and intervals: hand-computed values, other algorithms, and invariances."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.summary import ALL, BINS, Estimate, Key, Row, differences, summarise


def row(pair, method="a", image=None, bin_=BINS[0], border="any", **scores):
    return Row(pair, image or f"{pair}.png", "mask.png", bin_, border, 0.05, method, scores)


def of_values(values, **rest):
    """Return a row for each value, each of a different image."""
    return [row(pair, psnr=float(value), **rest) for pair, value in enumerate(values)]


def noise(count, seed=0):
    return np.random.default_rng(seed).normal(20, 3, count)


def test_means_and_counts_by_hand():
    rows = [
        row(0, bin_=BINS[0], border="free", psnr=20.0, ssim=0.5),
        row(1, bin_=BINS[0], border="free", psnr=22.0),
        row(2, bin_=BINS[0], border="any", psnr=30.0),
        row(3, bin_=BINS[4], border="any", psnr=12.0),
        row(4, bin_="", border="any", psnr=1.0),  # a ratio outside all bins
        row(0, "b", bin_=BINS[0], border="free", psnr=7.0),
    ]
    found = {key: (estimate.mean, estimate.count) for key, estimate in summarise(rows).items()}
    psnr = {
        (BINS[0], "free"): (21, 2),
        (BINS[0], "any"): (30, 1),
        (BINS[0], ALL): (24, 3),
        (BINS[4], "any"): (12, 1),
        (BINS[4], ALL): (12, 1),
        (ALL, "free"): (21, 2),
        (ALL, "any"): (pytest.approx(43 / 3), 3),
        (ALL, ALL): (17, 5),
    }
    groups_of_pair_0 = [(BINS[0], "free"), (BINS[0], ALL), (ALL, "free"), (ALL, ALL)]
    assert found == {
        **{Key("a", "psnr", *group): value for group, value in psnr.items()},
        **{Key("a", "ssim", *group): (0.5, 1) for group in groups_of_pair_0},
        **{Key("b", "psnr", *group): (7, 1) for group in groups_of_pair_0},
    }


@pytest.mark.parametrize("rows", [[], [row(0)]], ids=["no row", "no score"])
def test_nothing_has_no_estimates(rows):
    assert summarise(rows) == {}
    assert differences(rows, "a") == {}


def test_a_single_image_has_no_interval():
    """Two pairs of one image give no information about other images."""
    rows = [row(0, image="one", psnr=20.0), row(1, image="one", psnr=30.0), row(2, "b", image="two", psnr=1.0)]
    assert summarise(rows)[Key("a", "psnr", ALL, ALL)] == Estimate(25, None, None, 2)


def test_interval_is_near_the_normal_approximation():
    values = noise(400)
    estimate = summarise(of_values(values))[Key("a", "psnr", ALL, ALL)]
    half = 1.96 * values.std() / 20
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_is_near_a_plain_bootstrap_of_skewed_values():
    rng = np.random.default_rng(1)
    values = rng.exponential(size=40)
    low, high = np.percentile([rng.choice(values, 40).mean() for _ in range(4000)], [2.5, 97.5])
    estimate = summarise(of_values(values))[Key("a", "psnr", ALL, ALL)]
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert estimate.high - estimate.mean > 1.1 * (estimate.mean - estimate.low)  # asymmetric, like the values


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    names = [f"data set {i}" for i in range(400)]
    rows = [row(pair, name, psnr=rng.normal()) for pair in range(60) for name in names]
    summary = summarise(rows)
    ends = [summary[Key(name, "psnr", ALL, ALL)] for name in names]
    coverage = np.mean([end.low <= 0 <= end.high for end in ends])
    assert 0.91 < coverage < 0.975


def test_pairs_of_one_image_are_drawn_together():
    """Copies of each pair add no information, so the interval keeps its width."""
    once = of_values(noise(50))
    copies = [copy._replace(pair=copy.pair + 50 * k) for copy in once for k in range(9)]
    assert summarise(copies)[Key("a", "psnr", ALL, ALL)] == pytest.approx(
        summarise(once)[Key("a", "psnr", ALL, ALL)]._replace(count=450)
    )


def test_images_with_more_pairs_weigh_more():
    """Means of resamples are over pairs. By hand: of two images, a quarter of the resamples has only the second."""
    rows = [row(0, image="one", psnr=0.0), *(row(pair, image="two", psnr=8.0) for pair in range(1, 4))]
    assert summarise(rows)[Key("a", "psnr", ALL, ALL)] == Estimate(6, 0, 8, 4)
    rows = [row(pair, image=f"{min(pair, 19)}", psnr=float(pair >= 19)) for pair in range(39)]
    high = summarise(rows)[Key("a", "psnr", ALL, ALL)].high
    assert high == pytest.approx(3 * 20 / (3 * 20 + 17))  # 97.5 %: the image of 20 pairs is drawn 3 of 20 times


def test_a_resample_without_pairs_of_a_method_is_not_a_zero():
    """Method b has only two of twenty images: most resamples contain none or one of them."""
    rows = [*of_values(noise(20)), row(0, "b", psnr=20.0), row(1, "b", psnr=22.0)]
    assert summarise(rows)[Key("b", "psnr", ALL, ALL)] == Estimate(21, 20, 22, 2)


def test_the_order_of_rows_does_not_matter():
    values = noise(30)
    rows = [row(pair, method, psnr=values[pair] + len(method)) for pair in range(30) for method in ("a", "bb")]
    shuffled = [rows[i] for i in np.random.default_rng(3).permutation(len(rows))]
    assert summarise(shuffled) == summarise(rows)
    assert differences(shuffled, "a") == differences(rows, "a")


def two_methods():
    a, b = noise(30), noise(30, seed=1)
    return [row(pair, name, psnr=value[pair]) for name, value in (("a", a), ("b", b)) for pair in range(30)]


def test_swapping_the_names_of_two_methods_swaps_the_table():
    rows, swap = two_methods(), {"a": "b", "b": "a"}
    before, after = summarise(rows), summarise([row._replace(method=swap[row.method]) for row in rows])
    assert len(before) == 8
    for key, estimate in before.items():
        assert after[key._replace(method=swap[key.method])] == pytest.approx(estimate)


def test_differences_by_hand():
    rows = [row(0, psnr=20.0, ssim=0.5), row(1, psnr=24.0), row(2, psnr=90.0)]
    rows += [
        row(0, "b", psnr=21.0),
        row(1, "b", psnr=27.0, ssim=0.1),
        row(3, "b", psnr=0.0),
    ]  # both methods have pairs 0 and 1
    found = differences(rows, "a")
    assert found[Key("b", "psnr", ALL, ALL)] == Estimate(2, 1, 3, 2)
    assert {key.method for key in found} == {"b"}
    assert {key.metric for key in found} == {"psnr"}


def test_differences_change_their_sign_with_the_order():
    rows = two_methods()
    one, other = differences(rows, "a"), differences(rows, "b")
    assert len(one) == len(other) == 4
    for key, (mean, low, high, count) in one.items():
        assert other[key._replace(method="a")] == pytest.approx(Estimate(-mean, -high, -low, count))


def test_a_difference_is_surer_than_two_means():
    """Differences are paired, so that the difficulty of an image cancels."""
    values = noise(30)
    rows = [row(pair, name, psnr=values[pair] + shift) for name, shift in (("a", 0), ("b", 0.5)) for pair in range(30)]
    assert differences(rows, "a")[Key("b", "psnr", ALL, ALL)] == pytest.approx(Estimate(0.5, 0.5, 0.5, 30))
