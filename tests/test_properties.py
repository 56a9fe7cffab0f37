"""Random files and command lines: each gives a result or a one-line error, never a traceback.

Inputs are never changed. The scripts run in this process, in a separate folder where nothing slow can start.
"""

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import convert
import evaluate
import main as training
import masks
import predict
from data.faults import read_picture
from data.mask_files import read_mask, write_mask
from data.photo import read_photo
from model import PConvUNet, inpaint
from utils.checkpoint import save_weights
from utils.config_files import DEFAULT_CONFIG
from utils.errors import UserError

CONFIGS = [DEFAULT_CONFIG, *sorted((DEFAULT_CONFIG.parent / "configs").glob("*.yml"))]
NET = {"depth": 2, "base_channels": 2}


def cases(count):
    """Return settings for `count` cases, the same in each run."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return the current folder and home of all scripts below, with small files of every kind."""
    place = tmp_path_factory.mktemp("place")
    mask = np.ones((20, 24), np.uint8)
    mask[5:12, 8:15] = 0
    for folder in ("images", "stats", "empty"):
        (place / folder).mkdir()
    picture(20, 24).save(place / "image.png")
    picture(20, 24).save(place / "images/a.png")
    write_mask(place / "mask.png", mask)
    write_mask(place / "stats/a.png", mask)
    (place / "text.txt").write_text("no image\n")
    net = PConvUNet(**NET)
    save_weights(place / "net.safetensors", net.state_dict())
    torch.save({"model": net.state_dict()}, place / "net.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HOME", str(place))
        yield place


def picture(height, width, channels=3):
    pixels = np.random.default_rng(height + width).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze())


