"""The network's base, push_pull or thin_plate: hand-computed values, invariants of a fill, networks that use it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import hubconf
import model.base
from model import PConvUNet, inpaint, load_for_prediction, load_model
from model.base import CHEBYSHEV_STEPS, PLATE_STEPS, contrast, plate_reach, pull, push, push_pull, relax_, thin_plate
from model.network import RESIDUAL_LIMIT, architecture_of, with_base_in_decoder
from utils.checkpoint import save_weights

NAN, INF = float("nan"), float("inf")


def pair(height, width, share=0.5, seed=0, n=1):
    """Return a random image and a mask with at least one valid pixel."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, height, width, generator=generator)
    mask = (torch.rand(n, 1, height, width, generator=generator) < share).float()
    mask[..., seed % height, seed % width] = 1
    return image, mask


def grey(values):
    return torch.tensor(values, dtype=torch.float32).expand(1, 3, -1, -1)


def test_four_by_four_pixels_by_hand():
    image = grey([[1, 2, 3, 4], [5, 90, 90, 6], [7, 90, 90, 8], [9, 10, 90, 90]])
    mask = grey([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]])[:, :1]
    # Means of the valid pixels of each 2×2; each of them has a valid pixel.
    a, b, c, d = (1 + 2 + 5) / 3, (3 + 4 + 6) / 3, (7 + 9 + 10) / 3, 8
    bilinear = {
        (1, 1): (9 * a + 3 * b + 3 * c + d) / 16,
        (1, 2): (3 * a + 9 * b + c + 3 * d) / 16,
        (2, 1): (3 * a + b + 9 * c + 3 * d) / 16,
        (2, 2): (a + 3 * b + 3 * c + 9 * d) / 16,
        (3, 2): (c + 3 * d) / 4,  # at the edge there is no pixel below
        (3, 3): d,
    }
    wanted = image.clone()
    for (y, x), value in bilinear.items():
        wanted[..., y, x] = value
    torch.testing.assert_close(push_pull(image, mask), wanted)


def test_a_quarter_that_is_all_hole_by_hand():
    image = grey([[1, 1, 9, 9], [1, 1, 9, 9], [4, 4, 7, 7], [4, 4, 7, 7]])
    mask = grey([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])[:, :1]
    whole = (1 + 4 + 7) / 3  # mean of the valid ones, at one pixel; the quarter on the next finer level equals it
    filled = push_pull(image, mask)
    assert filled[0, 0, 0, 3].item() == pytest.approx(whole)
    assert filled[0, 0, 0, 2].item() == pytest.approx((1 + 3 * whole) / 4)
    assert filled[0, 0, 1, 2].item() == pytest.approx((3 * 1 + 9 * whole + 4 + 3 * 7) / 16)
    assert filled[0, 0, 1, 3].item() == pytest.approx((3 * whole + 7) / 4)


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 3) | st.integers(1, 70),
    width=st.integers(1, 3) | st.integers(1, 70),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    fill=st.sampled_from([push_pull, thin_plate]),
)
def test_what_any_fill_keeps(height, width, share, seed, fill):
    image, mask = pair(height, width, share, seed)
    filled = fill(image, mask)
    valid = mask.expand_as(image) == 1
    assert filled.shape == image.shape
    assert torch.equal(filled[valid], image[valid])
    for junk in (NAN, INF, -INF, 1e30):
        assert torch.equal(fill(image.masked_fill(mask == 0, junk), mask), filled)
    if fill is push_pull:
        for channel in range(3):  # means of means stay within the range of the valid values
            values = image[:, channel][mask[:, 0] == 1]
            assert values.min() - 1e-6 <= filled[:, channel].min()
            assert filled[:, channel].max() <= values.max() + 1e-6
    constant = torch.full_like(image, 0.3)
    torch.testing.assert_close(fill(constant, mask), constant, rtol=0, atol=1e-6 if fill is push_pull else 1e-5)


@pytest.mark.parametrize("fill", [push_pull, thin_plate])
def test_without_a_valid_pixel_all_is_0_and_no_other_picture_of_the_batch_changes(fill):
    image, mask = pair(20, 33, n=3)
    mask[1] = 0
    image = image.masked_fill(mask == 0, NAN)
    filled = fill(image, mask)
    assert not filled[1].any()
    for number in (0, 2):
        assert torch.equal(filled[number : number + 1], fill(image[number : number + 1], mask[number : number + 1]))


@pytest.mark.parametrize("fill", [push_pull, thin_plate])
def test_an_image_of_no_hole_comes_back(fill):
    image, mask = pair(31, 18, share=1.1)
    assert torch.equal(fill(image, mask), image)


