"""predict.py: matching of masks and images, methods, growing holes, names and formats of outputs."""

import os
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import predict
from evaluation.baselines import FILLS
from model import PConvUNet, load_for_prediction
from repair import grown, inpaint
from utils.arguments import DEFAULT_WEIGHTS
from utils.checkpoint import save_weights

HEIGHT, WIDTH = 32, 48  # px
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
HOLE = np.zeros((HEIGHT, WIDTH), bool)
HOLE[8:20, 10:30] = True


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_mask(path, hole=HOLE):
    return save(path, np.where(hole, 0, 255).astype(np.uint8))


def changed(path):
    return (np.asarray(Image.open(path)) != IMAGE).any(axis=2)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run predict.py in tmp_path, by default with the mean colour; return (exit code, stdout, stderr)."""
    os.chdir(tmp_path)
    monkeypatch.setattr("repair._PATIENCE", 1000)  # no progress bar, however slow the machine

    def call(*options, method="mean"):
        code = predict.main([*map(str, options), *(["--method", method] if method else [])])
        out, err = capsys.readouterr()
        return code, out, err

    return call


# --- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*FILLS, "network", None])
def test_methods(tmp_path, run, method):
    save(tmp_path / "p.png", IMAGE)
    save_mask(tmp_path / "m.png")
    code, _, err = run("--image", "p.png", "--mask", "m.png", method=method)
    assert (code, err) == (0, "")
    assert not changed("p_inpainted.png")[~HOLE].any()
    assert changed("p_inpainted.png")[HOLE].mean() > 0.9


def test_without_a_model_it_is_the_shipped_one(tmp_path, run):
    save(tmp_path / "p.png", IMAGE)
    save_mask(tmp_path / "m.png")
    run("--image", "p.png", "--mask", "m.png", method=None)
    run("--image", "p.png", "--mask", "m.png", "--model", DEFAULT_WEIGHTS, "--output", "named.png", method=None)
    assert np.array_equal(Image.open("p_inpainted.png"), Image.open("named.png"))
    with pytest.raises(SystemExit):
        run("--image", "p.png", "--mask", "m.png", "--model", DEFAULT_WEIGHTS, method="telea")


def test_a_method_is_added_in_one_place(tmp_path, run, monkeypatch):
    save(tmp_path / "p.png", np.full_like(IMAGE, 9))
    save_mask(tmp_path / "m.png")
    monkeypatch.setitem(FILLS, "red", lambda image, mask: np.broadcast_to(np.float32([1, 0, 0]), image.shape))
    assert run("--image", "p.png", "--mask", "m.png", method="red")[0] == 0
    assert (np.asarray(Image.open("p_inpainted.png"))[HOLE] == (255, 0, 0)).all()


# --- growing -----------------------------------------------------------------------------------------------------


def test_a_soft_red_scratch_leaves_no_fringe_once_the_hole_grows(tmp_path, run):
    large = Image.new("RGB", (4 * WIDTH, 4 * HEIGHT), (90, 120, 90))
    ImageDraw.Draw(large).line((20, 20, 150, 90), (255, 0, 0), 12)
    small = large.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    small.save("p.png")
    save_mask(tmp_path / "m.png", np.asarray(small)[..., 0] > 200)  # still fits
    fringe = {}
    for pixels in (0, 2):
        assert run("--image", "p.png", "--mask", "m.png", "--grow", pixels, method="mean")[0] == 0
        fringe[pixels] = np.asarray(Image.open("p_inpainted.png"), int)[..., 0].max()
    assert fringe[0] > 150
    assert fringe[2] < 95


def test_growing_in_python_is_what_the_option_does(tmp_path, run):
    torch.manual_seed(0)
    save_weights(tmp_path / "w.safetensors", PConvUNet(depth=2, base_channels=2).state_dict())
    save(tmp_path / "p.png", IMAGE)
    save_mask(tmp_path / "m.png")
    run("--image", "p.png", "--mask", "m.png", "--model", "w.safetensors", "--grow", "3", method=None)
    image = torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255
    mask = torch.from_numpy(~HOLE)[None, None].float()
    result = inpaint(load_for_prediction("w.safetensors"), image, mask, grow_by=3)
    wanted = (result[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(Image.open("p_inpainted.png"), wanted)
    both = grown(torch.cat([mask, torch.ones_like(mask)]), 3)
    assert both.dtype == mask.dtype
    assert both[1].all()
    assert (both[0, 0] == 0).sum() > HOLE.sum() + 3 * 2 * (12 + 20)


def test_a_hole_that_grows_over_everything(tmp_path, run):
    save(tmp_path / "p.png", IMAGE)
    save_mask(tmp_path / "m.png")
    code, _, err = run("--image", "p.png", "--mask", "m.png", "--grow", "99")
    assert code == 1
    assert "--grow 99" in err
    assert not (tmp_path / "p_inpainted.png").exists()


# --- matching of masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [None, os.symlink, os.link], ids=["the same name", "a link", "a hard link"])
def test_an_image_is_not_its_own_mask(tmp_path, run, link):
    save(tmp_path / "p.png", np.where(HOLE[..., None], 0, 255).repeat(3, 2).astype(np.uint8))
    mask = tmp_path / ("m.png" if link else "p.png")
    if link:
        link(tmp_path / "p.png", mask)
    before = contents(tmp_path)
    code, _, err = run("--image", "p.png", "--mask", mask)
    assert code == 1
    assert "is the image itself" in err
    assert contents(tmp_path) == before


def test_one_folder_of_images_is_not_its_masks(tmp_path, run):
    for name in ("a", "b"):
        save(tmp_path / "d" / f"{name}.png", np.where(HOLE[..., None], 0, 255).repeat(3, 2).astype(np.uint8))
    os.symlink("d", "link")
    before = contents(tmp_path)
    for mask in ("d", "link", "./d/../d"):
        code, _, err = run("--image", "d", "--mask", mask)
        assert code == 1
        assert "each would be its own mask" in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("masks", ["d", "masks"])
def test_names_with_mask_behind_are_paired(tmp_path, run, masks):
    save(tmp_path / "d" / "beach.png", IMAGE)
    save(tmp_path / "d" / "dune.png", IMAGE)
    save_mask(tmp_path / masks / "beach_mask.png")
    save_mask(tmp_path / masks / "dune_mask.png", ~HOLE)
    assert run("--image", "d", "--mask", masks)[0] == 0
    assert sorted(os.listdir("d_inpainted")) == ["beach.png", "dune.png"]
    assert not changed("d_inpainted/beach.png")[~HOLE].any()
    assert not changed("d_inpainted/dune.png")[HOLE].any()


def test_a_mask_of_the_very_name_goes_before_one_with_mask_behind(tmp_path, run):
    save(tmp_path / "d" / "beach.png", IMAGE)
    save_mask(tmp_path / "masks" / "beach.png")
    save_mask(tmp_path / "masks" / "beach_mask.png", ~HOLE)
    assert run("--image", "d", "--mask", "masks")[0] == 0
    assert not changed("d_inpainted/beach.png")[~HOLE].any()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_are_compared_as_they_are_shown(tmp_path, run, forms):
    image, mask = (unicodedata.normalize(form, "élan") for form in forms)
    save(tmp_path / "d" / f"{image}.png", IMAGE)
    save_mask(tmp_path / "masks" / f"{mask}.png")
    assert run("--image", "d", "--mask", "masks")[0] == 0
    assert os.listdir("d_inpainted") == [f"{image}.png"]


# --- kinds of files ----------------------------------------------------------------------------------------------


def test_every_kind_in_a_folder_is_repaired_or_told_of(tmp_path, run):
    for kind in ("jpg", "png", "webp", "bmp", "tif", "avif", "gif", "jp2"):
        save(tmp_path / "d" / f"{kind}.{kind}", IMAGE)
    for kind in ("jfif", "jpe"):
        save(tmp_path / "d" / f"{kind}.{kind}", IMAGE, format="JPEG")
    (tmp_path / "d" / "phone.HEIC").write_bytes(b"not read")
    (tmp_path / "d" / "notes.txt").write_text("no picture")
    save_mask(tmp_path / "m.png")
    code, _, err = run("--image", "d", "--mask", "m.png")
    assert code == 0
    read = ["avif", "bmp", "jfif", "jpe", "jpg", "png", "tif", "webp"]
    assert sorted(os.listdir("d_inpainted")) == [f"{kind}.png" for kind in read]
    assert "3 of other kinds" in err
    assert all(name in err for name in ("phone.HEIC", "gif.gif", "jp2.jp2", "save them as PNG"))
    assert "notes.txt" not in err


@pytest.mark.parametrize(("format", "kind"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF")])
def test_a_folder_may_come_back_in_its_own_format(tmp_path, run, format, kind):
    save(tmp_path / "d" / "a.jpg", IMAGE)
    save_mask(tmp_path / "m.png")
    assert run("--image", "d", "--mask", "m.png", "--format", format)[0] == 0
    assert run("--image", "d/a.jpg", "--mask", "m.png", "--format", format)[0] == 0
    for path in (f"d_inpainted/a.{format}", f"d/a_inpainted.{format}"):
        with Image.open(path) as image:
            assert image.format == kind


def test_a_format_that_the_name_contradicts(tmp_path, run):
    save(tmp_path / "p.png", IMAGE)
    save_mask(tmp_path / "m.png")
    code, _, err = run("--image", "p.png", "--mask", "m.png", "--format", "jpg", "--output", "out.png")
    assert code == 1
    assert "--format jpg" in err
    assert run("--image", "p.png", "--mask", "m.png", "--format", "jpg", "--output", "out.jpeg")[0] == 0


def test_a_photograph_and_its_mask_may_share_a_folder_with_earlier_results(tmp_path, run):
    save(tmp_path / "one" / "beach.png", IMAGE)
    save_mask(tmp_path / "one" / "beach_mask.png")
    assert run("--image", "one/beach.png", "--mask", "one")[0] == 0
    first = (tmp_path / "one" / "beach_inpainted.png").read_bytes()
    # A folder with a photograph, its mask and its result.
    code, _, err = run("--image", "one", "--mask", "one", "--output", "out")
    assert (code, err.splitlines()[0]) == (0, "left out: 1 earlier results, such as one/beach_inpainted.png")
    assert contents(tmp_path / "out") == {tmp_path / "out" / "beach.png": first}
    # A photograph whose own name ends in _inpainted is treated as any other.
    save(tmp_path / "two" / "sea_inpainted.png", IMAGE)
    assert run("--image", "two", "--mask", "one/beach_mask.png", "--output", "out")[0] == 0
    assert (tmp_path / "out" / "sea_inpainted.png").exists()


@pytest.mark.parametrize(("name", "words"), [("net.onnx", "made from"), ("run", "weights.safetensors")])
def test_a_model_that_is_an_export_or_a_folder(tmp_path, run, name, words):
    if name == "run":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"ONNX")
    save(tmp_path / "a.png", IMAGE)
    save_mask(tmp_path / "m.png")
    code, _, err = run("--image", "a.png", "--mask", "m.png", "--model", name, method=None)
    assert code == 1
    assert words in err


def test_a_mask_of_one_colour_is_told_of_the_colour_option(tmp_path, run):
    save(tmp_path / "a.png", IMAGE)
    yellow = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    yellow[HOLE] = 255, 255, 0
    save(tmp_path / "m.png", yellow)
    for hole in ("black", "white"):
        code, _, err = run("--image", "a.png", "--mask", "m.png", "--hole", hole)
        assert code == 1
        assert "--hole-colour" in err
