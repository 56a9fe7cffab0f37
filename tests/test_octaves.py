"""Deep holes: filled on a downsampled image first."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convert
from data.samples import TrainingSamples
from model import PConvUNet, inpaint, load_for_prediction, load_model
from model.octaves import OctaveFiller, deeper_than, largest_radius, trusted_radius, write
from tests.test_predict import noise, run, save, save_mask, weights  # noqa: F401, two are fixtures
from utils.checkpoint import save_weights


def network(base="push_pull", hole_radius=0.0):
    torch.manual_seed(0)
    net = PConvUNet(3, 4, base=base).eval()
    torch.nn.init.normal_(net.decoder[-1].conv.weight, std=0.02)
    net.hole_radius.fill_(hole_radius)
    return net


def picture(height=150, width=190, hole=(20, 130, 30, 170)):
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, height, width)
    mask[..., hole[0] : hole[1], hole[2] : hole[3]] = 0
    return image, mask


def depth_of(valid):
    """Return the exact distance (px) of each pixel to the nearest valid one."""
    return cv2.distanceTransform((~valid).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


# --- depth of hole pixels ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.0005, 0.02), radius=st.integers(3, 20))
def test_deep_pixels_are_as_far_from_the_rim_as_the_radius(seed, share, radius):
    valid = np.random.default_rng(seed).random((60, 75)) < share
    deep, depth = deeper_than(torch.from_numpy(valid), radius).numpy(), depth_of(valid)
    if not valid.any():
        assert not deep.any()
        return
    assert (depth[deep] > radius - 1).all()
    assert deep[depth > 1.09 * radius + 1].all()


def test_nothing_is_deep_without_a_radius_or_without_anything_valid():
    hole = torch.zeros(9, 9, dtype=torch.bool)
    assert not deeper_than(hole, 2).any()
    hole[0, 0] = True
    assert deeper_than(hole, 2).any()
    for radius in (13, 1e9, math.inf):  # a padding of 1e9 px would not fit into any memory
        assert not deeper_than(hole, radius).any()


def test_the_largest_radius():
    _, mask = picture()
    assert largest_radius(mask[0, 0] > 0) == pytest.approx(55, abs=2)
    assert largest_radius(torch.ones(5, 5, dtype=torch.bool)) == 0


# --- results -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["none", "push_pull", "thin_plate"])
def test_only_pixels_deeper_than_a_quarter_of_the_radius_in_training_need_a_second_pass(base):
    image, mask = picture()
    single = inpaint(network(base), image, mask)
    assert torch.equal(inpaint(network(base, hole_radius=4 * 60), image, mask), single)
    assert torch.equal(inpaint(network(base, hole_radius=4 * 5), image, mask, scale=1), single)
    assert not torch.equal(inpaint(network(base, hole_radius=4 * 50), image, mask), single)
    assert not torch.equal(inpaint(network(base), image, mask, scale=3), single)


@pytest.mark.parametrize("scale", [1.5, 2, 7, 100])
def test_valid_pixels_stay_and_the_hole_is_filled(scale):
    image, mask = picture(151, 187)
    result = inpaint(network(), image.masked_fill(mask == 0, float("nan")), mask, scale)
    valid = mask.expand_as(image) == 1
    assert torch.equal(result[valid], image[valid])
    assert result.isfinite().all()
    assert (result >= 0).all()
    assert (result <= 1).all()


def test_a_plain_colour_goes_on_into_the_hole():
    image, mask = picture(151, 187)
    image[:] = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1)
    net = PConvUNet(3, 4, base="push_pull").eval()  # returns its base when untrained
    torch.testing.assert_close(inpaint(net, image, mask, scale=6), image)


def test_deep_down_the_fill_is_that_of_the_reduced_picture():
    """Without a base, the network receives no valid pixel in the middle of this hole and fills it with one colour."""
    net = PConvUNet(1, 4).eval()
    torch.nn.init.constant_(net.encoder[0].conv.weight, 0.01)
    torch.nn.init.constant_(net.decoder[0].conv.weight, 0.5 / 63)
    image, mask = picture()
    image[:] = 0.5 + 0.4 * torch.linspace(0, 1, 190)
    middle = (..., slice(70, 80), slice(50, 150))
    single, octaves = inpaint(net, image, mask)[middle], inpaint(net, image, mask, scale=20)[middle]
    assert single.std() == 0
    assert octaves.std() > 0.01


@pytest.mark.parametrize("hole_radius", [0, 40])
def test_as_many_ticks_as_parts(hole_radius):
    image, mask = picture()
    ticks = []
    filler = OctaveFiller(
        network(hole_radius=hole_radius),
        lambda box: image[box.slices],
        mask[0, 0] > 0,
        radius=12,
        tick=lambda: ticks.append(1),
    )
    list(filler)
    assert len(ticks) == len(filler)


@pytest.mark.parametrize("hole_radius", [0.1, 1, 4, 20])
def test_the_network_fills_even_if_its_training_holes_were_tiny(hole_radius):
    image, mask = picture()
    read = lambda box: image[box.slices]  # noqa: E731
    for radius in (
        trusted_radius(network(hole_radius=hole_radius), mask[0, 0] > 0, None),
        trusted_radius(network(), mask[0, 0] > 0, 1000),
    ):
        filler = OctaveFiller(network(), read, mask[0, 0] > 0, radius=radius)
        assert len(filler.filler) > 0
        ring = (mask[0, 0] == 0) & ~filler.deep
        assert largest_radius(~ring) >= 3  # a ring of 8 px


@pytest.mark.parametrize("place", [(300, 420), (0, 420), (568, 0)])
def test_only_the_surroundings_of_a_hole_are_read(place, monkeypatch):
    """The parts equal those of an image that is cut out around the hole."""
    monkeypatch.setattr("model.octaves._AROUND", 32)
    image = torch.rand(1, 3, 640, 900, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 640, 900)
    mask[..., place[0] : place[0] + 72, place[1] : place[1] + 60] = 0
    boxes = []
    read = lambda box: boxes.append(box) or image[box.slices]  # noqa: E731
    filler = OctaveFiller(network("thin_plate"), read, mask[0, 0] > 0, radius=12)
    result = image.clone()
    write(filler, result, mask == 0)
    assert max(box.pixels for box in boxes) < 0.3 * 640 * 900
    top, left = (max(0, start - 256) // 64 * 64 for start in place)
    cut = (..., slice(top, place[0] + 328), slice(left, place[1] + 316))
    part = image[cut].clone()
    write(
        OctaveFiller(network("thin_plate"), lambda box: image[cut][box.slices], mask[cut][0, 0] > 0, radius=12),
        part,
        mask[cut] == 0,
    )
    torch.testing.assert_close(part, result[cut], rtol=0, atol=1e-5)


@pytest.mark.parametrize("part", [(slice(None), slice(None)), (slice(0, 60), slice(0, 80))])
def test_a_hole_hardly_deeper_than_those_in_training_gets_the_mean_of_both_ways(part):
    """The hole's depth is 55 px. With holes of 40 px in training a single pass counts, with holes of 24 px not."""
    image, mask = picture()
    wanted = torch.zeros(150, 190, dtype=torch.bool)
    wanted[part] = mask[0, 0][part] == 0
    read = lambda box: image[box.slices]  # noqa: E731

    def filled(hole_radius):
        filler = OctaveFiller(network("thin_plate", hole_radius), read, mask[0, 0] > 0, wanted, hole_radius / 4)
        results = []
        for parts in (filler, filler._by_octaves()):
            results.append(image.clone())
            write(parts, results[-1], wanted[None, None])
        return results

    single = inpaint(network("thin_plate"), image, mask, scale=1).where(wanted, image)
    both, octaves = filled(hole_radius=40)
    torch.testing.assert_close(both, (single + octaves) / 2)
    assert not torch.equal(both, octaves)
    assert torch.equal(*filled(hole_radius=24))