@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, 5), (7, 3), (32, 64)])
def test_hole_beyond_the_edge_changes_little(down, right):
    """The padding is filled and then used in the interpolation, so it has some effect; on a gentle ramp it is small."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 40), indexing="ij")
    image = torch.stack([x, y, (x + y) / 2]).unsqueeze(0)
    mask = pair(48, 40, 0.3)[1]
    mask[..., 20:36, 24:40] = 0
    wide, wide_mask = (torch.nn.functional.pad(tensor, (0, right, 0, down)) for tensor in (image, mask))
    inside = push_pull(wide, wide_mask)[..., :48, :40]
    difference = (inside - push_pull(image, mask)).abs()
    assert difference.max() < 0.2
    assert difference.mean() < 0.01


def test_double_stays_double_and_half_becomes_float():
    image, mask = pair(9, 9)
    assert push_pull(image.double(), mask.double()).dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            assert push_pull(image.to(dtype), mask.to(dtype)).dtype == torch.float32


# --- the thin plate ------------------------------------------------------------------------------------------------


def biharmonic(image, mask):
    """Solve Δ²u = 0 in the holes of one channel (H,W) directly. Pixels beyond the edge equal the nearest one inside."""
    height, width = image.shape
    number = np.arange(height * width).reshape(height, width)
    laplacian = np.zeros((height * width, height * width))
    for y in range(height):
        for x in range(width):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < height and 0 <= u < width:
                    laplacian[number[y, x], number[v, u]] += 1
                    laplacian[number[y, x], number[y, x]] -= 1
    plate, hole = laplacian @ laplacian, mask.ravel() == 0
    solution = image.ravel().copy()
    solution[hole] = np.linalg.solve(plate[hole][:, hole], -plate[hole][:, ~hole] @ solution[~hole])
    return solution.reshape(height, width)


def test_a_thin_hole_becomes_the_thin_plate():
    y, x = torch.meshgrid(torch.linspace(0, 3, 24), torch.linspace(0, 4, 20), indexing="ij")
    image = (torch.sin(y) * torch.cos(x) / 2 + 0.5).double().expand(1, 3, 24, 20)
    mask = torch.ones(1, 1, 24, 20).double()
    mask[..., 10:13, 3:] = 0  # up to the edge
    mask[..., 2:5, 5:7] = 0
    plate = torch.from_numpy(biharmonic(image[0, 0].numpy(), mask[0, 0].numpy()))
    distances = [(fill(image, mask)[0, 0] - plate).abs().max().item() for fill in (push_pull, thin_plate)]
    assert distances[0] > 0.03
    assert distances[1] < 0.2 * distances[0], distances


def test_a_slope_continues_into_a_wide_hole():
    image = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    mask = torch.ones(1, 1, 64, 64)
    mask[..., 20:44, 20:44] = 0
    errors = [(fill(image, mask) - image).abs().mean().item() for fill in (push_pull, thin_plate)]
    assert errors[1] < 0.2 * errors[0]


def test_steps_are_the_chebyshev_iteration():
    """For one eigenvalue λ the error after n steps is T_n((c − λ)/d) / T_n(c/d), with centre c and half-width d."""
    centre, half = (64 + 64 / 50) / 2, (64 - 64 / 50) / 2
    chebyshev = np.polynomial.Chebyshev.basis(PLATE_STEPS)
    for value in (0.0, 0.5, 1.28, 10, 40, 64):
        error, direction = 1.0, 0.0
        for length, memory in CHEBYSHEV_STEPS:
            direction = memory * direction - value * error
            error += length * direction
        assert error == pytest.approx(chebyshev((centre - value) / half) / chebyshev(centre / half))


def test_only_the_part_around_the_holes_is_computed(monkeypatch):
    image, mask = pair(40, 50, n=2)
    mask[:] = 1
    mask[0, :, 12:20, 30:33] = mask[1, :, 30:36, 0:4] = 0
    sizes = []
    laplacian = model.base._laplacian
    monkeypatch.setattr(model.base, "_laplacian", lambda u: sizes.append(tuple(u.shape[2:])) or laplacian(u))
    part, whole = image.clone(), image.clone()
    relax_(part, mask == 0)
    assert set(sizes) == {(36 - 12 + 4, 33 + 2)}
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    relax_(whole, mask == 0)
    assert (40, 50) in sizes
    assert torch.equal(part, whole)
    assert (part - image).abs().max() > 0.1


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_reach_of_the_relaxed_levels(levels):
    """Across a hole, a valid pixel matters as far as the relaxed levels reach, plus a pixel of the coarsest."""
    image, mask = pair(16, 512)
    mask[:] = 1
    mask[..., :400] = 0
    image = image.double().expand(1, 3, 16, 512).clone()
    before = relaxed_part(image, mask.double(), levels)
    image[..., 400:] += 1
    changed = (relaxed_part(image, mask.double(), levels) - before).abs().amax((0, 1, 2)).nonzero()
    farthest = 400 - int(changed[0])
    assert plate_reach(levels) <= farthest < plate_reach(levels) + 2**levels


def test_far_from_the_rim_the_fill_is_close_to_push_pull():
    image, mask = pair(512, 512)
    mask[:] = 1
    mask[..., 100:412, 100:412] = 0
    difference = (thin_plate(image, mask) - push_pull(image, mask)).abs().amax(1)[0]
    far = 100 + plate_reach(3) + 2**3
    assert difference[far:-far, far:-far].max() < 1e-4
    assert difference.max() > 0.1


def relaxed_part(image, mask, levels):
    """Return thin_plate with a fixed level below its relaxed ones."""
    *finer, (below, _) = pull(image, mask, levels)
    return push(finer, torch.zeros_like(below), levels)


# --- contrast ------------------------------------------------------------------------------------------------------


def test_contrast_by_hand():
    image = grey([[1, 3, 90, 90, 7, 7], [1, 3, 90, 90, 7, NAN]]) / 10
    mask = grey([[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 0]])[:, :1]
    # Squares of 2 px: 1 and 3 tenths; no valid pixel; three equal ones. A middle is a quarter from the next square's.
    full, none, equal = 0.1, 1, 0
    wanted = [full, (3 * full + none) / 4, (full + 3 * none) / 4, (3 * none + equal) / 4, (none + 3 * equal) / 4, equal]
    torch.testing.assert_close(contrast(image, mask, 2), torch.tensor(wanted).expand(1, 3, 2, 6))


def test_few_valid_pixels_say_little():
    image, mask = grey([[2, 90], [90, 4]]) / 10, grey([[1, 0], [0, 1]])[:, :1]
    torch.testing.assert_close(contrast(image, mask, 2), torch.full((1, 3, 2, 2), 0.1 * 2**2))
    image, mask = grey([[2, 4, 90, 90]] + 3 * [[90] * 4]) / 100, grey([[1, 1, 0, 0]] + 3 * [[0] * 4])[:, :1]
    torch.testing.assert_close(contrast(image, mask, 4), torch.full((1, 3, 4, 4), 0.01 * 8**2))
    image[0, :, 0, 0] = -0.18
    torch.testing.assert_close(contrast(image, mask, 4), torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize("level", [0.1, 0.3, 0.9, 0.97])
def test_a_plain_image_has_no_contrast(level):
    """E(x²) − E(x)² would be off by a hundredth."""
    image, mask = torch.full((1, 3, 128, 128), level), pair(128, 128, 0.9)[1]
    assert contrast(image, mask, 64).max() < 1e-4


def test_what_the_network_adds_is_limited_by_the_contrast():
    net = trained_a_little("thin_plate")
    torch.nn.init.normal_(net.decoder[-1].conv.weight, std=10)
    image, mask = pair(16, 24, n=2)
    added = net(image, mask) - thin_plate(image, mask, 2)
    limit = RESIDUAL_LIMIT * contrast(image, mask, 4)
    assert (added.abs() <= limit + 1e-5).all()
    assert ((added.abs() - limit).abs() < 1e-5).float().mean() > 0.5  # it is reached
    plain = torch.full_like(image, 0.7)
    torch.testing.assert_close(net(plain, mask), plain, rtol=0, atol=1e-4)


# --- networks ------------------------------------------------------------------------------------------------------


BASES = ["push_pull", "thin_plate"]


def trained_a_little(base="push_pull", depth=2, base_channels=3):
    torch.manual_seed(0)
    net = PConvUNet(depth, base_channels, base)
    torch.nn.init.normal_(net.decoder[-1].conv.weight, std=0.1)
    net(*pair(16, 16, n=4))
    return net.eval()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("training", [True, False])
def test_an_untrained_network_returns_its_base(training, base):
    net = PConvUNet(3, 4, base).train(training)
    image, mask = pair(16, 24, n=2)
    image = image.masked_fill(mask == 0, NAN)
    assert torch.equal(net(image, mask), thin_plate(image, mask, net.plate_levels))
    assert net.plate_levels == (0 if base == "push_pull" else 3)


@pytest.mark.parametrize("base", BASES)
def test_the_output_is_base_and_u_net_added_and_both_get_no_junk(base):
    net = trained_a_little(base)
    image, mask = pair(16, 24, n=2)
    output = net(image, mask)
    fill = push_pull(image, mask) if base == "push_pull" else thin_plate(image, mask, 2)  # of two levels
    assert torch.equal(output, fill + net.unet(image, mask, fill))
    assert (output - fill).abs().max() > 1e-2
    assert torch.equal(net(image.masked_fill(mask == 0, INF), mask), output)


def test_the_last_layer_learns_from_its_start_at_0():
    net = PConvUNet(2, 3, base="push_pull")
    image, mask = pair(16, 16, n=2)
    (net(image, mask) - image).abs().mean().backward()
    assert net.decoder[-1].conv.weight.grad.abs().max() > 0


def test_a_decoder_that_reads_the_base_by_hand():
    """One level, all hole but a corner: its window holds the U-Net's features, the image and three channels of base."""
    net = PConvUNet(1, 2, "thin_plate").double().eval()
    kernel = net.decoder[0].conv
    assert kernel.weight.shape == (3, 2 + 3 + 3, 3, 3)
    kernel.weight.data.zero_()
    kernel.weight.data[:, 5 + 1, 1, 1] = 0.05  # the base's green, at the pixel itself, too little to be limited
    image, mask = pair(16, 16)
    image, mask = image.double(), torch.zeros(1, 1, 16, 16).double()
    mask[..., :2, :2] = 1
    base = thin_plate(image, mask, 1)
    # The encoder's 7×7 kernel reaches 3 px: features are valid in the first 3×3 of 8×8, which become 6×6 px.
    features, valid = torch.zeros(16, 16), torch.zeros(16, 16)
    features[:6, :6], valid[:2, :2] = 1, 1
    around = torch.nn.functional.avg_pool2d((2 * features + 3 * valid + 3).view(1, 1, 16, 16), 3, 1, 1) * 9
    wanted = 0.05 * base[:, 1:2] * (8 * 9 / around.double())
    torch.testing.assert_close(net(image, mask), base + wanted.expand(1, 3, -1, -1))


