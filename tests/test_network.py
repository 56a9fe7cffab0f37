"""PConvUNet: architecture, textbook network, cost, invariance to hole values, freezing, loading."""

import os

import pytest
import safetensors.torch
import torch
from skimage.data import astronaut
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VGG16_Weights

from benchmarks.reference import OrdinaryUNet, TextbookUNet
from loss import InpaintingLoss
from model import PartialConv2d, PConvUNet, VGG16Features, load_model, settle_encoder_batch_norm
from utils.checkpoint import save_weights
from utils.config_files import load_config
from utils.errors import UserError


def layers(net, kind):
    return [module for module in net.modules() if isinstance(module, kind)]


def inputs(n=2, size=32, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, size, size, generator=generator, dtype=dtype)
    mask = (torch.rand(n, 1, size, size, generator=generator) < 0.6).to(dtype)
    mask[..., 4:20, 6:24] = 0
    return image, mask


@pytest.mark.parametrize(("depth", "norms", "weights"), [(7, 12, 25_770_961), (8, 14, 32_848_849)])
def test_is_the_papers_table(depth, norms, weights):
    net = PConvUNet(depth)
    convolutions = layers(net, PartialConv2d)
    assert len(layers(net, nn.BatchNorm2d)) == norms
    assert sum(conv.weight.numel() for conv in convolutions) == weights
    # kernel, output channels, stride, input channels of PConv1 … PConv16, copied from the paper
    encoder = [(7, 64, 2, 3), (5, 128, 2, 64), (5, 256, 2, 128), (3, 512, 2, 256)] + [(3, 512, 2, 512)] * (depth - 4)
    decoder = [(3, 512, 1, 1024)] * (depth - 4)
    decoder += [(3, 256, 1, 768), (3, 128, 1, 384), (3, 64, 1, 192), (3, 3, 1, 67)]
    table = [(c.kernel_size[0], c.out_channels, c.stride[0], c.in_channels) for c in convolutions]
    assert table == encoder + decoder
    has_norm = [block.bn is not None for block in [*net.encoder, *net.decoder]]
    assert has_norm == [False] + [True] * (2 * depth - 2) + [False]
    assert [block.slope for block in [*net.encoder, *net.decoder]] == [0.0] * depth + [0.2] * (depth - 1) + [None]
    assert [conv.bias is None for conv in convolutions] == has_norm


def test_every_parameter_has_a_gradient():
    net = PConvUNet(4, 4)
    net(*inputs()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


# --- comparison with the textbook network --------------------------------------------------------------------------


def masks_of(kind, n, size):
    """Return masks (n,1,size,size), float64: noise with a hole, few valid pixels, half the batch or all of it hole."""
    _, mask = inputs(n, size, dtype=torch.float64)
    if kind == "sparse":
        mask = (torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.01).double()
    if kind == "half the batch":
        mask[: n // 2] = 0
    if kind == "all hole":
        mask.zero_()
    return mask


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["noise", "sparse", "half the batch", "all hole"])
@pytest.mark.parametrize(("depth", "n", "size"), [(4, 2, 32), (1, 1, 32), (2, 3, 20), (5, 2, 64)])
def test_equals_the_textbook_network(training, kind, depth, n, size):
    """Compares outputs and the gradients of the image and of all weights."""
    torch.manual_seed(0)
    net = PConvUNet(depth, 4).double()
    settle_encoder_batch_norm(net, iter([inputs(n, size, dtype=torch.float64)]))
    for parameter in net.parameters():
        if parameter.ndim == 1:  # initially biases are 0 and batch norm weights 1
            nn.init.uniform_(parameter, 0.5, 1.5)
    net.train(training)
    (image, _), mask = inputs(n, size, seed=3, dtype=torch.float64), masks_of(kind, n, size)
    image.requires_grad_()
    ours, theirs = net(image, mask), TextbookUNet(net)(image, mask)
    assert ours.shape == (n, 3, size, size)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)
    probe = torch.randn_like(ours)
    wanted = torch.autograd.grad((theirs * probe).sum(), [image, *net.parameters()])
    for ours_grad, theirs_grad in zip(torch.autograd.grad((ours * probe).sum(), [image, *net.parameters()]), wanted):
        assert torch.allclose(ours_grad, theirs_grad, rtol=1e-7, atol=1e-8 * theirs_grad.abs().max().clamp(min=1))


