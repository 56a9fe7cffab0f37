"""Muon: the orthogonalised update, and which weights it is for."""

import pytest
import torch

from model import PConvUNet
from training.muon import Muon, is_hidden_kernel, orthogonalised


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (8, 8), (1, 9)])
def test_singular_values_become_about_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, -1.5, len(v), dtype=torch.float64) * 3
    result = orthogonalised(u @ torch.diag(values) @ v)
    diagonal = u.T @ result @ v.T
    assert ((diagonal.diagonal() > 0.6) & (diagonal.diagonal() < 1.3)).all()
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-9)


def test_the_update_is_that_of_torch():
    """torch.optim.Muon takes matrices and iterates in bfloat16, hence the tolerance."""
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().clone().flatten(1))
    ours = Muon([kernel], 0.1, momentum=0.9, weight_decay=0.5)
    theirs = torch.optim.Muon([matrix], 0.1, 0.5, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1).clone()
        before = kernel.detach().clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), rtol=0, atol=3e-3)
        assert (kernel.detach() - before).abs().max() > 0.05
        assert torch.equal(kernel.grad.flatten(1), matrix.grad)


def test_memory_format_changes_rounding_alone():
    torch.manual_seed(0)
    results = []
    first, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        kernel = torch.nn.Parameter(first.clone(memory_format=memory_format))
        kernel.grad = gradient.clone(memory_format=memory_format)
        Muon([kernel], 0.1, momentum=0.9, weight_decay=0.0).step()
        results.append(kernel.detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


def test_only_kernels_between_features_get_it():
    net = PConvUNet(3, 4, "thin_plate")
    chosen = {name for name, weight in net.named_parameters() if is_hidden_kernel(weight)}
    kernels = {f"{side}.{level}.conv.weight" for side in ("encoder", "decoder") for level in range(3)}
    assert chosen == kernels - {"encoder.0.conv.weight", "decoder.2.conv.weight"}


def test_other_weights_are_those_of_adamw():
    torch.manual_seed(0)
    nets = [PConvUNet(2, 4) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    ours = Muon(nets[0].parameters(), 1e-2, momentum=0.9, weight_decay=0.1)
    theirs = torch.optim.AdamW(nets[1].parameters(), 1e-2, betas=(0.9, 0.999), weight_decay=0.1)
    for _ in range(2):
        for weight, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            weight.grad = torch.randn_like(weight)
            other.grad = weight.grad.clone()
        ours.step()
        theirs.step()
    for weight, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(weight, other) != is_hidden_kernel(weight)