def inputs(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def run(script, *arguments):
    """Return a script's exit code and stderr. Both streams are set up as outside of tests."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = script.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out.flush()
        err.flush()
    text = err.buffer.getvalue().decode()
    assert "Traceback" not in text
    assert code in (0, 1, 2)
    assert code == 0 or any(word in text for word in ("error: ", "broken: ", "unreadable: "))
    return code, text


# --- bytes of images, masks and networks -------------------------------------------------------------------------


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


IMAGES = [
    encoded(picture(20, 24), "PNG"),
    encoded(picture(20, 24, 4), "PNG", optimize=True),
    encoded(picture(20, 24).convert("P"), "PNG", transparency=3),
    encoded(picture(20, 24), "JPEG", quality=80),
    encoded(picture(20, 24), "JPEG", progressive=True, subsampling=0),
    encoded(picture(20, 24, 4).convert("CMYK"), "JPEG"),
    encoded(picture(20, 24), "WEBP", lossless=True),
    encoded(picture(20, 24, 4), "WEBP", quality=60),
    encoded(picture(20, 24), "WEBP", save_all=True, append_images=[picture(20, 24)]),
    encoded(picture(20, 24), "TIFF"),
    encoded(picture(20, 24), "TIFF", compression="tiff_lzw"),
    encoded(picture(20, 24), "TIFF", compression="jpeg"),
    encoded(picture(20, 24), "BMP"),
    encoded(picture(20, 24).convert("1"), "BMP"),
    encoded(picture(20, 24), "GIF", save_all=True, append_images=[picture(20, 24)]),
]


@st.composite
def damaged(draw, wholes):
    """One of the files with parts flipped, removed, duplicated or taken from another file."""
    data = draw(st.sampled_from(wholes))
    for _ in range(draw(st.integers(1, 3))):
        # Most of what a decoder depends on is at the start.
        at = draw(st.integers(0, min(len(data), 200)) | st.integers(0, len(data)))
        length = draw(st.integers(1, 40))
        other = draw(st.sampled_from(wholes))
        change = draw(st.sampled_from(["flip", "flip", "flip", "set", "cut", "drop", "double", "splice"]))
        if change == "flip":
            data = data[:at] + bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[at : at + 1]) + data[at + 1 :]
        elif change == "set":
            data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 4 :]
        elif change == "cut":
            data = data[:at]
        elif change == "drop":
            data = data[:at] + data[at + length :]
        elif change == "double":
            data = data[: at + length] + data[at:]
        else:
            data = data[:at] + other[at:]
    return data


def check_image_bytes(place, data):
    path = place / "damaged.jpg"
    path.write_bytes(data)
    messages = []
    for read in (read_picture, read_photo, lambda path: read_mask(path, "white")):
        try:
            read(path)
        except UserError as error:
            messages.append(str(error))
    assert all(str(path) in message and "\n" not in message for message in messages)
    assert path.read_bytes() == data
    path.unlink()


@cases(1000)
@given(data=damaged(IMAGES))
def test_any_bytes_are_an_image_or_a_user_error(place, data):
    check_image_bytes(place, data)


@pytest.mark.slow
@cases(5000)
@given(data=damaged(IMAGES))
def test_any_of_many_more_bytes_are_an_image_or_a_user_error(place, data):
    check_image_bytes(place, data)


@cases(150)
@given(data=damaged(IMAGES), which=st.sampled_from(["--image", "--mask"]))
def test_predict_with_any_bytes(place, data, which):
    (place / "damaged.png").write_bytes(data)
    before = inputs(place)
    files = {"--image": "image.png", "--mask": "mask.png", "--model": "net.safetensors", which: "damaged.png"}
    run(predict, *(word for pair in files.items() for word in pair), "--output", "new.png", "--device", "cpu")
    (place / "new.png").unlink(missing_ok=True)
    assert inputs(place) == before
    (place / "damaged.png").unlink()


@cases(150)
@given(image=damaged(IMAGES), mask=damaged(IMAGES))
def test_check_data_and_stats_with_any_bytes(place, image, mask):
    for folder, data in (("some", image), ("some masks", mask), ("other masks", mask)):
        (place / folder).mkdir(exist_ok=True)
        (place / folder / "a.png").write_bytes(data)
    before = inputs(place)
    folders = ("data.train=some", "data.val=some", "masks.train_dir=some masks", "masks.val_dir=other masks")
    run(training, "--check-data", *folders)
    run(masks, "--stats", "some masks", "--out", "new.png")
    (place / "new.png").unlink(missing_ok=True)
    assert inputs(place) == before
    for folder in ("some", "some masks", "other masks"):
        (place / folder / "a.png").unlink()


@cases(200)
@given(data=st.data(), name=st.sampled_from(["net.safetensors", "net.pth"]))
def test_convert_with_any_bytes(place, data, name):
    damaged_name = f"damaged.{name.rpartition('.')[2]}"
    (place / damaged_name).write_bytes(data.draw(damaged([(place / name).read_bytes()])))
    before = inputs(place)
    run(convert, damaged_name, "new.safetensors")
    (place / "new.safetensors").unlink(missing_ok=True)
    assert inputs(place) == before
    (place / damaged_name).unlink()


# --- configs -----------------------------------------------------------------------------------------------------

LINES = [line for path in CONFIGS for line in path.read_text(encoding="utf-8").splitlines()]
VALUES = [
    "0", "1", "-1", "2.5", "1e5", "1e999", ".nan", "-.inf", "9" * 400, "0x10", "true", "null", "~", "[]", "{}", "#",
    "[1, 2]", "[0.1, 0.2]", "a", "''", "'", '"', "é", "$HOME", "$NOWHERE", "~nobody/x", "&a 1", "*a", "!!int 1",
    "[2, 1]", "a: b", "- 1", "|", "? x", "@", "\t", "%", "x\\y", "auto", "cpu", "cuda:7", "black", "white", "sample",
    "text.txt", "empty", "net.pth", "x" * 300, "9" * 5000, "[" * 3000, "..", ".", "\ufeff", "\u2028", "\x85",
]  # fmt: skip
KEYS = sorted({line.strip().partition(":")[0] for line in LINES if ":" in line and not line.startswith("#")})
PATHS = ["run.dir", "data.train", "data.image_size", "data.max_bad", "model.depth", "loss.weights.tv", "optim.name",
         "train.batch_size", "optim.momentum", "loss.weights", "run"]  # fmt: skip


@st.composite
def config_texts(draw):
    """A config of the project with lines removed, duplicated or moved, and other values, indents and keys."""
    lines = draw(st.sampled_from(CONFIGS)).read_text(encoding="utf-8").split("\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[at].partition(":")
        lines[at : at + 1] = draw(
            st.sampled_from(
                [
                    [],
                    [lines[at]] * 2,
                    [" " + lines[at]],
                    [lines[at].lstrip()],
                    [draw(st.sampled_from(LINES))],
                    [key + colon + " " + draw(st.sampled_from(VALUES))],
                    [draw(st.sampled_from(KEYS)) + ": " + draw(st.sampled_from(VALUES))],
                    [draw(st.text(max_size=5))],
                ]
            )
        )
        lines = lines or [""]
    return "\n".join(lines)


@cases(400)
@given(text=config_texts())
def test_any_config_file(place, text):
    path = place / "any.yml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = inputs(place)
    code, err = run(training, "--config", "any.yml")  # a valid config finds no masks in this folder
    assert code == 1
    assert err.startswith("error: ")
    assert inputs(place) == before
    path.unlink()


@pytest.mark.parametrize("path", PATHS)
def test_every_odd_value(place, path):
    before = inputs(place)
    lines = DEFAULT_CONFIG.read_text(encoding="utf-8").split("\n")
    at = next(number for number, line in enumerate(lines) if line.strip().startswith(path.rpartition(".")[2] + ":"))
    begin = lines[at].partition(":")[0]
    for value in VALUES:
        text = "\n".join([*lines[:at], f"{begin}: {value}", *lines[at + 1 :]])
        (place / "any.yml").write_text(text, encoding="utf-8")
        for words in ([f"{path}={value}"], ["--config", "any.yml"]):
            code, err = run(training, *words)
            assert code == 1
            assert any(line.startswith("error: ") for line in err.splitlines())  # may follow a report of skipped files
    (place / "any.yml").unlink()
    assert inputs(place) == before


OVERRIDES = st.builds(
    "{}={}".format, st.sampled_from(PATHS) | st.sampled_from(KEYS), st.sampled_from(VALUES)
) | st.text(st.characters(exclude_characters="\0"), max_size=8)


# --- command lines -----------------------------------------------------------------------------------------------

FILES = ["image.png", "mask.png", "images", "stats", "empty", "text.txt", "net.safetensors", "net.pth", "missing.png"]
ODD = [
    "", " ", "-", "--", "-1", "0", "1", "64", "1.5", "1e3", "nan", "x" * 300, "é\udcff", "\n", "~", "~nobody", "$HOME",
    "..", "a/b/c.png", "new.png", "new", "sample", "=", "a=b", "new.safetensors",
]  # fmt: skip

# The flags of each script and the values to try (None: all of the above). Without masks that an evaluation could
# use and more than one process, which would take long.
NO_MASKS = ["missing", "text.txt", "empty", "", "é\udcff"]
FLAGS = {
    training: {"--config": None, "--resume": None, "--init-from": None, "--check-data": []},
    masks: {"--stats": None, "--benchmark": ["made/c", "stats"], "--per-bin": ["1", "0", "x"], "--size": None,
            "--config": None, "--processes": ["1", "x"], "--out": None, "--force": []},
    predict: {"--image": None, "--mask": None, "--model": None, "--output": None, "--hole": ["white", "black", "red"],
              "--device": ["cpu", "cuda"], "--raw": []},
    evaluate: {"--images": None, "--masks": NO_MASKS, "--model": None, "--baseline": ["mean", "telea", "all", "x"],
               "--out": None, "--size": None, "--limit": None, "--seed": None, "--pairs": None,
               "--device": ["cpu", "cuda"], "--hole": ["white"]},
    convert: {},
}  # fmt: skip
SENSIBLE = {
    training: {},
    masks: {},
    predict: {"--image": "image.png", "--mask": "mask.png", "--model": "net.safetensors", "--output": "new.png"},
    evaluate: {"--images": "images", "--masks": "empty", "--baseline": "mean", "--out": "new"},
    convert: {},
}
# Appended last, so that they take effect: masks.py makes only few small masks.
LAST = {
    masks: ["masks.train_count=1", "masks.val_count=1", "data.image_size=64", "model.depth=3", "run.seed=0",
            "masks.train_dir=made/a", "masks.val_dir=made/b"],
}  # fmt: skip


@st.composite
def command_lines(draw, script):
    """Words of a command: a sensible one, with flags removed or added, and unlikely values."""
    words = [word for pair in SENSIBLE[script].items() for word in pair]
    for flag in draw(st.lists(st.sampled_from(sorted(FLAGS[script])), max_size=3)) if FLAGS[script] else []:
        values = FLAGS[script][flag]
        words.append(flag)  # repeated: the last value counts
        if values != []:
            words.append(draw(st.sampled_from(FILES + ODD if values is None else values)))
    if words and not draw(st.integers(0, 5)):
        words.pop(draw(st.integers(0, len(words) - 1)))
    if script in (training, masks):
        words += draw(st.lists(OVERRIDES, max_size=3))
    if script is convert:
        words += draw(st.lists(st.sampled_from(FILES) | st.sampled_from(ODD), max_size=3))
    return words + LAST.get(script, [])


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_any_command_line(place, script):
    before = inputs(place)
    codes = []

    @cases(250)
    @given(words=command_lines(script))
    def check(words):
        codes.append(run(script, *words)[0])
        for path, data in before.items():
            assert path.read_bytes() == data

    check()
    if script is convert:
        assert run(convert, "image.png", "--", "--")[0] == 2  # an argparse bug that this test found
    for path in set(inputs(place)) - set(before):
        path.unlink()
    assert {1, 2} <= set(codes)


# --- sizes -------------------------------------------------------------------------------------------------------


@cases(300)
@given(height=st.integers(1, 70), width=st.integers(1, 70), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_any_size_is_filled_and_its_valid_pixels_stay(place, height, width, share, seed):
    torch.manual_seed(seed)
    net = PConvUNet(**NET).eval()
    image = torch.rand(1, 3, height, width)
    mask = (torch.rand(1, 1, height, width) < share).float()
    mask[..., 0, 0] = 1  # at least one valid pixel
    result = inpaint(net, image, mask)
    assert result.shape == image.shape
    assert torch.equal(torch.where(mask > 0, result, 0), torch.where(mask > 0, image, 0))
    assert ((result >= 0) & (result <= 1)).all()
