"""PartialConv2d and UpPartialConv2d: hand-computed values, the textbook form, properties."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.reference import partial_conv
from model import PartialConv2d
from model.convolution import upsample
from model.layer import UpPartialConv2d, counted


def ones_layer(in_channels=1, kernel_size=3, bias=None, **options):
    """Return a layer whose weights are all 1. bias: its value, or None for no bias."""
    layer = PartialConv2d(in_channels, 1, kernel_size, bias=bias is not None, **options)
    torch.nn.init.ones_(layer.weight)
    if bias is not None:
        torch.nn.init.constant_(layer.bias, bias)
    return layer


# --- hand-computed values ----------------------------------------------------------------------------------------


def test_one_valid_pixel_counts_for_the_whole_window():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    mask = torch.zeros(1, 1, 3, 3)
    mask[..., 1, 2] = 1  # x = 5 there
    y, updated = ones_layer(bias=0.5)(x, mask)
    assert y.item() == 5 * 9 / 1 + 0.5
    assert updated.item() == 1


def test_ratio_counts_all_channels_of_the_window():
    x = torch.ones(1, 2, 3, 3)
    mask = torch.ones(1, 2, 3, 3)
    mask[:, 1] = 0
    mask[:, 0, 0] = 0  # 6 of 18 values are valid
    y, _ = ones_layer(in_channels=2)(x, mask)
    assert y.item() == 6 * 18 / 6


def test_outside_the_image_is_hole():
    x = torch.ones(1, 1, 4, 4)
    y, updated = ones_layer(padding=1, bias=1.0)(x, torch.ones(1, 1, 4, 4))
    # Ratios 1, 1.5 on an edge and 2.25 in a corner compensate for the missing pixels; the bias is added once.
    assert torch.allclose(y, torch.full((1, 1, 4, 4), 10.0))
    assert updated.eq(1).all()
    no_bias, _ = ones_layer(padding=1)(x.cumsum(-1), torch.ones(1, 1, 4, 4))  # columns are 1 2 3 4
    assert no_bias[0, 0, 0, 0].item() == (1 + 2) * 2 * 2.25
    assert no_bias[0, 0, 0, 1].item() == (1 + 2 + 3) * 2 * 1.5
    assert no_bias[0, 0, 1, 1].item() == (1 + 2 + 3) * 3


def test_where_nothing_is_valid_output_is_zero_without_bias():
    y, updated = ones_layer(padding=1, bias=3.0)(torch.ones(1, 1, 5, 5), torch.zeros(1, 1, 5, 5))
    assert y.eq(0).all()
    assert updated.eq(0).all()


def test_hole_shrinks_by_the_window():
    mask = torch.ones(1, 1, 9, 9)
    mask[..., 2:7, 2:7] = 0
    _, updated = ones_layer(padding=1)(torch.ones(1, 1, 9, 9), mask)
    expected = torch.ones(1, 1, 9, 9)
    expected[..., 3:6, 3:6] = 0
    assert torch.equal(updated, expected)


def test_two_masks_after_a_concat_weigh_as_many_as_their_channels():
    layer = ones_layer(in_channels=4, kernel_size=1)
    x = [torch.full((1, 3, 1, 1), 2.0), torch.full((1, 1, 1, 1), 7.0)]
    on, off = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert layer(x, [on, on])[0].item() == 13
    assert layer(x, [on, off])[0].item() == 6 * 4 / 3
    assert layer(x, [off, on])[0].item() == 7 * 4 / 1
    assert layer(x, [off, off])[0].item() == 0


# --- comparison with the textbook form ---------------------------------------------------------------------------

# All kernels and strides of the network, and other allowed combinations.
SHAPES = [(7, 2, 3, 1), (5, 2, 2, 1), (3, 2, 1, 1), (3, 1, 1, 1), (3, 1, 2, 2), (1, 1, 0, 1), (4, 3, 1, 1)]


def random_mask(*shape, share=0.4, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask_channels", [1, 3])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), SHAPES)
def test_equals_textbook(kernel, stride, padding, dilation, mask_channels, bias):
    torch.manual_seed(0)
    layer = PartialConv2d(3, 5, kernel, stride, padding, dilation, bias).double()
    x = torch.randn(2, 3, 17, 14, dtype=torch.float64, requires_grad=True)
    mask = random_mask(2, mask_channels, 17, 14, share=0.3)
    mask[:, :, :9, :9] = 0  # complete windows without a valid pixel
    y, updated = layer(x, mask)
    full = mask.expand(-1, 3, -1, -1)
    expected, expected_mask = partial_conv(x, full, layer.weight, layer.bias, stride, padding, dilation)
    assert updated.shape == (2, 1, *y.shape[2:])
    assert torch.equal(updated.expand_as(expected_mask), expected_mask)
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(y)
    wanted = torch.autograd.grad((expected * probe).sum(), [x, *layer.parameters()])
    for ours, theirs in zip(torch.autograd.grad((y * probe).sum(), [x, *layer.parameters()]), wanted):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_two_masks_equal_textbook_with_full_channels():
    torch.manual_seed(0)
    layer = PartialConv2d(8, 4, 3, padding=1).double()
    x = [torch.randn(2, 5, 9, 9, dtype=torch.float64), torch.randn(2, 3, 9, 9, dtype=torch.float64)]
    masks = [random_mask(2, 1, 9, 9, seed=1), random_mask(2, 1, 9, 9, seed=2)]
    full = torch.cat([m.expand_as(part) for part, m in zip(x, masks)], 1)
    expected, expected_mask = partial_conv(torch.cat(x, 1), full, layer.weight, layer.bias, 1, 1)
    y, updated = layer(x, masks)
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(updated.expand_as(expected_mask), expected_mask)


def test_without_holes_inside_it_is_an_ordinary_convolution():
    torch.manual_seed(0)
    layer = PartialConv2d(3, 4, 3).double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    expected = F.conv2d(x, layer.weight, layer.bias)
    assert torch.allclose(layer(x, torch.ones(1, 1, 8, 8))[0], expected, rtol=1e-12)


# --- properties --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_lies_in_a_hole_never_matters(junk):
    torch.manual_seed(0)
    layer = PartialConv2d(3, 4, 3, padding=1)
    x, mask = torch.randn(1, 3, 8, 8), random_mask(1, 1, 8, 8).float()
    spoiled = x.masked_fill(mask == 0, junk).requires_grad_()
    y, _ = layer(spoiled, mask)
    assert torch.equal(y, layer(x, mask)[0])
    y.sum().backward()
    assert torch.isfinite(layer.weight.grad).all()
    assert spoiled.grad.masked_select(mask == 0).eq(0).all()


def test_state_dict_is_weight_and_bias_alone():
    assert set(PartialConv2d(3, 4, 3).state_dict()) == {"weight", "bias"}
    assert set(PartialConv2d(3, 4, 3, bias=False).state_dict()) == {"weight"}


def test_a_call_leaves_nothing_on_the_layer():
    layer = PartialConv2d(3, 4, 3, padding=1)
    before = dict(vars(layer))
    x, ones = torch.randn(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    first = layer(x, ones)[0]
    layer(x, torch.zeros(1, 1, 8, 8))
    assert vars(layer) == before
    assert torch.equal(layer(x, ones)[0], first)


def test_mask_arithmetic_carries_no_gradient():
    mask = torch.ones(1, 1, 8, 8, requires_grad=True)
    _, updated = PartialConv2d(3, 4, 3)(torch.randn(1, 3, 8, 8), mask)
    assert not updated.requires_grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_types_are_finite_and_right(dtype, tolerance):
    """A half dtype can't count 1024·9 ones, and 1/(sum + 1e-8) is infinite in float16."""
    torch.manual_seed(0)
    layer = PartialConv2d(1024, 8, 3, padding=1)
    x, mask = torch.randn(1, 1024, 12, 12), random_mask(1, 1, 12, 12, share=0.5).float()
    mask[..., :4, :4] = 0
    expected, _ = layer(x, mask)
    y, updated = layer.to(dtype)(x.to(dtype), mask.to(dtype))
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    assert (y.float() - expected).abs().max() < tolerance * expected.abs().max()
    assert set(updated.unique().tolist()) <= {0.0, 1.0}


