"""The rivals in benchmarks/reference.py, which other tests rely on, compared with Eq. 1 and 2 window by window."""

import pytest
import torch

from benchmarks.reference import OrdinaryUNet, TextbookUNet, partial_conv
from model import PConvUNet, settle_encoder_batch_norm


def window_by_window(x, mask, weight, bias, stride, padding, dilation):
    """Compute Eq. 1 and 2 for one image (C,H,W) and a mask of the same shape. Returns y and m', (C',H',W')."""
    channels, height, width = x.shape
    kernel = weight.shape[-1]
    reach = dilation * (kernel - 1) + 1
    rows, columns = ((size + 2 * padding - reach) // stride + 1 for size in (height, width))
    y, updated = torch.zeros(2, len(weight), rows, columns, dtype=x.dtype)
    for row in range(rows):
        for column in range(columns):
            sum_m, products = 0, torch.zeros(len(weight), dtype=x.dtype)
            for i in range(kernel):
                for j in range(kernel):
                    r, c = row * stride - padding + i * dilation, column * stride - padding + j * dilation
                    if not (0 <= r < height and 0 <= c < width):
                        continue
                    for channel in range(channels):
                        if mask[channel, r, c] == 1:
                            sum_m += 1
                            products += weight[:, channel, i, j] * x[channel, r, c]
            if sum_m > 0:
                y[:, row, column] = products * channels * kernel * kernel / sum_m + (0 if bias is None else bias)
                updated[:, row, column] = 1
    return y, updated


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (5, 2, 2, 1), (3, 1, 2, 2), (4, 3, 1, 1)]
)
def test_the_textbook_layer_is_eq_1_and_2(kernel, stride, padding, dilation, bias):
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(2, 1, 3, 7, 8, generator=generator, dtype=torch.float64)
    mask = (mask > 0.8).double()
    mask[:, :, :5, :5] = 0
    weight = torch.randn(2, 3, kernel, kernel, generator=generator, dtype=torch.float64)
    added = torch.randn(2, generator=generator, dtype=torch.float64) if bias else None
    y, updated = partial_conv(x, mask, weight, added, stride, padding, dilation)
    expected, expected_mask = window_by_window(x[0], mask[0], weight, added, stride, padding, dilation)
    assert torch.allclose(y[0], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(updated[0], expected_mask)
    assert set(expected_mask.unique().tolist()) == {0.0, 1.0}


def test_far_from_edges_and_holes_the_rivals_agree():
    """All ratios are 1 there: the receptive field of two levels with 7×7 to 3×3 windows is within 14 pixels."""
    torch.manual_seed(0)
    net = PConvUNet(2, 4).double()
    image, mask = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.ones(2, 1, 64, 64, dtype=torch.float64)
    settle_encoder_batch_norm(net, iter([(image, mask)]))
    for rival in (OrdinaryUNet(net), TextbookUNet(net)):
        assert all(a is b for a, b in zip(rival.parameters(), net.parameters(), strict=True))
    net.eval()  # in training mode, statistics would include the edges
    difference = (OrdinaryUNet(net)(image, mask) - TextbookUNet(net)(image, mask)).abs()
    assert difference[..., 14:-14, 14:-14].max() < 1e-12
    assert difference.max() > 1e-3


def test_an_ordinary_network_sees_holes_black():
    net = PConvUNet(2, 4).eval()
    image, mask = torch.rand(1, 3, 16, 16), (torch.rand(1, 1, 16, 16) < 0.5).float()
    ordinary = OrdinaryUNet(net)
    assert torch.equal(ordinary(image, mask), ordinary(image * mask, torch.ones_like(mask)))
    assert not torch.allclose(ordinary(image, mask), ordinary(image, torch.ones_like(mask)))
