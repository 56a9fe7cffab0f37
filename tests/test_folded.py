"""Folded networks for inference: they equal the unfolded networks and do not modify them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.reference import TextbookUNet
from model import PartialConv2d, PConvUNet, inpaint, load_for_prediction, settle_encoder_batch_norm
from model.convolution import FixedConvolution, upsample
from model.foreign import in_our_form, network_for
from model.layer import UpPartialConv2d
from tests import foreign
from utils.checkpoint import save_weights

# torch warns when oneDNN is switched off or on.
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-13}


@pytest.fixture(params=[True, False], ids=["oneDNN", "no oneDNN"])
def onednn(request):
    """Run with and without oneDNN, which packs weights."""
    with torch.backends.mkldnn.flags(enabled=request.param):
        yield


def inputs(n=2, height=32, width=32, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, height, width, generator=generator, dtype=dtype)
    mask = (torch.rand(n, 1, height, width, generator=generator) < 0.6).to(dtype)
    mask[..., height // 8 : height * 3 // 4, width // 8 : width * 3 // 4] = 0
    return image, mask


def trained(net, dtype=torch.float32):
    """Return the network with random biases, batch norm weights and statistics, as after training.

    Some batch norm weights are negative, which happens in training.
    """
    generator = torch.Generator().manual_seed(7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.3, 1.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.2, 3, generator=generator)
            nn.init.normal_(module.running_mean, 0, 0.5, generator=generator)
        if isinstance(module, (nn.BatchNorm2d, PartialConv2d)) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.5, generator=generator)
    return net.to(dtype).eval()


def network(depth=4, base=4, dtype=torch.float32):
    torch.manual_seed(0)
    return trained(PConvUNet(depth, base), dtype)


def foreign_network(project, dtype=torch.float32):
    state, _ = in_our_form(foreign.weights(project, foreign.shapes(project, 3, 4)))
    net = network_for(state)
    net.load_state_dict(state)
    return trained(net, dtype)


@torch.no_grad()
def difference(ours, theirs, image, mask):
    """Return the largest difference between the outputs of two networks, relative to the largest value."""
    expected = theirs(image, mask)
    return ((ours(image, mask) - expected).abs().max() / expected.abs().max()).item()


def fixed_convolutions(net):
    return [module for module in net.modules() if isinstance(module, FixedConvolution)]


# --- equal results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_folded_network_predicts_what_the_unfolded_does(onednn, depth, dtype):
    net = network(depth, dtype=dtype)
    folded = net.folded()
    assert len(fixed_convolutions(folded)) == 3 * depth
    for n, height, width in [(1, 16, 16), (2, 32, 48), (1, 64, 16), (3, 80, 96), (1, 16, 16)]:  # with one network
        given = inputs(n, height, width, dtype, seed=n)
        assert difference(folded, net, *given) < TOLERANCES[dtype]
        assert difference(folded, TextbookUNet(net), *given) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_statistics_that_training_made_are_folded(dtype):
    torch.manual_seed(0)
    net = PConvUNet(4, 4).to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), 1e-2)
    for step in range(3):
        net(*inputs(seed=step, dtype=dtype)).square().mean().backward()
        optimizer.step()
    settle_encoder_batch_norm(net, iter([inputs(seed=9, dtype=dtype)]))
    assert difference(net.folded(), net.eval(), *inputs(dtype=dtype)) < TOLERANCES[dtype]


@pytest.mark.parametrize("project", foreign.PROJECTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_foreign_networks_keep_their_deviations(onednn, project, dtype):
    net = foreign_network(project, dtype)
    folded = net.folded()
    for given in (inputs(dtype=dtype), inputs(1, 40, 24, dtype), inputs(dtype=dtype, seed=5)):
        assert difference(folded, net, *given) < TOLERANCES[dtype]


@pytest.mark.parametrize("project", foreign.PROJECTS)
def test_a_foreign_file_predicts_what_its_own_network_does(tmp_path, project):
    state = foreign.weights(project, foreign.shapes(project, 3, 4))
    save_weights(tmp_path / "net.safetensors", in_our_form(state)[0])
    image, mask = inputs()
    expected = foreign.network(project, state, 3, image, mask)
    with torch.no_grad():
        ours = load_for_prediction(tmp_path / "net.safetensors")(image, mask)
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (7, 90), (64, 64)])
def test_any_size_is_filled_as_by_the_unfolded(onednn, size):
    net = network()
    image, mask = inputs(2, *size)
    filled = inpaint(net.folded(), image, mask)
    assert torch.allclose(filled, inpaint(net, image, mask), atol=1e-5)
    assert torch.equal(filled * mask, image * mask)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("project", [None, *foreign.PROJECTS])
def test_what_lies_in_a_hole_never_matters(onednn, project, junk):
    folded = (foreign_network(project) if project else network()).folded()
    image, mask = inputs()
    with torch.no_grad():
        assert torch.equal(folded(image, mask), folded(image.masked_fill(mask == 0, junk), mask))


@pytest.mark.parametrize("project", [None, *foreign.PROJECTS])
def test_an_all_hole_image_is_finite(onednn, project):
    net = foreign_network(project) if project else network()
    image, mask = torch.full((2, 3, 32, 32), float("nan")), torch.zeros(2, 1, 32, 32)
    with torch.no_grad():
        output = net.folded()(image, mask)
        assert torch.isfinite(output).all()
        assert torch.allclose(output, net(image, mask), atol=1e-6)


def test_memory_formats_make_no_difference(onednn):
    net = network()
    image, mask = inputs()
    for folded in (
        net.folded().to(memory_format=torch.contiguous_format),
        copy.deepcopy(net).to(memory_format=torch.channels_last).folded(),
    ):
        assert difference(folded, net, image, mask) < 1e-5
        assert difference(folded, net, image.to(memory_format=torch.channels_last), mask) < 1e-5
        assert difference(folded, net, image.transpose(2, 3), mask.transpose(2, 3)) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
def test_half_types_are_finite_and_near(dtype, tolerance):
    net = network()
    image, mask = inputs()
    with torch.no_grad():
        expected = net(image, mask)
        for output in (
            net.folded().to(dtype)(image.to(dtype), mask),
            copy.deepcopy(net).to(dtype).folded()(image.to(dtype), mask),
        ):
            assert torch.isfinite(output).all()
            assert (output.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_under_autocast_it_is_finite_and_near(onednn):
    net = network()
    image, mask = inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = net.folded()(image, mask)
    with torch.no_grad():
        expected = net(image, mask)
    assert torch.isfinite(output).all()
    assert (output.float() - expected).abs().max() < 6e-2 * expected.abs().max()


# --- the original and copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", [None, *foreign.PROJECTS])
@pytest.mark.parametrize("training", [True, False])
def test_the_original_is_left_alone_and_trains_on(project, training):
    net = (foreign_network(project) if project else network()).train(training)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parameters = list(net.parameters())
    folded = net.folded()
    given = inputs()
    with torch.no_grad():
        first = folded(*given)
    assert net.training == training
    assert not folded.training
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(a is b and a.requires_grad for a, b in zip(net.parameters(), parameters, strict=True))
    assert not any(parameter.requires_grad for parameter in folded.parameters())

    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.train()(*inputs()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    optimizer.step()
    with torch.no_grad():
        for buffer in net.buffers():
            buffer.zero_()
        assert torch.equal(folded(*given), first)  # shares no memory with the original
    assert not torch.equal(net.state_dict()["encoder.0.conv.weight"], before["encoder.0.conv.weight"])


def test_frozen_batch_norm_is_folded_like_any():
    net = network().freeze_encoder_batch_norm()
    folded = net.folded()
    assert difference(folded.train(), net, *inputs()) < 1e-5  # training mode has no effect on it


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@pytest.mark.parametrize("project", [None, foreign.SNEAKY])
def test_a_used_network_can_be_copied(onednn, copied, project):
    folded = (foreign_network(project) if project else network()).folded()
    given, others = inputs(), inputs(1, 64, 32)
    with torch.no_grad():
        expected = folded(*given)
        other = copied(folded)
        assert torch.equal(other(*given), expected)
        assert torch.equal(other(*others), folded(*others))
        assert torch.equal(folded(*given), expected)


def test_it_outlives_inference_mode():
    net = network()
    with torch.inference_mode():
        folded = net.folded()
        first = folded(*inputs())
    with torch.no_grad():
        assert torch.equal(folded(*inputs()), first)


def test_a_folded_networks_type_can_be_changed_after_use():
    net = network()
    folded = net.folded()
    image, mask = inputs()
    with torch.no_grad():
        folded(image, mask)
    assert difference(folded.double(), copy.deepcopy(net).double(), image.double(), mask.double()) < 1e-6
    assert difference(folded.float(), net, image, mask) < 1e-5


# --- FixedConvolution ----------------------------------------------------------------------------------------------

# kernel, stride, padding, dilation: those of the network, and other allowed ones
SHAPES = [(7, 2, 3, 1), (5, 2, 2, 1), (3, 2, 1, 1), (3, 1, 1, 1), (3, 1, 2, 2), (1, 1, 0, 1), (4, 3, 1, 1)]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), SHAPES)
def test_a_fixed_layer_is_the_layer_times_the_scale(onednn, kernel, stride, padding, dilation):
    torch.manual_seed(0)
    layer = PartialConv2d(3, 5, kernel, stride, padding, dilation)
    x, mask = inputs(2, 17, 14)
    x, scale = x * mask, torch.linspace(-1, 2, 5)
    wanted, wanted_mask = copy.deepcopy(layer).forward_masked(x, mask * 3)
    bias = layer.bias.view(1, -1, 1, 1) * wanted_mask
    layer.fix(scale)
    y, updated = layer.forward_masked(x, mask * 3)
    assert torch.allclose(y, (wanted - bias) * scale.view(1, -1, 1, 1) + bias, atol=1e-5)
    assert torch.equal(updated, wanted_mask)
    assert set(layer.state_dict()) == {"bias"}


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16)])
def test_a_fixed_decoder_layer_is_the_layer_times_the_scale(onednn, size):
    torch.manual_seed(0)
    layer = UpPartialConv2d(5, 3, 4)
    (_, mask), (skip, skip_mask) = inputs(2, *size), inputs(2, 2 * size[0], 2 * size[1], seed=1)
    x, skip, scale = torch.randn(2, 5, *size) * mask, skip * skip_mask, torch.linspace(-1, 2, 4)
    wanted, wanted_mask = layer([upsample(x), skip], [upsample(mask), skip_mask])
    bias = layer.bias.view(1, -1, 1, 1) * wanted_mask
    layer.fix(scale)
    y, updated = layer.forward_upsampled(x, mask, skip, skip_mask)
    assert torch.allclose(y, (wanted - bias) * scale.view(1, -1, 1, 1) + bias, atol=1e-5)
    assert torch.equal(updated, wanted_mask)
    assert set(layer.state_dict()) == {"bias"}


def fixed_and_plain(transposed):
    """Return a FixedConvolution of 5 → 4 channels and a reference function of (weight, x)."""
    torch.manual_seed(0)
    if transposed:
        fixed = FixedConvolution(torch.randn(5, 4, 4, 4), stride=(2, 2), transposed=True)
        return fixed, lambda weight, x: F.conv_transpose2d(x, weight, stride=2, padding=1)
    fixed = FixedConvolution(torch.randn(4, 5, 3, 3))
    return fixed, lambda weight, x: F.conv2d(x, weight, padding=1)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_fixed_convolution_follows_its_weight(onednn, transposed):
    fixed, plain = fixed_and_plain(transposed)
    x = torch.randn(2, 5, 6, 7)
    before = fixed(x)
    assert torch.allclose(before, plain(fixed.weight, x), atol=1e-5)
    assert torch.allclose(fixed(x[:1, ..., :4]), plain(fixed.weight, x[:1, ..., :4]), atol=1e-5)
    fixed.to(torch.bfloat16).to(torch.float32)  # rounds the weight
    assert not torch.allclose(fixed(x), before, atol=1e-5)
    assert torch.allclose(fixed(x), plain(fixed.weight, x), atol=1e-5)
    fixed.double()
    assert torch.allclose(fixed(x.double()), plain(fixed.weight, x.double()), atol=1e-12)