def test_counting_is_exact_in_half_types_and_under_autocast():
    """A half dtype can't represent 257·k valid values in a window. The ratio is 9/k if k of 9 pixels are valid."""
    layer = PartialConv2d(257, 4, 3, padding=1)
    x, mask = torch.randn(1, 257, 8, 8), random_mask(1, 1, 8, 8, share=0.7).float()
    valid = F.avg_pool2d(mask, 3, stride=1, padding=1, divisor_override=1)
    expected = torch.where(valid > 0, 9 / valid.clamp(min=1), 0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        ratio, updated = layer.ratio(257 * counted(mask.to(dtype)))
        assert ratio.dtype == torch.float32
        assert torch.allclose(ratio, expected, rtol=1e-6)
        assert torch.equal(updated, (valid > 0).float())
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = layer(x, mask)
        assert torch.allclose(layer.ratio(257 * mask)[0], expected, rtol=1e-6)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("x_shape", "mask_shape", "message"),
    [
        ((1, 3, 8, 8), (1, 1, 8, 7), r"mask must be \(1, 1, 8, 8\) or \(1, 3, 8, 8\).*\(1, 1, 8, 7\)"),
        ((1, 3, 8, 8), (1, 2, 8, 8), r"mask must be"),
        ((1, 3, 8, 8), (8, 8), r"4-dimensional"),
        ((1, 4, 8, 8), (1, 1, 8, 8), r"3 channels in all, got 4"),
    ],
)
def test_misuse_is_named(x_shape, mask_shape, message):
    with pytest.raises(ValueError, match=message):
        PartialConv2d(3, 4, 3)(torch.randn(x_shape), torch.ones(mask_shape))


