"""Masks as users make them: every kind of file with every command that reads masks, in one table."""

import shutil

import numpy as np
import pytest
from PIL import Image

import evaluate
import main
import masks
import predict
from data.check import look_at_mask
from data.mask_files import grow, read_mask, read_mask_alone
from data.mask_stats import measure
from evaluation.pairing import read_pair
from model import PConvUNet
from repair import read_checked_mask
from utils.checkpoint import save_weights

HEIGHT, WIDTH = 96, 144  # px
HOLE = np.zeros((HEIGHT, WIDTH), bool)
HOLE[30:60, 40:90] = True

RED = np.array([255, 0, 0])
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
PHOTOGRAPH[..., 0] //= 2  # no pixel is red
BLACK_AND_WHITE = np.where(HOLE, 0, 255).astype(np.uint8)


def painted(colour, onto):
    """Return an image with the hole painted in a colour."""
    return np.where(HOLE[..., None], np.asarray(colour), onto).astype(np.uint8)


def with_alpha(colours, alpha):
    return np.dstack([np.broadcast_to(colours, (HEIGHT, WIDTH, 3)), alpha]).astype(np.uint8)


def soft_alpha():
    """Return an image with a transparent hole whose antialiased edge is one pixel wide."""
    alpha = np.where(HOLE, 0, 255)
    alpha[29, 40:90] = alpha[60, 40:90] = 128
    return alpha


TRANSPARENT, OPAQUE = np.where(HOLE, 0, 255), np.where(HOLE, 255, 0)

FILES = {  # file name: pixels as saved by an editor, and the --hole that reads them
    "black and white": (BLACK_AND_WHITE, "black"),
    "white hole": (255 - BLACK_AND_WHITE, "white"),
    "one bit": (~HOLE, "black"),
    "in RGB": (np.dstack([BLACK_AND_WHITE] * 3), "black"),
    "alpha opaque everywhere": (with_alpha(BLACK_AND_WHITE[..., None], np.full(HOLE.shape, 255)), "black"),
    "alpha nearly opaque": (with_alpha(BLACK_AND_WHITE[..., None], np.where(HOLE, 254, 255)), "black"),
    "photograph with a transparent hole": (with_alpha(PHOTOGRAPH, TRANSPARENT), "black"),
    "photograph with a soft transparent hole": (with_alpha(PHOTOGRAPH, soft_alpha()), "black"),
    "photograph, transparent but for the hole": (with_alpha(PHOTOGRAPH, OPAQUE), "white"),
    "white strokes on a transparent layer": (with_alpha(255, OPAQUE), "white"),
    "black strokes on a transparent layer": (with_alpha(0, OPAQUE), "white"),
    "strokes of 40 % on a transparent layer": (with_alpha(255, OPAQUE * 0.4), "white"),
    "grey and alpha": (with_alpha(255, OPAQUE)[..., 2:], "white"),
    "two greys": (np.where(HOLE, 60, 120), "black"),
    "black and dark grey": (np.where(HOLE, 0, 90), "black"),
    "red on white": (painted(RED, 255), "black"),
    "red brush on a photograph": (painted(RED, PHOTOGRAPH), "#ff0000"),
    "red brush, not quite red": (painted([237, 28, 36], PHOTOGRAPH), "#ff0000"),
    "red strokes on a transparent layer": (with_alpha(RED, OPAQUE), "#ff0000"),
    "red on black": (painted(RED, 0), "#ff0000"),
}

