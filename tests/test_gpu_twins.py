"""GPU code, as far as a CPU can test it. test_cuda.py tests the rest."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loss import InpaintingLoss
from model import PConvUNet, VGG16Features
from model.sync_batch_norm import SyncBatchNorm2d, synchronise_batch_norm
from utils.config_files import load_config


def inputs(size=32):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, size, size, generator=generator)
    return image, (torch.rand(2, 1, size, size, generator=generator) > 0.4).float()


def network(base="push_pull"):
    torch.manual_seed(0)
    net = PConvUNet(4, 8, base).train()
    torch.nn.init.normal_(net.decoder[-1].conv.weight, std=0.1)
    return net


@pytest.mark.parametrize("base", ["none", "push_pull", "thin_plate"])
def test_network_and_loss_compile_into_one_graph(base):
    net, criterion = network(base), InpaintingLoss(VGG16Features(), load_config().loss.weights.model_dump())

    def losses_of(image, mask):
        total, terms = criterion(net(image, mask), image, mask)
        return {"total": total, **terms}

    explained = torch._dynamo.explain(losses_of)(*inputs())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


@pytest.mark.parametrize("base", ["none", "push_pull", "thin_plate"])
def test_checkpointed_activations_change_neither_gradients_nor_statistics(base):
    net = network(base)
    other = copy.deepcopy(net)
    other.checkpoint_activations = True
    for each in (net, other):
        each(*inputs()).square().mean().backward()
    for (name, weight), same in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(weight.grad, same.grad), name
    for (name, buffer), same in zip(net.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(buffer, same), name


def test_checkpointed_activations_keep_less():
    def kept(net):
        sizes = {}

        def save(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            output = net(*inputs(64))
        return sum(sizes.values()), output  # the output keeps all of them alive

    net = network()
    whole, _ = kept(net)
    net.checkpoint_activations = True
    less, _ = kept(net)
    assert less < 0.8 * whole


def test_batch_norm_is_ours_on_a_cpu_and_torchs_own_on_cuda():
    on_cpu = synchronise_batch_norm(network(), torch.device("cpu"))
    on_cuda = synchronise_batch_norm(network(), torch.device("cuda"))  # converting needs no GPU
    kinds = [{type(m) for m in net.modules() if "Norm" in type(m).__name__} for net in (on_cpu, on_cuda)]
    assert kinds == [{SyncBatchNorm2d}, {torch.nn.SyncBatchNorm}]
    assert on_cpu.state_dict().keys() == on_cuda.state_dict().keys()


@pytest.mark.slow
def test_the_benchmark_for_a_gpu_runs(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", tmp_path / "gpu.md"]
    project = Path(__file__).resolve().parent.parent
    subprocess.run(list(map(str, command)), cwd=project, check=True, capture_output=True, timeout=600)
    table = (tmp_path / "gpu.md").read_text()
    for row in ("forward and backward", "decoder level 1", "training step with VGG-16", "that waits for"):
        assert row in table