@pytest.mark.slow
def test_equals_the_textbook_network_at_its_real_size():
    """Uses float64: in float32 both networks differ from it by 6e-4, because a few ReLUs switch sides."""
    torch.manual_seed(0)
    net = PConvUNet(7, 64).double().to(memory_format=torch.channels_last)
    image, mask = inputs(1, 256, dtype=torch.float64)
    ours, theirs = net(image, mask), TextbookUNet(net)(image, mask)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)
    probe = torch.randn_like(ours)
    wanted = torch.autograd.grad((theirs * probe).sum(), list(net.parameters()))
    for ours_grad, theirs_grad in zip(torch.autograd.grad((ours * probe).sum(), list(net.parameters())), wanted):
        assert (ours_grad - theirs_grad).norm() < 1e-9 * theirs_grad.norm()


def cheap_features(image):
    """Return three feature maps, the first as large as the image, so that all loss terms are cheap."""
    return [F.avg_pool2d(image, 2**level).square() for level in range(3)]


def loss_curve(forward_of, dtype, steps=50):
    """Return the losses of `steps` training steps. forward_of: maps a PConvUNet to a forward with its parameters."""
    torch.manual_seed(0)
    net = PConvUNet(4, 4).to(dtype)
    forward = forward_of(net)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    criterion = InpaintingLoss(cheap_features, dict(load_config().loss.weights))
    losses = []
    for step in range(steps):
        image, mask = inputs(4, 32, seed=step % 5, dtype=dtype)
        loss, _ = criterion(forward(image, mask), image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
def test_training_has_the_same_losses_as_the_textbook(dtype, tolerance):
    """50 steps with Adam. Measured: 1.4e-15 in float64, 1.5e-6 in float32; a kernel off by 1e-3 gives 5e-3."""
    ours, wanted = loss_curve(lambda net: net, dtype), loss_curve(TextbookUNet, dtype)
    assert wanted[-5:].mean() < 0.5 * wanted[:5].mean()  # training makes progress
    assert ((ours - wanted).abs() / wanted).max() < tolerance


# --- cost ----------------------------------------------------------------------------------------------------------


def multiplications(net, n):
    """Return torch's FLOP count of a forward of n images of 256×256. Callers use fake tensors to compute nothing."""
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(n, 3, 256, 256), torch.ones(n, 1, 256, 256))
    return counter.get_total_flops()


def test_multiplications_are_fewer_than_an_ordinary_u_nets():
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        net = PConvUNet(7, 64)
        ordinary = {n: multiplications(OrdinaryUNet(net), n) for n in (1, 4)}
        assert multiplications(TextbookUNet(net), 1) == 2 * ordinary[1]
        assert multiplications(net, 1) <= 0.79 * ordinary[1]
        assert multiplications(net, 4) <= 0.75 * ordinary[4]