def test_each_level_of_the_decoder_reads_the_base_at_its_size():
    net = trained_a_little("thin_plate", depth=3)
    image, mask = pair(16, 24)
    base = thin_plate(image, mask)
    for level, block in enumerate(reversed(net.decoder)):
        seen = []
        original = block.conv.convolved_upsampled
        block.conv.convolved_upsampled = lambda x, skip, call=original, seen=seen: seen.append(skip) or call(x, skip)
        net(image, mask)
        means = base.unflatten(2, (-1, 2**level)).unflatten(4, (-1, 2**level)).mean((3, 5))
        torch.testing.assert_close(seen[0][:, -3:], means)


def test_a_network_goes_on_with_the_base_in_its_decoder():
    net = trained_a_little()
    net.decoder[-1].conv.weight.data /= 100  # within the limit, which the new base adds
    grown = with_base_in_decoder(net)
    assert grown.base == "thin_plate"
    assert not grown.training
    image, mask = pair(16, 24)
    mask[:] = 1  # nothing is hole, so the ratios are the same; the new weights are 0
    torch.testing.assert_close(grown(image, mask), net(image, mask))
    assert (net(image, mask) - image).abs().max() > 1e-3


@pytest.mark.parametrize("base", ["none", *BASES])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_state_dict_tells_the_base(base, depth):
    net = PConvUNet(depth, 3, base=base)
    assert architecture_of(net.state_dict()) == {"depth": depth, "base_channels": 3, "base": base}