NO_MASKS = {  # files that are not valid masks with any option
    "photograph": PHOTOGRAPH,
    "opaque photograph with alpha": with_alpha(PHOTOGRAPH, np.full(HOLE.shape, 255)),
    "red brush on a photograph": painted(RED, PHOTOGRAPH),
    "a gradient": np.broadcast_to(np.linspace(0, 255, WIDTH), (HEIGHT, WIDTH)).astype(np.uint8),
    "a gradient of alpha": with_alpha(0, np.broadcast_to(np.linspace(0, 255, WIDTH), (HEIGHT, WIDTH))),
}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels)
    Image.fromarray(pixels if pixels.dtype == bool else pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "weights.safetensors"
    save_weights(path, PConvUNet(depth=2, base_channels=2).state_dict())
    return path


def option(hole):
    return ["--hole-colour" if hole.startswith("#") else "--hole", hole]


@pytest.mark.parametrize("name", FILES)
def test_every_reader_finds_the_hole(tmp_path, name):
    pixels, hole = FILES[name]
    path = save(tmp_path / "mask.png", pixels)
    image = save(tmp_path / "image.png", PHOTOGRAPH)
    assert np.array_equal(read_mask(path, hole).valid, ~HOLE)
    assert np.array_equal(read_mask_alone(path, hole), ~HOLE)
    assert np.array_equal(read_checked_mask(path, hole), ~HOLE)
    assert np.array_equal(read_pair(str(image), path, hole, None)[1], ~HOLE)
    # --check-data and --stats
    assert look_at_mask(path, hole).ratio == measure((path, hole)).ratio == pytest.approx(HOLE.mean())


@pytest.mark.parametrize("name", FILES)
def test_predict_fills_the_hole_alone(tmp_path, weights, capsys, name):
    pixels, hole = FILES[name]
    arguments = ["--image", save(tmp_path / "p.png", PHOTOGRAPH), "--mask", save(tmp_path / "m.png", pixels)]
    assert predict.main([str(item) for item in (*arguments, "--model", weights, *option(hole))]) == 0
    changed = (np.asarray(Image.open(tmp_path / "p_inpainted.png")) != PHOTOGRAPH).any(axis=2)
    assert not changed[~HOLE].any()
    assert changed[HOLE].mean() > 0.9
    err = capsys.readouterr().err
    assert ("alpha is the mask" in err) == read_mask(tmp_path / "m.png", hole).by_alpha


@pytest.mark.parametrize("name", NO_MASKS)
def test_what_is_no_mask_is_refused_by_all(tmp_path, weights, capsys, name):
    mask = save(tmp_path / "masks" / "m.png", NO_MASKS[name])
    image = save(tmp_path / "images" / "p.png", PHOTOGRAPH)
    runs = {
        predict: ["--image", image, "--mask", mask, "--model", weights],
        evaluate: ["--images", image.parent, "--masks", mask.parent, "--baseline", "mean", "--out", tmp_path / "out"],
        masks: ["--stats", mask.parent, "--out", tmp_path / "stats.png"],
        main: ["--check-data", *run_config(tmp_path, "black")],
    }  # fmt: skip
    for script, arguments in runs.items():
        for hole in ("black", "white"):
            which = ["--hole", hole] if script in (predict, evaluate) else [f"masks.hole={hole}"]
            assert script.main([str(item) for item in (*arguments, *which)]) == 1
            err = capsys.readouterr().err
            assert "m.png is not a mask" in err, script
            assert "Export the mask" in err
            assert "add --hole" not in err


def run_config(tmp_path, hole, *overrides):
    """Return arguments of main.py for a short run on tmp_path/images and tmp_path/masks."""
    for name in ("images", "masks"):
        shutil.copytree(tmp_path / name, tmp_path / f"{name}_val", dirs_exist_ok=True)
    values = {
        "run.dir": tmp_path / "run", "run.device": "cpu",
        "data.train": tmp_path / "images", "data.val": tmp_path / "images_val",
        "data.val_pairs": 1, "data.image_size": 32, "data.workers": 0, "masks.train_dir": tmp_path / "masks",
        "masks.val_dir": tmp_path / "masks_val", "masks.hole": hole, "model.depth": 2, "model.base_channels": 2,
        "loss.weights": "{valid: 1, hole: 6, perceptual: 0, style: 0, tv: 0}", "train.batch_size": 1,
        "phases": "[{steps: 1, lr: 1e-4}]",
    }  # fmt: skip
    return [*(f"{key}={value}" for key, value in values.items()), *overrides]


@pytest.mark.parametrize(
    ("pixels", "hole", "code", "message"),
    [
        (np.where(HOLE, 1, 0), "white", 1, "none of the 1 masks"),
        (np.full(HOLE.shape, 255), "black", 1, "none of the 1 masks"),
        (255 - BLACK_AND_WHITE, "white", 0, ""),
        (with_alpha(PHOTOGRAPH, TRANSPARENT), "black", 0, "alpha is the mask: transparent parts are the hole"),
        (with_alpha(255, OPAQUE), "white", 0, "alpha is the mask: opaque parts are the hole"),
        (painted(RED, PHOTOGRAPH), "#ff0000", 0, ""),
        (PHOTOGRAPH, "#ff0000", 1, "none of the 1 masks"),
    ],
    ids=["0 and 1", "all valid", "white hole", "transparent hole", "opaque hole", "red hole", "nothing red"],
)
def test_training_starts_with_holes_alone(tmp_path, capsys, pixels, hole, code, message):
    save(tmp_path / "masks" / "m.png", pixels)
    save(tmp_path / "images" / "p.png", PHOTOGRAPH)
    assert main.main(run_config(tmp_path, hole)) == code
    assert message in capsys.readouterr().err
    assert (tmp_path / "run" / "weights.safetensors").exists() == (code == 0)
    assert (tmp_path / "run").exists() == (code == 0)


def test_masks_without_a_hole_are_counted(tmp_path, capsys):
    save(tmp_path / "images" / "p.png", PHOTOGRAPH)
    for number in range(4):
        save(tmp_path / "masks" / f"{number}.png", BLACK_AND_WHITE if number else np.full(HOLE.shape, 255))
    assert main.main(["--check-data", *run_config(tmp_path, "black")]) == 0
    assert "without a hole: 1 (25.0%)" in capsys.readouterr().out
    assert masks.main(["--stats", str(tmp_path / "masks"), "--out", str(tmp_path / "s.png")]) == 0
    assert "without a hole: 1 (25.0%)" in capsys.readouterr().out
    assert main.main(run_config(tmp_path, "black")) == 0
    assert "1 of the 4 masks checked" in capsys.readouterr().err


# --- grow --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [0, 1, 2, 5, 30, 300])
def test_grow_is_a_disc_around_every_hole_pixel(pixels):
    y, x = np.mgrid[:41, :50]
    mask = np.ones((41, 50), np.uint8)
    mask[20, 30] = mask[3, 3] = 0
    near = ((y - 20) ** 2 + (x - 30) ** 2 <= pixels**2) | ((y - 3) ** 2 + (x - 3) ** 2 <= pixels**2)
    assert np.array_equal(grow(mask, pixels), ~near)
    assert grow(np.ones((4, 4), np.uint8), pixels).all()