def bytes_saved_for_backward(net, image, mask):
    """Return the size of the tensors saved for the backward, each storage once, without parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    saved = {}  # keeps the storages alive, so that no address is reused

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = net(image, mask)
    assert output.requires_grad
    return sum(storage.nbytes() for address, storage in saved.items() if address not in parameters)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_no_more_is_kept_for_backward_than_by_an_ordinary_u_net(memory_format, n):
    net = PConvUNet(7, 64).to(memory_format=memory_format)
    ours = bytes_saved_for_backward(net, *inputs(n, 256))
    assert 0 < ours <= bytes_saved_for_backward(OrdinaryUNet(net), *inputs(n, 256))


# --- holes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 12345.0])
@pytest.mark.parametrize("training", [True, False])
def test_what_lies_in_a_hole_never_matters(junk, training):
    net = PConvUNet(4, 4).train(training)
    image, mask = inputs()
    assert torch.equal(net(image, mask), net(image.masked_fill(mask == 0, junk), mask))


def test_what_is_valid_matters():
    net = PConvUNet(4, 4).eval()
    image, mask = inputs()
    assert not torch.allclose(net(image, mask), net(image.masked_fill(mask == 1, 0.5), mask))


def test_an_all_hole_image_is_finite():
    net = PConvUNet(4, 4)
    output = net(torch.full((2, 3, 32, 32), float("nan")), torch.zeros(2, 1, 32, 32))
    assert torch.isfinite(output).all()


def test_he_initialisation_keeps_the_scale():
    """The standard deviation of each weight is gain/sqrt(fan_in), with the gain of the nonlinearity that follows."""
    torch.manual_seed(0)
    net = PConvUNet(5, 16)
    for block in [*net.encoder, *net.decoder]:
        slope = 1 if block.slope is None else block.slope
        wanted = (2 / (1 + slope**2) / block.conv.weight[0].numel()) ** 0.5
        assert block.conv.weight.std().item() == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(
    ("image_shape", "mask_shape", "message"),
    [
        ((1, 3, 48, 40), (1, 1, 48, 40), "multiples of 16 .* got 48×40"),
        ((1, 1, 32, 32), (1, 1, 32, 32), r"image must be \(N,3,H,W\)"),
        ((1, 3, 32, 32), (1, 3, 32, 32), r"mask must be \(1, 1, 32, 32\)"),
    ],
)
def test_misuse_is_named(image_shape, mask_shape, message):
    with pytest.raises(ValueError, match=message):
        PConvUNet(4, 4)(torch.rand(image_shape), torch.ones(mask_shape))


# --- encoder batch norm ------------------------------------------------------------------------------------------


def test_frozen_encoder_batch_norm_stays_and_the_decoders_goes_on():
    net = PConvUNet(4, 4)
    assert net.freeze_encoder_batch_norm() is net
    assert net.train() is net
    assert net.eval() is net
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters(), 0.1, weight_decay=0.1)
    net(*inputs()).square().mean().backward()
    optimizer.step()
    encoder = [
        f"encoder.{i}.bn.{name}" for i in (1, 2, 3) for name in ("weight", "bias", "running_mean", "running_var")
    ]
    for name, value in net.state_dict().items():
        stays = name in encoder or name == "hole_radius" or (name.startswith("encoder") and "num_b" in name)
        assert torch.equal(value, before[name]) == stays, name
    assert net.freeze_encoder_batch_norm(False).encoder[1].bn.training


def test_settling_takes_the_mean_over_the_batches():
    torch.manual_seed(0)
    net = PConvUNet(3, 4)
    batches = [inputs(seed=seed) for seed in range(3)]
    decoder_before = {k: v.clone() for k, v in net.state_dict().items() if k.startswith("decoder")}
    settle_encoder_batch_norm(net, iter(batches))
    first = net.encoder[1]
    with torch.no_grad():
        batches = [(image * mask, mask) for image, mask in batches]  # blocks expect features that are 0 in the holes
        means = []
        for image, mask in batches:
            ratio, updated = net.ratios_and_masks(mask)[0]
            features = net.encoder[0](ratio, updated, image)
            means.append(first.conv(features, updated)[0].mean((0, 2, 3)))
    assert torch.allclose(first.bn.running_mean, torch.stack(means).mean(0), atol=1e-6)
    assert first.bn.momentum == 0.1
    assert net.training
    assert all(torch.equal(v, decoder_before[k]) for k, v in net.state_dict().items() if k.startswith("decoder"))


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["checkpoint", "state_dict", "safetensors"])
def test_load_model_needs_the_file_alone(tmp_path, form):
    net = PConvUNet(3, 6)
    path = tmp_path / ("net.safetensors" if form == "safetensors" else "net.pt")
    if form == "safetensors":
        save_weights(path, net.state_dict())
    else:
        torch.save({"model": net.state_dict(), "step": 3} if form == "checkpoint" else net.state_dict(), path)
    loaded = load_model(path)
    assert (loaded.depth, loaded.base_channels, loaded.training) == (3, 6, False)
    assert torch.equal(loaded(*inputs()), net.eval()(*inputs()))


def spoiled(state, how):
    state = dict(state)
    if how == "missing":
        del state["encoder.1.bn.running_var"]
    elif how == "unexpected":
        state["encoder.1.extra"] = torch.zeros(1)
    elif how == "shape":
        state["decoder.0.conv.weight"] = torch.zeros(1, 2, 3, 3)
    else:
        state = {"something": torch.zeros(1)}
    return state


@pytest.mark.parametrize("how", ["missing", "unexpected", "shape", "foreign"])
def test_load_model_is_strict(tmp_path, how):
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(spoiled(PConvUNet(3, 4).state_dict(), how), path)
    with pytest.raises(UserError, match="not the weights of a PConvUNet"):
        load_model(path)


def test_load_model_names_what_is_no_checkpoint(tmp_path):
    for name, data in {"a.pt": b"", "b.pt": b"text", "c.safetensors": b"12345678901234567890"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            load_model(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "none.pt")


class _MakesAFolder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": _MakesAFolder(str(tmp_path / "made"))}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="neither a training checkpoint nor a weights file"):
        load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


# --- VGG-16 -----------------------------------------------------------------------------------------------------


def test_vgg_gives_three_frozen_pools_of_the_normalised_image():
    features = VGG16Features()
    image = torch.rand(1, 3, 64, 48, requires_grad=True)
    before = image.detach().clone()
    pools = features(image)
    assert [tuple(p.shape) for p in pools] == [(1, 64, 32, 24), (1, 128, 16, 12), (1, 256, 8, 6)]
    assert torch.equal(image.detach(), before)  # the input is not normalised in place
    assert not any(p.requires_grad for p in features.parameters())
    pools[2].sum().backward()
    assert image.grad.abs().sum() > 0
    # The first layer's response to a constant image by hand: sum of weights times normalised colour, plus bias.
    grey = torch.full((1, 3, 16, 16), 0.5)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    conv = features.features[0]
    by_hand = (conv.weight.sum((2, 3)) * (0.5 - mean) / std).sum(1) + conv.bias
    seen = []
    handle = conv.register_forward_hook(lambda *args: seen.append(args[2].clone()))
    features(grey)
    handle.remove()
    assert torch.allclose(seen[0][0, :, 8, 8], by_hand, atol=1e-5)


def test_vgg_has_the_scale_that_the_losss_weights_were_chosen_for():
    """Mean activations of the shipped weights over photographs are 0.4 to 0.6."""
    image = torch.from_numpy(astronaut() / 255.0).float().permute(2, 0, 1)[None]
    assert all(0.2 < pool.mean() < 2.5 for pool in VGG16Features()(image))


def test_vgg_weights_that_are_missing_or_foreign_are_named(tmp_path):
    with pytest.raises(UserError, match="no VGG-16 weights at .*none.pth.*torchvision"):
        VGG16Features(tmp_path / "none.pth")
    save_weights(tmp_path / "other.safetensors", PConvUNet(2, 4).state_dict())
    with pytest.raises(UserError, match="torchvision's keys.*features.0.weight"):
        VGG16Features(tmp_path / "other.safetensors")


def test_vgg_reads_torchvisions_own_file(tmp_path):
    state = {**VGG16Features().state_dict(), "classifier.0.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "vgg16.pth")
    image = torch.rand(1, 3, 32, 32)
    for ours, theirs in zip(VGG16Features(tmp_path / "vgg16.pth")(image), VGG16Features()(image)):
        assert torch.equal(ours, theirs)


def test_a_failed_download_is_one_clear_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.__class__, "get_state_dict", fail)
    with pytest.raises(UserError, match="could not download.*no route to host.*needs no download"):
        VGG16Features("torchvision")