@pytest.mark.parametrize("scale", [0.5, 0, -1, math.nan])
def test_a_scale_below_one_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be at least 1"):
        trusted_radius(network(), torch.ones(3, 3, dtype=torch.bool), scale)


# --- hole_radius in weights files --------------------------------------------------------------------------------


def test_weights_files_say_which_holes_their_network_knows(tmp_path):
    save_weights(tmp_path / "a.safetensors", network(hole_radius=37.5).state_dict())
    assert load_model(tmp_path / "a.safetensors").hole_radius == 37.5
    assert load_for_prediction(tmp_path / "a.safetensors").hole_radius == 37.5
    assert convert.main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--hole-radius", "20"]) == 0
    assert load_model(tmp_path / "b.safetensors").hole_radius == 20


def test_files_that_do_not_say_so_are_filled_in_a_single_pass(tmp_path):
    state = {key: value for key, value in network().state_dict().items() if key != "hole_radius"}
    save_weights(tmp_path / "old.safetensors", state)
    for load in (load_model, load_for_prediction):
        assert trusted_radius(load(tmp_path / "old.safetensors"), torch.ones(3, 3, dtype=torch.bool), None) == math.inf


def test_the_radius_of_training_masks(monkeypatch):
    samples = object.__new__(TrainingSamples)
    samples.seed = 0
    drawn = iter(range(1000))

    def mask(_):
        valid = np.ones((64, 64), np.uint8)
        cv2.circle(valid, (32, 32), 25 if next(drawn) < 5 else 9, 0, -1)
        return valid

    monkeypatch.setattr(samples, "_mask", mask, raising=False)
    assert samples.hole_radius(1000) == pytest.approx(10, abs=1.5)  # the few large ones do not count: a 99 % quantile


# --- predict.py --------------------------------------------------------------------------------------------------


def test_scale_of_predict(tmp_path, run):  # noqa: F811
    save(tmp_path / "image.png", noise(60, 70, 3))
    save_mask(tmp_path / "mask.png", 60, 70, hole=(slice(5, 55), slice(5, 65)))
    results = []
    for options in ((), ("--scale", "1"), ("--scale", "auto"), ("--scale", "4")):
        assert run(*options)[0] == 0
        results.append((tmp_path / "image_inpainted.png").read_bytes())
    assert results[0] == results[1] == results[2]  # this file stores no hole_radius
    assert results[3] != results[0]
    for wrong in ("0.5", "many", "nan"):
        with pytest.raises(SystemExit):
            run("--scale", wrong)
