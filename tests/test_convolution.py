"""The layers' convolutions in their faster forms: each equals torch's, backward too, and is taken where it is meant."""

import pytest
import torch
from torch.nn import functional as F

import model.convolution
from model.convolution import (
    Differences,
    FactorsAndRest,
    Patches,
    Sums,
    conv2d,
    conv2d_by_nine_products,
    conv2d_by_patches,
    fastest_form,
    patches_are_faster,
    upsample,
    upsampling_kernel,
)

FORMATS = [torch.contiguous_format, torch.channels_last]


def gradients(y, tensors):
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    return torch.autograd.grad((y * probe).sum(), tensors)


def all_close(ours, theirs, tolerance=1e-12):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(ours, theirs, strict=True))


# --- small maps: by patches ----------------------------------------------------------------------------------------

# N, C, C', height and width of x, kernel, stride, padding
CASES = [
    (1, 3, 4, (1, 1), (3, 3), (1, 1), (1, 1)),
    (2, 3, 4, (6, 5), (3, 3), (2, 2), (1, 1)),
    (2, 4, 3, (7, 8), (5, 5), (2, 2), (2, 2)),
    (3, 2, 5, (9, 8), (3, 2), (2, 3), (1, 0)),
    (1, 1, 1, (4, 9), (2, 4), (1, 2), (0, 2)),
]


