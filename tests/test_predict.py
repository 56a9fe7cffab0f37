"""Prediction: the function `inpaint`, then predict.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torch.nn import functional as F

from data.photo import read_photo
from model import PConvUNet, inpaint, predict_whole
from predict import main
from utils.checkpoint import save_checkpoint, save_weights
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = 0x0112


def network(depth=2):
    """Return a small network with updated batch norm statistics, so that training and evaluation mode differ."""
    torch.manual_seed(0)
    net = PConvUNet(depth=depth, base_channels=4)
    net(torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16))
    return net


def picture_and_mask(n=1, height=13, width=10):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(n, 3, height, width, generator=generator)
    return image, (torch.rand(n, 1, height, width, generator=generator) > 0.4).float()


# --- inpaint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (7, 9), (8, 8), (13, 10), (33, 16)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_any_size_valid_bit_for_bit_rest_in_0_to_1(size, depth):
    image, mask = picture_and_mask(2, *size)
    result = inpaint(network(depth), image, mask)
    valid = mask.expand_as(image) == 1
    assert result.shape == image.shape
    assert result.dtype == image.dtype
    assert torch.equal(result[valid], image[valid])
    assert (result >= 0).all()
    assert (result <= 1).all()
    if not valid.all():
        assert (result[~valid] != image[~valid]).float().mean() > 0.9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30, 7.0])
def test_what_lies_in_a_hole_never_matters(value):
    image, mask = picture_and_mask()
    net = network()
    assert torch.equal(inpaint(net, image.masked_fill(mask == 0, value), mask), inpaint(net, image, mask))


def test_padding_is_a_hole():
    image, mask = picture_and_mask(1, 13, 10)
    net = network().eval()
    padded = F.pad(image, (0, 2, 0, 3), value=0.7), F.pad(mask, (0, 2, 0, 3))
    with torch.no_grad():
        expected = net(*padded)[..., :13, :10].clamp(0, 1)
    torch.testing.assert_close(predict_whole(net, image, mask), expected, rtol=0, atol=1e-6)


def test_a_batch_is_its_images_one_by_one():
    image, mask = picture_and_mask(3)
    net = network()  # in training mode, batch norm would mix the images
    singly = [inpaint(net, image[i : i + 1], mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(inpaint(net, image, mask), torch.cat(singly), rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    image, mask = picture_and_mask()
    net = network().freeze_encoder_batch_norm().train(training)
    modes = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    inpaint(net, image, mask)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    net.unet = None  # after an error the mode is restored too
    with pytest.raises(TypeError):
        inpaint(net, image, mask)
    assert net.training == training


def test_types_of_image_and_model_may_differ():
    image, mask = picture_and_mask()
    result = inpaint(network(), image.double(), mask)
    assert result.dtype == torch.float64
    assert torch.equal(result[mask.expand_as(image) == 1], image.double()[mask.expand_as(image) == 1])
    assert inpaint(network().double(), image, mask).dtype == torch.float32


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (torch.zeros(3, 4, 4), torch.ones(1, 1, 4, 4), r"image .*\(N,3,H,W\).*got \(3, 4, 4\)"),
        (torch.zeros(1, 4, 4, 4), torch.ones(1, 1, 4, 4), r"image .*got \(1, 4, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), torch.ones(1, 1, 0, 4), r"image .*not empty"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.ones(1, 1, 4, 4), r"image .*uint8"),
        (torch.zeros(1, 3, 4, 5), torch.ones(4, 5), r"mask .*\(1, 1, 4, 5\).*got \(4, 5\)"),
        (torch.zeros(1, 3, 4, 5), torch.ones(1, 3, 4, 5), r"mask .*got \(1, 3, 4, 5\)"),
        (torch.zeros(2, 3, 4, 5), torch.ones(1, 1, 4, 5), r"mask .*\(2, 1, 4, 5\)"),
        (torch.zeros(1, 3, 4, 5), torch.ones(1, 1, 5, 4), r"mask .*got \(1, 1, 5, 4\)"),
        (torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool), r"mask .*bool"),
        (torch.zeros(1, 3, 4, 4), torch.full((1, 1, 4, 4), 255.0), r"mask .*1 \(valid\) or 0 \(hole\), got 255"),
        (torch.zeros(1, 3, 1, 3), torch.tensor([[[[0.0, 0.5, 1]]]]), r"mask .*got 0.5"),
        (torch.full((1, 3, 4, 4), 255.0), torch.ones(1, 1, 4, 4), r"image .*\[0,1\].*to 255"),
        (torch.full((1, 3, 4, 4), float("nan")), torch.ones(1, 1, 4, 4), r"image .*\[0,1\].*nan"),
    ],
)
def test_wrong_arguments_name_rule_and_value(image, mask, message):
    with pytest.raises(ValueError, match=message):
        inpaint(network(), image, mask)


def test_a_network_that_diverged_says_so():
    net = network()
    net.decoder[-1].conv.bias.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        inpaint(net, *picture_and_mask())


# --- predict.py: one image ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "weights.safetensors"
    save_weights(path, network().state_dict())
    return path


@pytest.fixture
def run(tmp_path, weights, capsys):
    """Run main on files in tmp_path; return (exit code, stdout, stderr). A later option overrides an earlier one."""

    def call(*options, image="image.png", mask="mask.png"):
        arguments = ["--image", tmp_path / image, "--mask", tmp_path / mask, "--model", weights, *options]
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def noise(height, width, channels, dtype=np.uint8):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)
    return pixels[..., 0] if channels == 1 else pixels


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


def save_mask(path, height, width, hole=None, **options):
    """Write a mask with a black hole; the default is a third of each side in the lower right part."""
    mask = np.full((height, width), 255, np.uint8)
    mask[hole or (slice(height // 2, height // 2 + max(1, height // 3)), slice(width // 2, None))] = 0
    save(path, mask, **options)
    return mask > 0


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 5), (17, 30), (64, 33)])
def test_any_size_keeps_size_and_valid_pixels(tmp_path, run, size):
    pixels = noise(*size, 3)
    save(tmp_path / "image.png", pixels)
    valid = save_mask(tmp_path / "mask.png", *size)
    before = contents(tmp_path)
    code, out, err = run()
    after = contents(tmp_path)
    repaired = read_photo(tmp_path / "image_inpainted.png").pixels
    assert (code, err) == (0, "")
    assert f"{size[1]}×{size[0]} px" in out
    assert repaired.shape == pixels.shape
    assert np.array_equal(repaired[valid], pixels[valid])
    assert (repaired[~valid] != pixels[~valid]).any()
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()  # no input is changed, and no other file is left behind


def tiny_palette(height, width):
    image = Image.fromarray(noise(height, width, 1) // 16, "L").convert("P")
    image.putpalette(noise(16, 3, 1).tobytes())
    return image


KINDS = {  # file name: (image, options of Pillow's save, channels as stored)
    "1.png": (Image.fromarray(noise(20, 15, 1) > 99), {}, 1),
    "l.png": (Image.fromarray(noise(20, 15, 1)), {"icc_profile": SRGB}, 1),
    "la.png": (Image.fromarray(noise(20, 15, 2)), {}, 2),
    "p.png": (tiny_palette(20, 15), {"icc_profile": SRGB}, 3),
    "p_transparent.png": (tiny_palette(20, 15), {"transparency": 5}, 4),
    "rgb.png": (Image.fromarray(noise(20, 15, 3)), {"icc_profile": SRGB}, 3),
    "rgb_transparent.png": (Image.fromarray(noise(20, 15, 3)), {"transparency": (1, 2, 3)}, 4),
    "rgba.png": (Image.fromarray(noise(20, 15, 4)), {"icc_profile": SRGB}, 4),
    "grey_16.png": (Image.fromarray(noise(20, 15, 1, np.uint16)), {}, 1),
    "rgb.jpg": (Image.fromarray(noise(20, 15, 3)), {"icc_profile": SRGB}, 3),
    "l.jpg": (Image.fromarray(noise(20, 15, 1)), {}, 1),
    "cmyk.jpg": (Image.fromarray(noise(20, 15, 3)).convert("CMYK"), {}, 3),
    "rgb.webp": (Image.fromarray(noise(20, 15, 3)), {"icc_profile": SRGB}, 3),
    "rgba.webp": (Image.fromarray(noise(20, 15, 4)), {"lossless": True}, 4),
    "rgb.bmp": (Image.fromarray(noise(20, 15, 3)), {}, 3),
    "p.gif": (tiny_palette(20, 15), {}, 3),
    "rgb.tif": (Image.fromarray(noise(20, 15, 3)), {"icc_profile": SRGB}, 3),
}


def check_repair(before, after, valid):
    """Check that valid pixels, alpha, profile and orientation of two files agree, and that the hole was filled."""
    before, after = read_photo(before), read_photo(after)
    assert after.pixels.dtype == before.pixels.dtype
    assert after.pixels.shape == before.pixels.shape
    assert after.icc_profile == before.icc_profile
    assert after.orientation == before.orientation
    assert np.array_equal(after.visible(), before.visible())
    if before.has_alpha:
        assert np.array_equal(after.pixels[..., -1], before.pixels[..., -1])
    assert np.array_equal(after.rgb()[valid], before.rgb()[valid])
    assert (after.rgb() != before.rgb()).any(axis=-1)[~valid].mean() > 0.4  # a black and white hole has few values


@pytest.mark.parametrize("name", KINDS)
def test_any_kind_of_image(tmp_path, run, name):
    image, options, channels = KINDS[name]
    image.save(tmp_path / name, **options)
    valid = save_mask(tmp_path / "mask.png", 20, 15)
    code, _, err = run("--output", tmp_path / "out.png", image=name)
    assert (code, err) == (0, "")
    check_repair(tmp_path / name, tmp_path / "out.png", valid)
    assert read_photo(tmp_path / "out.png").pixels.shape == (20, 15, channels)
    assert read_photo(tmp_path / "out.png").icc_profile == options.get("icc_profile")


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, run, orientation, kind):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = save(tmp_path / f"image.{kind}", noise(12, 20, 3), exif=exif)
    shown = (20, 12) if orientation >= 5 else (12, 20)
    valid = save_mask(tmp_path / "mask.png", *shown, hole=(slice(0, 4), slice(0, 5)))
    code, _, err = run("--output", tmp_path / "out.png", image=image.name)
    assert (code, err) == (0, "")
    check_repair(image, tmp_path / "out.png", valid)
    assert read_photo(tmp_path / "out.png").pixels.shape == (12, 20, 3)


def test_colours_under_full_transparency_are_kept_and_not_gone_by(tmp_path, run):
    pixels = noise(16, 16, 4)
    pixels[:, :5, 3] = 0
    pixels[:, 5:, 3] = 255
    valid = save_mask(tmp_path / "mask.png", 16, 16)
    results = []
    for hidden in (0, 255):
        pixels[:, :5, :3] = hidden
        check = save(tmp_path / "image.png", pixels)
        assert run()[0] == 0
        check_repair(check, tmp_path / "image_inpainted.png", valid)
        results.append(read_photo(tmp_path / "image_inpainted.png").pixels)
        assert (results[-1][:, :5, :3] == hidden).all()
    assert np.array_equal(results[0][~valid], results[1][~valid])

    pixels[..., 3] = np.where(valid, 255, 0)
    save(tmp_path / "image.png", pixels)
    assert "hint: 100 % of the hole is fully transparent" in run()[2]
    pixels[..., 3] = np.where(valid, 0, 255)
    save(tmp_path / "image.png", pixels)
    code, _, err = run()
    assert code == 1
    assert "fully transparent outside the hole" in err


def test_filled_as_inpaint_fills(tmp_path, run):
    pixels = noise(20, 15, 3)
    save(tmp_path / "image.png", pixels)
    valid = save_mask(tmp_path / "mask.png", 20, 15)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    mask = torch.from_numpy(valid).float()[None, None]
    for options, fill in (((), inpaint), (("--raw",), predict_whole)):
        assert run(*options)[0] == 0
        expected = (fill(network(), image, mask)[0].permute(1, 2, 0) * 255).round().byte()
        assert np.array_equal(read_photo(tmp_path / "image_inpainted.png").pixels, expected)


def test_a_training_checkpoint_will_do(tmp_path, run):
    save(tmp_path / "image.png", noise(20, 15, 3))
    save_mask(tmp_path / "mask.png", 20, 15)
    run()
    result = (tmp_path / "image_inpainted.png").read_bytes()
    checkpoint = {"model": network().state_dict(), "optimizer": {}, "step": 1, "config": {}}
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    assert run("--model", tmp_path / "last.pt")[0] == 0
    assert (tmp_path / "image_inpainted.png").read_bytes() == result


# --- predict.py: output paths ------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    save(tmp_path / "image.png", noise(20, 15, 3))
    return save_mask(tmp_path / "mask.png", 20, 15)


def test_output_into_folders_that_exist_or_not(tmp_path, run, pair):
    assert run("--output", tmp_path / "new" / "newer" / "out.webp")[0] == 0
    check_repair(tmp_path / "image.png", tmp_path / "new" / "newer" / "out.webp", pair)
    assert run("--output", tmp_path / "new")[0] == 0
    check_repair(tmp_path / "image.png", tmp_path / "new" / "image_inpainted.png", pair)


def test_jpeg_output_warns(tmp_path, run, pair):
    code, _, err = run("--output", tmp_path / "out.JPG")
    assert code == 0
    assert err.startswith("warning: JPEG changes valid pixels")
    assert (tmp_path / "out.JPG").read_bytes().startswith(b"\xff\xd8")


def test_what_the_output_cannot_keep_is_said_before_computing(tmp_path, run, pair, monkeypatch):
    monkeypatch.setattr("repair.fill_photo", None)
    save(tmp_path / "image.png", noise(20, 15, 4))
    code, _, err = run("--output", tmp_path / "out.jpg")
    assert code == 1
    assert "the image has an alpha channel, which .jpg can't keep; name it .png" in err


@pytest.mark.parametrize("name", ["out", "out.gif", "out.png.txt", "image", ".png"])
def test_output_needs_a_name_of_an_image(tmp_path, run, pair, name):
    code, _, err = run("--output", tmp_path / name)
    assert code == 1
    assert "--output: must end in .png" in err
    assert len(contents(tmp_path)) == 2


def test_output_that_cannot_be_written(tmp_path, run, pair):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png" / "image_inpainted.png").mkdir(parents=True)
    for output in (tmp_path / "file" / "out.png", tmp_path / "folder.png", Path("/proc/none/out.png")):
        code, _, err = run("--output", output)
        assert code == 1
        assert err.count("\n") == 1
        assert "error: --output" in err


@pytest.mark.parametrize("which", ["image.png", "mask.png", "weights"])
@pytest.mark.parametrize("way", ["name", "relative", "symbolic link", "hard link", "linked folder"])
def test_an_input_is_never_overwritten(tmp_path, run, pair, monkeypatch, weights, which, way):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "weights.png"  # a name that would be a valid output
    model.write_bytes(weights.read_bytes())
    victim = model if which == "weights" else tmp_path / which
    output = {
        "name": victim,
        "relative": Path("..") / tmp_path.name / victim.name,
        "symbolic link": tmp_path / "link.png",
        "hard link": tmp_path / "link.png",
        "linked folder": tmp_path / "linked" / victim.name,
    }[way]
    if way == "symbolic link":
        output.symlink_to(victim)
    elif way == "hard link":
        output.hardlink_to(victim)
    elif way == "linked folder":
        output.parent.symlink_to(tmp_path, target_is_directory=True)
    before = contents(tmp_path)
    code, _, err = run("--output", output, "--model", model)
    assert code == 1
    assert "is an input of this run" in err
    assert contents(tmp_path) == before


# --- predict.py: invalid masks and models ------------------------------------------------------------------------


def test_hole_colour(tmp_path, run, pair):
    run()
    result = (tmp_path / "image_inpainted.png").read_bytes()
    save(tmp_path / "mask.png", np.where(pair, 0, 255).astype(np.uint8))
    assert run("--hole", "white")[0] == 0
    assert (tmp_path / "image_inpainted.png").read_bytes() == result
    code, _, err = run()
    assert code == 0
    assert err.startswith("hint: ")
    assert "add --hole white" in err


@pytest.mark.parametrize(("value", "message"), [(255, "has no black pixel"), (0, "is all hole (black)")])
def test_empty_and_all_hole_masks(tmp_path, run, pair, value, message):
    save(tmp_path / "mask.png", np.full((20, 15), value, np.uint8))
    code, _, err = run()
    assert code == 1
    assert message in err
    assert "--hole white" in err
    assert len(contents(tmp_path)) == 2


def test_grey_masks_are_cut_at_half_and_noise_is_no_grey(tmp_path, run, pair):
    run()
    result = (tmp_path / "image_inpainted.png").read_bytes()
    save(tmp_path / "mask.jpg", np.where(pair, 255, 0).astype(np.uint8), quality=90)
    assert run(mask="mask.jpg")[2] == ""
    for grey, warning in ((3, ""), (4, "warning: 1.3 % of mask")):  # of 300 pixels
        mask = np.where(pair, 255, 0).astype(np.uint8)
        mask[0, :grey] = 140
        save(tmp_path / "mask.png", mask)
        assert run()[2].startswith(warning)
        assert bool(run()[2]) == bool(warning)
    save(tmp_path / "mask.png", np.where(pair, 140, 110).astype(np.uint8))
    code, _, err = run()
    assert code == 0
    assert err.startswith("warning: 100.0 % of mask")
    assert (tmp_path / "image_inpainted.png").read_bytes() == result


def test_mask_of_another_size(tmp_path, run, pair):
    save_mask(tmp_path / "mask.png", 21, 15)
    code, _, err = run()
    assert code == 1
    assert "is 15×21 px and image" in err
    assert "is 15×20 px" in err
    assert "EXIF" not in err


def test_mask_for_the_stored_pixels_of_a_turned_image(tmp_path, run):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    save(tmp_path / "image.png", noise(20, 15, 3), exif=exif)
    save_mask(tmp_path / "mask.png", 20, 15)
    code, _, err = run()
    assert code == 1
    assert err.count("\n") == 1
    assert "is 15×20 px" in err
    assert "is 20×15 px" in err
    assert "the mask fits the stored pixels, which EXIF orientation 6 rotates" in err


@pytest.mark.parametrize("option", ["image", "mask", "model"])
@pytest.mark.parametrize("what", ["missing", "empty", "text", "truncated", "folder", "noise"])
def test_foreign_files(tmp_path, run, pair, weights, option, what):
    suffix = ".safetensors" if option == "model" else ".png"
    path = tmp_path / f"foreign{suffix}"
    whole = weights if option == "model" else tmp_path / "image.png"
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        data = {"empty": b"", "text": b"hello\n", "truncated": whole.read_bytes()[:150], "noise": bytes(range(256))}
        path.write_bytes(data[what])
    code, out, err = run(f"--{option}", path)
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert str(path) in err


@pytest.mark.parametrize("content", [{}, {"a": torch.ones(2)}, [1, 2], {"model": {}}, torch.ones(2)])
def test_foreign_torch_files(tmp_path, run, pair, content):
    torch.save(content, tmp_path / "foreign.pt")
    code, _, err = run("--model", tmp_path / "foreign.pt")
    assert code == 1
    assert err.count("\n") == 1
    assert "foreign.pt" in err


def test_a_device_or_pipe_is_no_image(run, pair):
    code, _, err = run("--image", "/dev/null")
    assert code == 1
    assert err == "error: --image: must be a file or a folder, not a pipe or a device: /dev/null\n"


def test_too_large_for_the_memory(run, pair, monkeypatch):
    def exhausted(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes.\nError code 12")

    monkeypatch.setattr("model.filler.unet_within", exhausted)
    code, _, err = run()
    assert code == 1
    assert "not enough memory for image" in err
    assert "15×20 px" in err


# --- predict.py: folders -----------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Write images/ a.jpg, b.PNG, c.png and masks/ with the same stems and different holes. Returns {stem: valid}."""
    for name in ("a.jpg", "b.PNG", "c.png"):
        save(tmp_path / "images" / name, noise(20, 15, 3))
    return {
        stem: save_mask(tmp_path / "masks" / f"{stem}.png", 20, 15, hole=(slice(i, i + 3), slice(4 * i, 4 * i + 5)))
        for i, stem in enumerate("abc")
    }


