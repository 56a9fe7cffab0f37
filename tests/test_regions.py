"""Parts of an image: predictions equal those of the full image, and windows are no larger than needed."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import PConvUNet, inpaint
from model.base import push_pull
from model.composite import composite
from model.filler import Filler, surroundings
from model.foreign import ForeignUNet
from model.inpainting import predict_padded
from model.regions import Box, Span, part_of, parts_of, reach, seen, unet_within


def network(depth, base="none", base_channels=4):
    """Return a network with random weights in all layers, in float64, so that any dependence on a pixel is visible."""
    torch.manual_seed(0)
    net = PConvUNet(depth, base_channels, base=base).double().eval()
    for block in net.decoder:
        torch.nn.init.normal_(block.conv.weight, std=0.05)
    return net


def picture(height, width, holes, seed=0):
    """Return a noise image and a mask with the given holes, each (top, left, height, width)."""
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.ones(1, 1, height, width, dtype=torch.float64)
    for top, left, h, w in holes:
        mask[..., max(0, top) : max(0, top + h), max(0, left) : max(0, left + w)] = 0
    return image, mask


def difference(net, image, mask, largest=None):
    """Return the largest difference between parts and full image. Also checks that the parts cover all holes."""
    with torch.no_grad():
        whole = predict_padded(net, image, mask).clamp(0, 1)
    filled = torch.zeros_like(mask, dtype=torch.bool)
    worst = 0.0
    for box, values in Filler(net, lambda box: image[box.slices], mask[0, 0] != 0, largest=largest):
        worst = max(worst, float((values - whole[box.slices]).abs().max()))
        filled[box.slices] = True
    assert filled[mask == 0].all()
    return worst


# --- equal to the full image -------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["none", "push_pull", "thin_plate"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_hole_at_every_offset_of_the_strides(depth, base):
    net = network(depth, base)
    size = 3 * reach(net) + 37
    for offset in range(2**depth + 1):
        top, left = size // 2 + offset, size // 2 - 3 * offset
        image, mask = picture(size, size - 5, [(top, left, 5, 3)], seed=offset)
        assert difference(net, image, mask) < 1e-12


@pytest.mark.parametrize("base", ["none", "push_pull", "thin_plate"])
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_random_holes_sizes_and_edges(base, data):
    net = network(data.draw(st.integers(1, 4)), base)
    height, width = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
    length = st.sampled_from([1, 2, 9, 60, 200])
    place = st.tuples(st.integers(-8, height), st.integers(-8, width), length, length)
    image, mask = picture(height, width, data.draw(st.lists(place, max_size=5)))
    assert difference(net, image, mask, data.draw(st.sampled_from([1, 10_000, None]))) < 1e-12


def test_six_levels_in_float32_and_folded():
    torch.manual_seed(0)
    net = PConvUNet(6, 8, base="thin_plate")
    torch.nn.init.normal_(net.decoder[-1].conv.weight, std=0.003)  # output values up to 20
    net = net.eval().folded()
    image, mask = picture(700, 1100, [(300, 500, 70, 40), (0, 1000, 30, 100), (690, 3, 10, 10), (60, 60, 260, 290)])
    image, mask = image.float(), mask.float()
    with torch.no_grad():
        whole = composite(image, predict_padded(net, image, mask).clamp(0, 1), mask)
    torch.testing.assert_close(inpaint(net, image, mask), whole, rtol=0, atol=1e-5)


def test_networks_that_compute_as_another_projects():
    """The parts, too, use the image normalisation of the other project."""
    net = ForeignUNet(3, 4, batch_norm=True, ratio_twice=True).double().eval()
    net.mean += 0.4
    net.std *= 0.2
    image, mask = picture(200, 190, [(100, 90, 20, 10)])
    assert difference(net, image, mask) < 1e-12


def test_tiles_of_a_hole_that_covers_the_picture_are_the_whole():
    net = network(3, "thin_plate")
    image, mask = picture(300, 260, [(10, 10, 280, 245)])
    tiles = Filler(net, lambda box: image[box.slices], mask[0, 0] != 0, largest=120**2)
    assert len(tiles) > 4
    assert max(part.window.pixels for part in tiles.parts) <= 120**2
    assert difference(net, image, mask, largest=120**2) < 1e-12


# --- no more than the receptive field ----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_reach_is_tight(depth):
    """The farthest image pixel that changes a pixel of the result is exactly `reach` px away."""
    net = network(depth)
    size = 2 ** (depth + 1) * (reach(net) // 2**depth + 2)
    image, mask = picture(size, 2**depth, [])
    farthest = 0
    for row in range(size // 2, size // 2 + 2**depth):
        image.requires_grad_()
        (gradient,) = torch.autograd.grad(net.unet(image, mask)[0, :, row, 1].sum(), image)
        rows = gradient.abs().sum((0, 1, 3)).nonzero()[:, 0]
        start, stop = seen(net, Span(row, row + 1))
        assert start <= rows[0]
        assert rows[-1] < stop
        farthest = max(farthest, row - int(rows[0]), int(rows[-1]) - row)
    assert farthest == reach(net)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_window_less_by_one_step_gives_another_result(depth):
    net = network(depth)
    step = 2**depth
    size = 8 * reach(net) // step * step
    image, mask = picture(size, size, [(size // 2, size // 2, 3, 3)])
    box = Box(Span(size // 2, size // 2 + 3), Span(size // 2, size // 2 + 3))
    part = part_of(net, box, (size, size))
    with torch.no_grad():
        whole = net.unet(image, mask)[box.slices]
        changed = []
        for rows in (part.window.rows, Span(part.window.rows.start + step, part.window.rows.stop)):
            window = Box(rows, part.window.columns)
            values = unet_within(net, image[window.slices], mask[window.slices], part._replace(window=window))
            changed.append(float((values - whole).abs().max()))
    assert changed[0] < 1e-12
    assert changed[1] > 1e-9


def test_reach_of_the_papers_sizes():
    assert [reach(PConvUNet(depth, 1)) for depth in (6, 7, 8)] == [197, 389, 773]


def test_surroundings_of_the_base_are_enough_and_no_more_than_the_holes_ask():
    image, mask = picture(257, 300, [(100, 90, 40, 30)])
    box = Box(Span(100, 140), Span(90, 120))
    place = surroundings(mask[0, 0] > 0, box)
    filled = push_pull(image[place.slices], mask[place.slices])[box.relative_to(place)]
    # Equal to rounding: convolutions of another size sum in another order.
    torch.testing.assert_close(filled, push_pull(image, mask)[box.slices], rtol=0, atol=1e-6)
    assert place.pixels < 0.6 * 257 * 300
    _, smaller_hole = picture(257, 300, [(100, 90, 4, 3)])
    assert surroundings(smaller_hole[0, 0] > 0, box).pixels < place.pixels
    assert surroundings(torch.zeros(257, 300, dtype=torch.bool), box) == Box(Span(0, 257), Span(0, 300))


# --- how holes are grouped into parts ----------------------------------------------------------------------------


def boxes_of(net, holes, size=2048, largest=2**30):
    _, mask = picture(size, size, holes)
    return [part.box for part in parts_of(net, mask[0, 0] == 0, (size, size), largest)]


def test_near_holes_share_a_part_and_far_ones_do_not():
    net = PConvUNet(4, 1)
    assert boxes_of(net, []) == []
    assert boxes_of(net, [(1000, 1000, 50, 60)]) == [Box(Span(1000, 1050), Span(1000, 1060))]
    assert boxes_of(net, [(1000, 1000, 50, 60), (1010, 1070, 5, 9)]) == [Box(Span(1000, 1050), Span(1000, 1079))]
    assert len(boxes_of(net, [(0, 0, 50, 60), (1950, 1950, 50, 60), (0, 1950, 50, 60)])) == 3


def test_a_long_scratch_costs_little():
    net = PConvUNet(4, 1)
    _, mask = picture(2048, 2048, [(i, i, 4, 4) for i in range(0, 2044, 2)])
    parts = parts_of(net, mask[0, 0] == 0, (2048, 2048), 2**30)
    assert sum(part.window.pixels for part in parts) < 0.25 * 2048**2


def test_only_what_the_parts_need_is_read():
    net = network(3, "thin_plate")
    image, mask = picture(900, 900, [(400, 400, 20, 20)])
    read = []

    def cut(box):
        read.append(box)
        return image[box.slices]

    assert len(list(Filler(net, cut, mask[0, 0] != 0))) == 1
    assert sum(box.pixels for box in read) < 0.1 * 900**2


def test_random_places_of_many_holes():
    random.seed(0)
    net = network(2)
    holes = [(random.randrange(300), random.randrange(300), 4, 4) for _ in range(30)]
    image, mask = picture(300, 300, holes)
    assert difference(net, image, mask) < 1e-12