def test_a_decoder_that_reads_push_pull_is_of_an_earlier_version():
    state = PConvUNet(2, 3, "thin_plate").state_dict()
    state["push_pull_base"] = state.pop("thin_plate_base")
    with pytest.raises(ValueError, match="push_pull_decoder of an earlier version"):
        architecture_of(state)


def test_another_base_is_refused():
    with pytest.raises(ValueError, match="pushpull"):
        PConvUNet(2, 3, base="pushpull")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_carry_the_base(tmp_path, suffix, half, base):
    net = trained_a_little(base)
    state = {key: tensor.half() if half else tensor for key, tensor in net.state_dict().items()}
    path = tmp_path / f"net{suffix}"
    save_weights(path, state) if suffix == ".safetensors" else torch.save({"model": state}, path)
    image, mask = pair(16, 16)
    expected = net(image, mask)
    for load in (load_model, load_for_prediction, lambda path: hubconf.pconv_unet(path)):
        loaded = load(path)
        assert loaded.base == base
        torch.testing.assert_close(loaded(image, mask), expected, rtol=0, atol=2e-2 if half else 1e-5)
    if suffix == ".safetensors":
        assert architecture_of(load_file(path))["base"] == base


@pytest.mark.parametrize("base", BASES)
def test_any_size_is_filled_and_valid_pixels_stay(base):
    net = trained_a_little(base).folded()
    for height, width in ((1, 1), (5, 7), (17, 30)):
        image, mask = pair(height, width, 0.4)
        result = inpaint(net, image.masked_fill(mask == 0, NAN), mask)
        valid = mask.expand_as(image) == 1
        assert torch.equal(result[valid], image[valid])
        assert ((result >= 0) & (result <= 1)).all()