# --- the decoder's layer: the same, computed on the small map ------------------------------------------------------

# Few and many pixels: the layer uses a different form for each.
SIZES = [(2, 4, 6), (1, 16, 18)]


def up_inputs(n, height, width, dtype=torch.float64):
    """Return the arguments of forward_upsampled: x (5 channels), mask, skip (3), skip_mask. One corner is all hole."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, height, width, generator=generator, dtype=dtype)
    skip = torch.randn(n, 3, 2 * height, 2 * width, generator=generator, dtype=dtype)
    mask = random_mask(n, 1, height, width, share=0.5, seed=1).to(torch.promote_types(dtype, torch.float32))
    skip_mask = random_mask(n, 1, 2 * height, 2 * width, seed=2).to(mask)
    mask[..., : height // 2, : width // 2] = 0
    skip_mask[..., : height // 2 * 2, : width // 2 * 2] = 0
    return x, mask, skip, skip_mask


def forward_upsampled(layer, x, mask, skip, skip_mask):
    """Call forward_upsampled with features zeroed in their holes, so that hole values get no gradient."""
    return layer.forward_upsampled(x * mask.to(x), mask, skip * skip_mask.to(x), skip_mask)


def gradients(y, tensors):
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    return torch.autograd.grad((y * probe).sum(), tensors)


def all_close(ours, theirs, tolerance=1e-12):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 5), (1, 7, 2), *SIZES])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_of_upsampled_equals_the_layer_on_the_large_map(bias, size, memory_format):
    torch.manual_seed(0)
    layer = UpPartialConv2d(5, 3, 4, bias).double().to(memory_format=memory_format)
    if bias:
        torch.nn.init.uniform_(layer.bias, 1, 2)
    x, mask, skip, skip_mask = up_inputs(*size)
    leaves = [x.requires_grad_(), skip.requires_grad_(), *layer.parameters()]
    y, updated = forward_upsampled(layer, x, mask, skip, skip_mask)

    parts, masks = [upsample(x), skip], [upsample(mask), skip_mask]
    plain, plain_mask = layer(parts, masks)
    full = torch.cat([m.expand_as(part) for part, m in zip(parts, masks)], 1)
    textbook, textbook_mask = partial_conv(torch.cat(parts, 1), full, layer.weight, layer.bias, 1, 1)
    assert torch.equal(updated, plain_mask)
    assert torch.equal(updated.expand_as(textbook_mask), textbook_mask)
    wanted = gradients(textbook, leaves)
    assert all_close([y, plain], [textbook, textbook])
    assert all_close(gradients(y, leaves), wanted)
    assert all_close(gradients(plain, leaves), wanted)


@pytest.mark.parametrize("size", SIZES)
def test_of_upsampled_where_nothing_is_valid_is_zero_without_bias(size):
    layer = UpPartialConv2d(5, 3, 4)
    torch.nn.init.ones_(layer.bias)
    x, mask, skip, skip_mask = up_inputs(*size, torch.float32)
    y, updated = forward_upsampled(layer, x, mask.zero_(), skip, skip_mask.zero_())
    assert y.eq(0).all()
    assert updated.eq(0).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_of_upsampled_in_half_types_is_finite_and_right(dtype, tolerance, size):
    """A half dtype can't count 513 channels of 9 pixels each, so the masks are float32."""
    torch.manual_seed(0)
    layer = UpPartialConv2d(512, 1, 4)
    x, mask, skip, skip_mask = up_inputs(*size, torch.float32)
    x, skip = torch.randn(size[0], 512, *size[1:]), skip[:, :1]
    expected, expected_mask = forward_upsampled(layer, x, mask, skip, skip_mask)
    y, updated = forward_upsampled(layer.to(dtype), x.to(dtype), mask, skip.to(dtype), skip_mask)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    assert (y.float() - expected).abs().max() < tolerance * expected.abs().max()
    assert torch.equal(updated, expected_mask)


