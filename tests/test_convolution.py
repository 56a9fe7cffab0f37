"""The decoder's convolution of the upsampled map equals torch's in every form, including gradients."""

import pytest
import torch
from torch.nn import functional as F

from model.convolution import conv2d_of_upsampled, upsample, upsampling_kernel


def gradients(y, tensors):
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    return torch.autograd.grad((y * probe).sum(), tensors)


def all_close(ours, theirs, tolerance=1e-12):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 3), (1, 15, 17), (1, 16, 16), (3, 20, 12)])  # few and many pixels
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_convolution_of_the_concatenated_map(size, memory_format):
    torch.manual_seed(0)
    n, height, width = size
    tensors = torch.randn(n, 5, height, width), torch.randn(n, 2, 2 * height, 2 * width), torch.randn(4, 7, 3, 3)
    x, skip, weight = (t.double().contiguous(memory_format=memory_format).requires_grad_() for t in tensors)
    y = conv2d_of_upsampled(x, skip, weight)
    expected = F.conv2d(torch.cat([upsample(x), skip], 1), weight, padding=1)
    assert all_close([y], [expected])
    assert all_close(gradients(y, [x, skip, weight]), gradients(expected, [x, skip, weight]))


def test_the_upsampling_kernel_by_hand():
    """An input pixel becomes two, and each adds the flipped weight, one px apart. Weight along a row: [1 10 100]."""
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