def test_folder_of_images_and_folder_of_masks(tmp_path, run, folders):
    (tmp_path / "images" / "notes.txt").touch()
    code, out, _ = run(image="images", mask="masks")
    assert code == 0
    assert out.count("\n") == 3
    assert sorted(path.name for path in (tmp_path / "images_inpainted").iterdir()) == ["a.png", "b.png", "c.png"]
    for name in ("a.jpg", "b.PNG", "c.png"):
        check_repair(tmp_path / "images" / name, tmp_path / "images_inpainted" / f"{name[0]}.png", folders[name[0]])


def test_folder_of_images_and_one_mask_for_all(tmp_path, run, folders):
    code, _, _ = run("--output", tmp_path / "out" / "er", image="images", mask="masks/b.png")
    assert code == 0
    for name in ("a.jpg", "b.PNG", "c.png"):
        check_repair(tmp_path / "images" / name, tmp_path / "out" / "er" / f"{name[0]}.png", folders["b"])


def test_one_image_and_a_folder_of_masks(tmp_path, run, folders):
    assert run(image="images/c.png", mask="masks")[0] == 0
    check_repair(tmp_path / "images" / "c.png", tmp_path / "images" / "c_inpainted.png", folders["c"])


def test_the_current_folder_has_a_name(tmp_path, run, folders, monkeypatch):
    monkeypatch.chdir(tmp_path / "images")
    assert run("--image", ".", mask="masks")[0] == 0
    assert len(contents(tmp_path / "images_inpainted")) == 3


