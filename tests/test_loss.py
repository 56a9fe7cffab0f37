"""InpaintingLoss: each term compared with hand-computed values or plain loops."""

import pytest
import torch

from loss import TERMS, InpaintingLoss, gram_matrix, total_variation
from model import VGG16Features
from model.composite import composite

PAPER = {"valid": 1, "hole": 6, "perceptual": 0.05, "style": 120, "tv": 0.1}  # Eq. 7
WEIGHTS = {**dict.fromkeys(TERMS, 2), **PAPER}  # every term has a non-zero weight


def identity(image):
    """Return the simplest Ψ: the image as the only feature map."""
    return [image]


def images(n=2, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    output, image = torch.rand(2, n, 3, size, size, generator=generator, dtype=torch.float64)
    mask = torch.ones(n, 1, size, size, dtype=torch.float64)
    mask[:, :, 3:9, 4:7] = 0
    return output, image, mask


def test_valid_and_hole_are_means_over_the_whole_picture():
    output, image = torch.full((1, 3, 10, 10), 0.5), torch.zeros(1, 3, 10, 10)
    mask = torch.ones(1, 1, 10, 10)
    mask[..., :5, 0] = 0  # 5 % of the pixels
    _, terms = InpaintingLoss(identity, WEIGHTS)(output, image, mask)
    assert terms["valid"].item() == pytest.approx(0.5 * 0.95)
    assert terms["hole"].item() == pytest.approx(0.5 * 0.05)  # a mean over the hole would be 20 times as large
    assert terms["hole_l2"].item() == pytest.approx(0.25 * 0.05)


def test_a_term_of_weight_0_is_neither_computed_nor_returned():
    output, image, mask = images()

    def forbidden(_):
        raise AssertionError("Ψ is called")

    only_l1 = {**dict.fromkeys(TERMS, 0), "valid": 2, "hole": 3}
    for features in (forbidden, None):
        total, terms = InpaintingLoss(features, only_l1)(output, image, mask)
        assert list(terms) == ["valid", "hole"]
        by_hand = 2 * (mask * (output - image).abs()).mean() + 3 * ((1 - mask) * (output - image).abs()).mean()
        assert total.item() == pytest.approx(by_hand.item())
    whole = InpaintingLoss(identity, WEIGHTS)(output, image, mask)[1]
    for left_out in TERMS:
        total, terms = InpaintingLoss(identity, {**WEIGHTS, left_out: 0})(output, image, mask)
        assert set(terms) == set(TERMS) - {left_out}
        assert total.item() == pytest.approx(sum(WEIGHTS[name] * whole[name].item() for name in terms))
        assert all(terms[name].item() == whole[name].item() for name in terms)


@pytest.mark.parametrize("name", ["perceptual", "style"])
def test_terms_of_features_need_features(name):
    with pytest.raises(ValueError, match="features"):
        InpaintingLoss(None, {**dict.fromkeys(TERMS, 0), name: 1})


def test_sums_of_half_features_are_float32():
    output, image, mask = (tensor.float() for tensor in images())
    _, terms = InpaintingLoss(lambda x: [x.bfloat16()], WEIGHTS)(output, image, mask)
    assert all(term.dtype == torch.float32 for term in terms.values())


def test_perceptual_sees_output_and_composite():
    output, image, mask = images()
    _, terms = InpaintingLoss(identity, WEIGHTS)(output, image, mask)
    comp = mask * image + (1 - mask) * output
    by_hand = (output - image).abs().mean() + (comp - image).abs().mean()
    assert terms["perceptual"].item() == pytest.approx(by_hand.item())


def test_perceptual_sums_over_the_maps():
    output, image, mask = images()
    once = InpaintingLoss(identity, WEIGHTS)(output, image, mask)[1]["perceptual"]
    twice = InpaintingLoss(lambda x: [x, 3 * x], WEIGHTS)(output, image, mask)[1]["perceptual"]
    assert twice.item() == pytest.approx(4 * once.item())


def test_gram_matrix_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # C = 2, H = 1, W = 2
    expected = torch.tensor([[[5.0, 11.0], [11.0, 25.0]]]) / (2 * 1 * 2)
    assert torch.equal(gram_matrix(features), expected)


def test_style_by_hand():
    """Computes Eq. 5 and 6 with loops over images and channels."""
    output, image, mask = images(n=2, size=12)
    comp = mask * image + (1 - mask) * output
    by_hand = 0.0
    for picture in range(2):
        for a in (output, comp):
            for c in range(3):
                for d in range(3):
                    product = (a[picture, c] * a[picture, d]).sum() - (image[picture, c] * image[picture, d]).sum()
                    by_hand += product.abs().item() / (3 * 12 * 12) / 3**2 / 2
    _, terms = InpaintingLoss(identity, WEIGHTS)(output, image, mask)
    assert terms["style"].item() == pytest.approx(by_hand)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gram_matrix_of_half_types_does_not_overflow(dtype):
    features = torch.full((1, 64, 64, 64), 100.0, dtype=dtype)  # 100² · 64² overflows float16
    gram = gram_matrix(features)
    assert gram.dtype == torch.float32
    assert torch.allclose(gram, torch.full((1, 64, 64), 100.0**2 / 64), rtol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gram_matrix(features.float()), gram_matrix(features))


def test_total_variation_of_a_ramp():
    """The image is all hole: 15·16 steps of 1/15 along each row and none along columns, over 16·16 elements."""
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    everywhere = torch.zeros(1, 1, 16, 16)
    assert total_variation(ramp, everywhere).item() == pytest.approx(1 / 16)
    assert total_variation(ramp.transpose(2, 3), everywhere).item() == pytest.approx(1 / 16)


def test_total_variation_counts_pairs_inside_the_dilated_hole():
    """With one hole pixel, R is 3×3 and has 2·3 horizontal and 3·2 vertical pairs. Noise outside R has no effect."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    image = (2 * rows + 5 * columns).view(1, 1, 8, 8)
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 4, 4] = 0
    expected = (6 * 5 + 6 * 2) / 64
    assert total_variation(image, mask).item() == pytest.approx(expected)
    outside = torch.ones_like(image, dtype=torch.bool)
    outside[..., 3:6, 3:6] = False
    assert total_variation(image + 100 * torch.rand_like(image) * outside, mask).item() == pytest.approx(expected)


def test_no_hole_no_variation():
    assert total_variation(torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)).item() == 0


def test_total_is_the_papers_weighted_sum():
    output, image, mask = images()
    total, terms = InpaintingLoss(identity, PAPER)(output, image, mask)
    assert list(terms) == list(PAPER)
    assert all(term.ndim == 0 for term in terms.values())
    by_hand = terms["valid"] + 6 * terms["hole"] + 0.05 * terms["perceptual"] + 120 * terms["style"] + 0.1 * terms["tv"]
    assert total.item() == pytest.approx(by_hand.item())


def test_a_perfect_output_costs_only_its_own_roughness():
    _, image, mask = images()
    _, terms = InpaintingLoss(identity, WEIGHTS)(image.clone(), image, mask)
    assert [name for name in TERMS if terms[name].item()] == ["tv"]
    assert terms["tv"].item() > 0


def test_what_only_the_composite_hides_does_not_reach_tv():
    output, image, mask = images()
    loss = InpaintingLoss(identity, WEIGHTS)
    changed = torch.where(mask > 0, output + 1, output)
    assert loss(output, image, mask)[1]["tv"] == loss(changed, image, mask)[1]["tv"]


def test_batch_is_the_mean_of_its_pictures():
    output, image, mask = images(n=4)
    loss = InpaintingLoss(identity, WEIGHTS)
    together = loss(output, image, mask)[1]
    apart = [loss(output[i : i + 1], image[i : i + 1], mask[i : i + 1])[1] for i in range(4)]
    for name in TERMS:
        assert together[name].item() == pytest.approx(sum(terms[name].item() for terms in apart) / 4)


def test_gradient_is_right():
    output, image, mask = images(n=1, size=12)
    output.requires_grad_()
    # Features whose differences stay away from 0, where |x| is not differentiable.
    loss = InpaintingLoss(lambda x: [(x * 1.3 + 0.1).square()], WEIGHTS)
    assert torch.autograd.gradcheck(lambda x: loss(x, image, mask)[0], output, eps=1e-7, atol=1e-5)


def test_inputs_stay_as_they_are_and_the_truth_gets_no_gradient():
    output, image, mask = (tensor.float() for tensor in images(size=32))
    before = [tensor.clone() for tensor in (output, image, mask)]
    output.requires_grad_()
    total, _ = InpaintingLoss(VGG16Features(), WEIGHTS)(output, image, mask)
    total.backward()
    assert torch.isfinite(output.grad).all()
    assert output.grad.abs().sum() > 0
    for tensor, old in zip((output.detach(), image, mask), before):
        assert torch.equal(tensor, old)


def test_one_batched_pass_equals_three_with_vgg():
    output, image, mask = (tensor.float() for tensor in images(size=32))
    features = VGG16Features()
    _, terms = InpaintingLoss(features, WEIGHTS)(output, image, mask)
    psi = [features(tensor) for tensor in (output, composite(image, output, mask), image)]
    perceptual = sum((p - gt).abs().mean() for maps in psi[:2] for p, gt in zip(maps, psi[2]))
    assert terms["perceptual"].item() == pytest.approx(perceptual.item(), rel=1e-5)


def test_composite_keeps_valid_pixels_bit_for_bit():
    output, image, mask = images()
    comp = composite(image, output.masked_fill(mask > 0, float("nan")), mask)
    assert torch.equal(comp, torch.where(mask > 0, image, output))


def test_a_term_that_no_weight_names_is_not_computed():
    assert list(InpaintingLoss(identity, {"valid": 1})(*images())[1]) == ["valid"]


def test_a_weight_of_no_term_is_refused():
    with pytest.raises(ValueError, match="weights may name valid, hole, .*, got total"):
        InpaintingLoss(identity, {**WEIGHTS, "total": 1})
