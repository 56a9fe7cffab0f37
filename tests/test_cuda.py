"""Tests that need a GPU (`make test-gpu`), skipped elsewhere. Their CPU twins are in the files of the tested code."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import main as script
from data.loader import training_batches
from data.mask_files import write_mask
from data.samples import training_samples
from model import PartialConv2d, PConvUNet
from training import Schedule, TrainState, begin_phase, make_network, mean_losses, open_data
from training.run_folder import RunFolder
from utils.config_files import load_config

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


@pytest.fixture(autouse=True)
def plain_float32(monkeypatch):
    """Disable TF32, which has ten bits: comparisons with a CPU need full float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Write sixteen images and eight masks of random content."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("images", "train", "val"):
        (folder / name).mkdir()
    for i in range(16):
        small = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(small).resize((96, 80), Image.Resampling.BICUBIC).save(folder / "images" / f"{i}.png")
    for i in range(8):
        mask = np.ones((64, 64), np.uint8)
        mask[4 * i : 4 * i + 20, 8:50] = 0
        write_mask(folder / "train" / f"{i}.png", mask)
        write_mask(folder / "val" / f"{i}.png", mask.T)
    return folder


def arguments(world, run, *more):
    return [
        f"run.dir={run}",
        "run.device=cuda",
        f"data.train={world / 'images'}",
        f"data.val={world / 'images'}",
        "data.val_pairs=4",
        "data.image_size=64",
        "data.workers=2",
        f"masks.train_dir={world / 'train'}",
        f"masks.val_dir={world / 'val'}",
        "model.depth=4",
        "model.base_channels=16",
        "train.batch_size=4",
        "phases.0.steps=6",
        "phases.1.steps=4",
        "phases.1.settle_batches=2",
        "train.log_every=5",
        "train.eval_every=5",
        "train.save_every=3",
        *more,
    ]


def inputs(n=2, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, size, size, generator=generator)
    return image, (torch.rand(n, 1, size, size, generator=generator) > 0.4).float()


def test_the_layer_is_that_of_the_cpu():
    image, mask = inputs()
    layer = PartialConv2d(3, 8, 5, stride=2, padding=2)
    y, m = layer(image, mask)
    y_cuda, m_cuda = copy.deepcopy(layer).cuda()(image.cuda(), mask.cuda())
    torch.testing.assert_close(y_cuda.cpu(), y, rtol=1e-4, atol=1e-5)
    assert torch.equal(m_cuda.cpu(), m)


@pytest.mark.parametrize("base", ["none", "push_pull", "thin_plate"])
def test_the_network_and_its_gradient_are_those_of_the_cpu(base):
    image, mask = inputs()
    net = PConvUNet(4, 16, base).train()
    torch.nn.init.normal_(net.decoder[-1].conv.weight, std=0.1)
    other = copy.deepcopy(net).cuda()
    output, output_cuda = net(image, mask), other(image.cuda(), mask.cuda())
    torch.testing.assert_close(output_cuda.cpu(), output, rtol=1e-3, atol=1e-4)
    output.square().mean().backward()
    output_cuda.square().mean().backward()
    for weight, weight_cuda in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight_cuda.grad.cpu(), weight.grad, rtol=1e-2, atol=1e-4)


def test_the_host_does_not_wait_between_two_records(world, tmp_path):
    config = load_config(overrides=arguments(world, tmp_path / "run", "train.ema_decay=0.9"))
    schedule, device = Schedule(config), torch.device("cuda")
    data = open_data(config, schedule, RunFolder(tmp_path / "run"), begun=False, rescan=False)
    state = TrainState(config, make_network(config, None, None), device)
    phase = schedule.phases[0]
    _, losses_of = begin_phase(config, phase, state, data, device)
    batches = list(training_batches(training_samples(config), config, 0, 6, device=device))

    def step(batch):
        state.set_lr(phase.lr_at(state.step))
        state.optimizer.zero_grad(set_to_none=True)
        losses = losses_of(*batch)
        state.scaler.scale(losses["total"]).backward()
        state.take_step(mean_losses([losses]))

    step(batches[0])  # the first step creates the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    state.check_finite(RunFolder(tmp_path), Schedule(config))


def test_batches_copied_ahead_are_those_of_the_cpu(world, tmp_path):
    config = load_config(overrides=arguments(world, tmp_path / "run"))
    samples = training_samples(config)
    on_cpu = training_batches(samples, config, 0, 6)
    on_cuda = training_batches(samples, config, 0, 6, device=torch.device("cuda"))
    for batch, batch_cuda in zip(on_cpu, on_cuda, strict=True):
        for tensor, tensor_cuda in zip(batch, batch_cuda, strict=True):
            assert torch.equal(tensor_cuda.cpu(), tensor)


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_a_resumed_run_has_the_weights_of_a_straight_one(world, tmp_path, amp):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert script.main(arguments(world, straight, f"train.amp={amp}")) == 0
    assert script.main(arguments(world, resumed, f"train.amp={amp}", "phases.0.steps=3", "phases.1.steps=0")) == 0
    steps = ["phases.0.steps=6", "phases.1.steps=4"]
    assert script.main(["--resume", str(resumed), *steps]) == 0
    a, b = (torch.load(RunFolder(run).last, weights_only=True)["model"] for run in (straight, resumed))
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_run_is_the_same_to_rounding(world, tmp_path, mode):
    for name, compile_mode in (("plain", "none"), ("compiled", mode)):
        assert script.main(arguments(world, tmp_path / name, f"train.compile={compile_mode}", "train.amp=none")) == 0
    a, b = (torch.load(RunFolder(tmp_path / name).last, weights_only=True)["model"] for name in ("plain", "compiled"))
    for key in a:
        torch.testing.assert_close(b[key].float(), a[key].float(), rtol=1e-2, atol=1e-3)


def test_paper_512_trains_in_8_gb():
    torch.cuda.reset_peak_memory_stats()
    net = PConvUNet(8, 64).cuda().to(memory_format=torch.channels_last).train()
    net.checkpoint_activations = True
    image, mask = (tensor.cuda() for tensor in inputs(6, 512))
    with torch.autocast("cuda", torch.bfloat16):
        loss = net(image, mask).float().square().mean()
    loss.backward()
    assert torch.cuda.max_memory_allocated() < 8e9