def test_bad_pairs_are_reported_and_the_rest_go_on(tmp_path, run, folders):
    images, masks = tmp_path / "images", tmp_path / "masks"
    (images / "0.png").write_bytes(b"no image")
    (masks / "0.png").write_bytes((masks / "a.png").read_bytes())
    (masks / "a.png").write_bytes(b"no mask")
    save(images / "d.png", noise(9, 9, 3))  # has no mask
    save_mask(masks / "b.jpg", 20, 15)  # a second mask for it
    code, out, err = run(image="images", mask="masks")
    errors = [line for line in err.replace("\r", "\n").split("\n") if line.startswith("error: ")]
    assert code == 1
    assert len(errors) == 4
    assert "not an image" in errors[0]
    assert "not an image" in errors[1]
    assert "one mask named b.*" in errors[2]
    assert "found b.jpg and b.png" in errors[2]
    assert "one mask named d.*" in errors[3]
    assert "found none" in errors[3]
    assert "4 of 5 images failed" in err
    assert [path.name for path in (tmp_path / "images_inpainted").iterdir()] == ["c.png"]
    assert out.count("\n") == 1


@pytest.mark.parametrize("output", ["images", "masks", "linked"])
def test_no_input_of_the_whole_folder_is_overwritten(tmp_path, run, folders, output):
    (tmp_path / "linked").symlink_to(tmp_path / "masks", target_is_directory=True)
    before = contents(tmp_path)
    code, _, err = run("--output", tmp_path / output, image="images", mask="masks")
    assert code == 1
    assert "is an input of this run" in err
    assert contents(tmp_path) == before