@pytest.mark.parametrize("size", SIZES)
def test_of_upsampled_under_autocast_is_finite_and_near(size):
    torch.manual_seed(0)
    layer = UpPartialConv2d(5, 3, 4)
    x, mask, skip, skip_mask = up_inputs(*size, torch.float32)
    leaves = [x.requires_grad_(), skip.requires_grad_(), *layer.parameters()]
    expected, _ = forward_upsampled(layer, x, mask, skip, skip_mask)
    with torch.autocast("cpu", torch.bfloat16):
        y, updated = forward_upsampled(layer, x, mask, skip, skip_mask)
    assert y.dtype == torch.bfloat16
    assert updated.dtype == torch.float32
    for ours, theirs in zip([y.float(), *gradients(y.float(), leaves)], [expected, *gradients(expected, leaves)]):
        assert ours.dtype == torch.float32
        assert torch.isfinite(ours).all()
        assert (ours - theirs).abs().max() < 3e-2 * theirs.abs().max()


@pytest.mark.parametrize("size", SIZES)
def test_a_decoder_layer_is_left_as_it_was_by_a_call(size):
    layer, given = UpPartialConv2d(5, 3, 4), up_inputs(*size, torch.float32)
    before, kept = dict(vars(layer)), [tensor.clone() for tensor in given]
    x, mask, skip, skip_mask = given
    first, _ = layer.forward_upsampled(x, mask, skip, skip_mask)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert vars(layer) == before
    assert all(torch.equal(a, b) for a, b in zip(given, kept))  # the arguments are not modified in place
    layer.forward_upsampled(*up_inputs(2, 5, 3, torch.float32))
    assert torch.equal(layer.forward_upsampled(x, mask, skip, skip_mask)[0], first)
