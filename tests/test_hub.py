"""torch.hub's entry points, used from another project: in a new process and another folder."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hubconf
from model import PConvUNet, inpaint
from utils.checkpoint import save_weights

PROJECT = Path(__file__).resolve().parent.parent


def in_a_new_process(code, cwd):
    """Run code, with `load(entry, **options)` defined, in a process that has not imported this project."""
    start = f"import torch\nload = lambda *a, **o: torch.hub.load({str(PROJECT)!r}, *a, source='local', **o)\n"
    return subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", start + code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def picture_and_mask(size=(13, 10)):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, *size, generator=generator)
    return image, (torch.rand(2, 1, *size, generator=generator) > 0.4).float()


FROM_ELSEWHERE = """
import sys
for name in ("cv2", "skimage", "PIL", "yaml", "tqdm", "torchvision", "tensorboard"):
    sys.modules[name] = None  # as if it were not installed
before = list(sys.path)
net = load("pconv_unet")
inpaint = load("inpainter", weights="weights.safetensors")
assert sys.path == before
image, mask = torch.load("in.pt")
torch.save([net.depth, net.base_channels, net.training, inpaint(image, mask)], "out.pt")
from model.loading import load_model  # what is imported later is found, too
from model.composite import composite
import utils.processes
"""


def test_from_another_folder_with_its_dependencies_alone(tmp_path):
    torch.manual_seed(0)
    net = PConvUNet(2, 4)
    save_weights(tmp_path / "weights.safetensors", net.state_dict())
    image, mask = picture_and_mask()
    torch.save([image, mask], tmp_path / "in.pt")
    (tmp_path / "utils.py").write_text("raise SystemExit('the wrong utils')")
    done = in_a_new_process(FROM_ELSEWHERE, tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    *shipped, result = torch.load(tmp_path / "out.pt")
    assert shipped == [6, 32, False]
    assert torch.allclose(result, inpaint(net, image, mask), atol=1e-5)  # the network is folded


def test_a_namesake_of_a_package_is_named(tmp_path):
    (tmp_path / "utils.py").touch()
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport utils\nload('pconv_unet')"
    done = in_a_new_process(code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: another `utils` is loaded, from {tmp_path / 'utils.py'};"
        " load this project before it, or rename it"
    )


def test_weights_of_ones_own(tmp_path):
    net = PConvUNet(3, 2)
    save_weights(tmp_path / "weights.safetensors", net.state_dict())
    for weights in (tmp_path / "weights.safetensors", str(tmp_path / "weights.safetensors")):
        loaded = hubconf.pconv_unet(weights)
        assert not loaded.training
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (7, 64)), ({"depth": 2}, (2, 64)), ({"depth": 3, "base_channels": 2}, (3, 2))],
)
def test_an_untrained_network(options, expected):
    net = hubconf.pconv_unet(pretrained=False, **options)
    assert (net.depth, net.base_channels) == expected
    assert net.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 8}, r"^depth can't be chosen: weights bring theirs; or add pretrained=False$"),
        ({"depth": 8, "base_channels": 2, "weights": "w"}, "^depth and base_channels can't be chosen"),
        ({"pretrained": False, "weights": "w.pt"}, "contradict each other.*got w.pt"),
        ({"pretrained": False, "depth": 0}, "depth and base_channels must be at least 1, got 0"),
        ({"weights": "none.pt"}, "no such file: none.pt"),
        ({"weights": ""}, "is a folder"),
    ],
)
def test_arguments_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        hubconf.pconv_unet(**options)


def test_torch_hub_lists_the_entry_points_alone():
    entries = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")]
    assert entries == ["inpainter", "pconv_unet"]
    assert all(getattr(hubconf, name).__doc__ for name in entries)