def test_not_even_the_mask_of_another_image(tmp_path, run, folders):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "masks" / "c.png")
    before = contents(tmp_path)
    assert run("--output", tmp_path / "out", image="images", mask="masks")[0] == 1
    assert contents(tmp_path) == before


def test_two_images_of_one_name_are_refused(tmp_path, run, folders):
    save(tmp_path / "images" / "c.bmp", noise(20, 15, 3))
    code, _, err = run(image="images", mask="masks")
    assert code == 1
    assert "would both become" in err


@pytest.mark.parametrize("output", ["file", "new.png"])
def test_output_of_a_folder_is_a_folder(tmp_path, run, folders, output):
    (tmp_path / "file").touch()
    code, _, err = run("--output", tmp_path / output, image="images", mask="masks")
    assert code == 1
    assert "--output: must be a folder" in err


@pytest.mark.parametrize("option", ["image", "mask"])
def test_empty_folders_are_named(tmp_path, run, folders, option):
    (tmp_path / "empty").mkdir()
    code, _, err = run(f"--{option}", tmp_path / "empty", image="images", mask="masks")
    assert code == 1
    assert f"--{option}: no images (.jpg, " in err
    assert str(tmp_path / "empty") in err


# --- predict.py as a command -------------------------------------------------------------------------------------


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, PROJECT / "predict.py", *arguments], cwd=cwd, capture_output=True, timeout=100, check=False
    )


