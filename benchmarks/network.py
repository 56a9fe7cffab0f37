"""Training time and size of the network against its rivals, at 256×256 with seven levels and 64 base channels.

Run from the project's folder: python -m benchmarks.network
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import OrdinaryUNet, TextbookLoss, TextbookUNet
from benchmarks.tables import Row, medians, show
from loss import InpaintingLoss
from model import PConvUNet, VGG16Features
from utils.config_files import load_config
from utils.startup import keep_freed_memory

SIZE = 256
BATCHES = (1, 4)
WEIGHTS = dict(load_config().loss.weights)


def rows() -> Iterator[Row]:
    """Yield (what was measured, figure, target)."""
    torch.manual_seed(0)
    keep_freed_memory()  # as main.py does
    net = PConvUNet(7, 64)
    yield from size_rows(net)
    for measure in (gradient_rows, step_rows):
        for batch in BATCHES:
            yield from measure(net, batch)


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    """Return random images, and masks with round holes that cover about a quarter."""
    image = torch.rand(batch, 3, SIZE, SIZE)
    coarse = nn.functional.interpolate(torch.rand(batch, 1, 16, 16), (SIZE, SIZE), mode="bicubic")
    return image, (coarse > coarse.flatten(1).quantile(0.25, 1).view(-1, 1, 1, 1)).float()


def size_rows(net: PConvUNet) -> Iterator[Row]:
    for batch in BATCHES:
        ours, ordinary = (multiplications(n, batch) for n in (net, OrdinaryUNet(net)))
        what = f"multiplications of the forward in training, batch of {batch}"
        yield f"{what}: ours / ordinary", f"{ours / ordinary:.3f}", "0.75"
    # The counter has no formula for packed convolutions; without oneDNN none is packed.
    with torch.backends.mkldnn.flags(enabled=False):
        ours, ordinary = (multiplications(n, 1) for n in (net.folded(), OrdinaryUNet(net)))
    yield "multiplications of the forward in prediction: ours / ordinary", f"{ours / ordinary:.3f}", "0.75"
    channels_last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for batch in BATCHES:
        ours, ordinary = (saved_bytes(n, batch) for n in (channels_last, OrdinaryUNet(net)))
        yield f"bytes saved for the backward, batch of {batch}: ours / ordinary", f"{ours / ordinary:.3f}", "1.0"


def multiplications(net: nn.Module, batch: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*inputs(batch))
    return counter.get_total_flops() // 2


def saved_bytes(net: nn.Module, batch: int) -> int:
    """Return the bytes that a forward saves for its backward. Storages count once; parameters do not count."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    blocks: dict[int, int] = {}
    kept = []  # so that no freed storage is allocated again

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.append(storage)
        if storage.data_ptr() not in parameters:
            blocks[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        net(*inputs(batch))
    return sum(blocks.values())


def gradient_rows(net: PConvUNet, batch: int) -> Iterator[Row]:
    image, mask = inputs(batch)
    nets = [copy.deepcopy(net).train() for _ in range(4)]

    def learn(rival: nn.Module, layout: torch.memory_format = torch.contiguous_format) -> Callable[[], object]:
        rival.to(memory_format=layout)

        def run() -> None:
            rival.zero_grad(set_to_none=True)
            rival(image.contiguous(memory_format=layout), mask).square().mean().backward()

        return run

    rivals = [
        learn(nets[0], torch.channels_last),  # the default of train.channels_last
        learn(OrdinaryUNet(nets[1])),
        learn(OrdinaryUNet(nets[2]), torch.channels_last),
        learn(TextbookUNet(nets[3])),
    ]
    what = f"U-Net forward and backward, batch of {batch}"
    ours, ordinary, ordinary_nhwc, textbook = medians(rivals, 60 // batch, what)
    yield f"{what}: ours / ordinary", f"{ours / ordinary:.2f}", "0.75"
    yield f"{what}: ours / ordinary in channels-last", f"{ours / ordinary_nhwc:.2f}", ""
    yield f"{what}: ours / textbook", f"{ours / textbook:.2f}", "0.50"


def step_rows(net: PConvUNet, batch: int) -> Iterator[Row]:
    """A complete step: forward, loss, backward, Adam. Ours is fused (train.fused), rivals' only if the row says so."""
    image, mask = inputs(batch)
    nets = [copy.deepcopy(net).train() for _ in range(4)]
    vgg = VGG16Features()
    loss = InpaintingLoss(vgg, WEIGHTS)

    def ours_alone(*arguments: Tensor) -> Tensor:
        return loss(*arguments)[0]

    def learn(
        rival: nn.Module,
        criterion: Callable[..., Tensor],
        fused: bool,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Callable[[], object]:
        optimizer = torch.optim.Adam(rival.to(memory_format=layout).parameters(), 2e-4, fused=fused)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            laid_out = image.contiguous(memory_format=layout)
            criterion(rival(laid_out, mask), laid_out, mask).backward()
            optimizer.step()

        return step

    rivals = [
        learn(nets[0], ours_alone, True, torch.channels_last),
        learn(OrdinaryUNet(nets[1]), ours_alone, False),
        learn(OrdinaryUNet(nets[3]), ours_alone, True),
        learn(TextbookUNet(nets[2]), TextbookLoss(vgg, WEIGHTS), False),
    ]
    what = f"training step, batch of {batch}"
    ours, ordinary, ordinary_fused, textbook = medians(rivals, 10 if batch > 1 else 20, what)
    yield f"{what}: ours / textbook with three VGG passes", f"{ours / textbook:.2f}", "0.75"
    yield f"{what}: ours / ordinary with our loss", f"{ours / ordinary:.2f}", "0.90"
    yield f"{what}: ours / ordinary with our loss and fused Adam", f"{ours / ordinary_fused:.2f}", ""


if __name__ == "__main__":
    show(rows())