@pytest.mark.parametrize(("n", "c", "out", "size", "kernel", "stride", "padding"), CASES)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_by_patches_equals_conv2d(n, c, out, size, kernel, stride, padding, memory_format):
    torch.manual_seed(0)
    x = torch.randn(n, c, *size, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(out, c, *kernel, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    y = conv2d_by_patches(x, weight, stride, padding)
    expected = F.conv2d(x, weight, None, stride, padding)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert all_close([y], [expected])
    assert all_close(gradients(y, [x, weight]), gradients(expected, [x, weight]))


@pytest.mark.parametrize(("n", "c", "out", "size", "kernel", "stride", "padding"), CASES)
def test_patches_have_all_their_derivatives(n, c, out, size, kernel, stride, padding):
    x = torch.randn(n, c, *size, dtype=torch.float64, requires_grad=True)

    def patches(x):
        return Patches.apply(x, kernel, stride, padding)

    assert torch.autograd.gradcheck(patches, x)
    assert torch.autograd.gradgradcheck(patches, x)


def test_the_weights_gradient_has_its_memory_format():
    """Else torch would copy it, which takes as long as the convolution."""
    weight = torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    conv2d_by_patches(torch.randn(2, 5, 4, 4), weight, (1, 1), (1, 1)).sum().backward()
    assert weight.grad.stride() == weight.stride()


@pytest.mark.parametrize(
    ("n", "side", "stride", "channels", "out", "faster"),
    [
        (1, 16, 2, 512, 512, True),  # PConv5 at 256×256: 64 pixels come out
        (1, 18, 2, 512, 512, False),  # 81
        (1, 4, 2, 512, 512, False),  # 4
        (2, 4, 2, 512, 512, True),  # 8
        (4, 8, 2, 512, 512, True),  # 64
        (1, 8, 1, 1024, 512, True),
        (1, 8, 1, 512, 256, False),  # the weight is small
        (1, 16, 1, 1024, 512, False),
    ],
)
def test_patches_are_for_few_pixels_and_large_weights(n, side, stride, channels, out, faster):
    x, weight = torch.empty(n, channels, side, side), torch.empty(out, channels, 3, 3)
    assert not patches_are_faster(x, weight, (stride, stride), (1, 1), (1, 1))  # they would copy the weight
    weight = weight.to(memory_format=torch.channels_last)
    assert patches_are_faster(x, weight, (stride, stride), (1, 1), (1, 1)) == faster
    assert not patches_are_faster(x, weight, (stride, stride), (1, 1), (2, 2))  # of which they know nothing
    assert not patches_are_faster(x.to("meta"), weight, (stride, stride), (1, 1), (1, 1))  # nor were GPUs measured
    assert not patches_are_faster(x.bfloat16(), weight, (stride, stride), (1, 1), (1, 1))


def test_conv2d_takes_them_there(monkeypatch):
    x, weight = torch.randn(1, 3, 6, 7), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(x, weight, None, (2, 1), (1, 0), (1, 2))
    assert torch.equal(conv2d(x, weight, (2, 1), (1, 0), (1, 2)), expected)
    monkeypatch.setattr(model.convolution, "patches_are_faster", lambda *arguments: True)
    monkeypatch.setattr(model.convolution, "conv2d_by_patches", lambda *arguments: arguments)
    assert conv2d(x, weight, (2, 1), (1, 0)) == (x, weight, (2, 1), (1, 0))


# --- upsampled maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "c", "out", "side", "form"),
    [
        (1, 512, 512, 7, "plain"),
        (1, 512, 512, 8, "nine products"),
        (16, 256, 256, 2, "nine products"),
        (1, 512, 256, 64, "nine products"),
        (1, 256, 128, 15, "plain"),
        (1, 256, 128, 16, "transposed"),
        (4, 64, 3, 8, "transposed"),
        (3, 64, 3, 8, "plain"),
    ],
)
def test_the_form_follows_from_channels_and_pixels(n, c, out, side, form):
    x = torch.empty(n, c, side, side)
    assert fastest_form(x, out) == form
    elsewhere = "plain" if n * side * side < 256 else "transposed"
    assert fastest_form(x.to("meta"), out) == elsewhere  # the nine products were measured on a CPU alone
    assert fastest_form(x.bfloat16(), out) == elsewhere


def by_nine(x, weight):
    """conv2d_by_nine_products of the first channels of the weight, as many as x has."""
    _rest, *factors = FactorsAndRest.apply(weight, x.shape[1])
    return conv2d_by_nine_products(x, factors)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3), (4, 4)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_nine_products_equal_a_convolution_of_the_upsampled(size, memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(4, 7, 3, 3, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    y = by_nine(x, weight)
    expected = F.conv2d(upsample(x), weight[:, :5], padding=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert all_close([y], [expected])
    assert all_close(gradients(y, [x, weight]), gradients(expected, [x, weight]))


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_differences_have_all_their_derivatives(axis, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)

    def differences(x):
        return Differences.apply(x, axis)

    assert torch.autograd.gradcheck(differences, x)
    assert torch.autograd.gradgradcheck(differences, x)


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_sums_have_all_their_derivatives(size):
    products = [torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for _ in range(9)]
    assert torch.autograd.gradcheck(Sums.apply, products)
    assert torch.autograd.gradgradcheck(Sums.apply, products)


def test_nine_products_in_float32_are_as_near_as_rounding_allows():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 256, 8, 8), torch.randn(256, 256, 3, 3)
    exact = F.conv2d(upsample(x.double()), weight.double(), padding=1)
    error = (by_nine(x, weight) - exact).abs().max() / exact.abs().max()
    assert error < 4 * (F.conv2d(upsample(x), weight, padding=1) - exact).abs().max() / exact.abs().max()


def test_the_nine_factors_by_hand():
    """Of the weight [1 10 100] down and [1 2 4] across: a, a+b+c and c of each, and their products."""
    weight = torch.outer(torch.tensor([1.0, 10, 100]), torch.tensor([1.0, 2, 4])).view(1, 1, 3, 3)
    rest, *factors = FactorsAndRest.apply(torch.cat([weight, -weight], 1), 1)
    assert torch.equal(rest, -weight)
    assert [factor.item() for factor in factors] == [1, 7, 4, 111, 777, 444, 100, 700, 400]


@pytest.mark.parametrize(("channels", "all_channels"), [(5, 7), (1, 3), (4, 4)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_factors_have_all_their_derivatives(channels, all_channels, memory_format):
    weight = torch.randn(2, all_channels, 3, 3, dtype=torch.float64).contiguous(memory_format=memory_format)
    kept = weight.clone()

    def parts(weight):
        return FactorsAndRest.apply(weight, channels)

    assert torch.autograd.gradcheck(parts, weight.requires_grad_())
    assert torch.autograd.gradgradcheck(parts, weight)
    assert torch.equal(weight, kept)
    gradient = torch.autograd.grad(sum(part.sum() for part in parts(weight)), weight)[0]
    assert gradient.stride() == weight.stride()


def test_the_upsampling_kernel_by_hand():
    """Of one weight [1 10 100] along a row: upsampling makes two pixels of one, which see it turned, one apart."""
    down, right = torch.tensor([1.0, 2, 4]), torch.tensor([1.0, 10, 100])
    kernel = upsampling_kernel(torch.outer(down, right).view(1, 1, 3, 3))
    assert torch.equal(kernel[0, 0], torch.outer(torch.tensor([4.0, 6, 3, 1]), torch.tensor([100.0, 110, 11, 1])))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_upsampling_kernel_equals_a_convolution_of_the_upsampled(size, memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, 3, 3, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    kernel = upsampling_kernel(weight)
    assert kernel.shape == (5, 4, 4, 4)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    y = F.conv_transpose2d(x, kernel, stride=2, padding=1)
    expected = F.conv2d(upsample(x), weight, padding=1)
    assert all_close([y], [expected])
    assert all_close(gradients(y, [x, weight]), gradients(expected, [x, weight]))


def test_the_upsampling_kernel_is_never_of_a_half_type_by_autocast():
    weight = torch.randn(4, 5, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        kernel = upsampling_kernel(weight)
    assert torch.equal(kernel, upsampling_kernel(weight))