def test_names_that_are_no_utf_8(tmp_path, pair, weights):
    folder = os.fsencode(tmp_path)
    name, mask = os.path.join(folder, b"caf\xe9 \xf0\x9f\x90\x88.png"), os.path.join(folder, b"m\xff.png")
    try:
        os.rename(tmp_path / "image.png", name)
    except OSError:
        pytest.skip("a file system whose names are UTF-8 alone")
    os.rename(tmp_path / "mask.png", mask)
    done = command("--image", name, "--mask", mask, "--model", weights, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"15\xc3\x9720 px" in done.stdout
    check_repair(Path(os.fsdecode(name)), Path(os.fsdecode(name[:-4] + b"_inpainted.png")), pair)


WITHOUT_TORCH = """
import sys
from predict import main
try:
    code = main({arguments})
except SystemExit as stop:
    code = stop.code
assert not {{"torch", "cv2"}} & set(sys.modules), "torch was imported"
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--help"], 0, "--hole"),
        ([], 2, "required"),
        (["--image", "", "--mask", "m", "--model", "w"], 2, "an empty name"),
        (["--image", "i", "--mask", "m", "--model", "w", "--hole", "red"], 2, "--hole"),
        (["--image", "no.png", "--mask", "mask.png", "--model", "w"], 1, "--image: no such file or folder: no.png"),
        (["--image", "image.png", "--mask", "no.png", "--model", "w"], 1, "--mask: no such file or folder: no.png"),
        (["--image", "image.png", "--mask", "mask.png", "--model", "w"], 1, "--model: no such file: w"),
        (["--image", "image.png", "--mask", "mask.png", "--model", "mask.png", "--output", "o"], 1, "--output"),
        (["--image", "image.png", "--mask", "mask.png", "--model", "mask.png", "--output", "mask.png"], 1, "input"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_help_and_argument_errors_come_without_torch(tmp_path, pair, arguments, code, message):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(arguments=arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# --- arbitrary file contents -------------------------------------------------------------------------------------


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    which=st.sampled_from(["image.png", "mask.png"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5),
    length=st.integers(1, 2000),
)
def test_damaged_files_never_give_a_traceback_nor_are_changed(tmp_path, run, which, changes, length):
    save(tmp_path / "image.png", noise(9, 7, 4), icc_profile=SRGB)
    save_mask(tmp_path / "mask.png", 9, 7)
    data = bytearray((tmp_path / which).read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    (tmp_path / which).write_bytes(data[:length])
    before = contents(tmp_path)
    code, _, err = run("--output", tmp_path / "new" / "out.png")
    assert code in (0, 1)
    assert code == 0 or err.count("error: ") == 1
    assert before.items() <= contents(tmp_path).items()
