"""File systems with limits, similar file names, concurrent writers, small machines."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import unicodedata
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convert
import main
import masks
import predict
from data.listing import find_images, find_masks
from data.locking import locked
from data.mask_files import read_mask_alone, write_mask
from data.names import as_stored
from data.photo import read_photo
from model import PConvUNet
from utils.checkpoint import save_weights
from utils.errors import UserError, reports_user_errors
from utils.files import write_atomically
from utils.processes import processes

PROJECT = Path(__file__).resolve().parent.parent
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)


def save_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PICTURE).save(path)
    return path


def save_mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.ones((32, 40), np.uint8)
    mask[9:20, 9:20] = 0
    write_mask(path, mask)
    return path


def run(script, *arguments):
    return script.main([str(argument) for argument in arguments])


def repair(tmp_path, *options):
    image, mask = save_picture(tmp_path / "p.png"), save_mask(tmp_path / "m.png")
    return run(predict, "--image", image, "--mask", mask, "--method", "mean", *options)


def make_masks(tmp_path, *options):
    folders = (f"masks.{key}_dir={tmp_path / key}" for key in ("train", "val"))
    return run(masks, *options, *folders, "masks.train_count=3", "masks.val_count=2", "masks.size=32")


def train(tmp_path):
    for name in ("images", "images_val"):
        save_picture(tmp_path / name / "p.png")
    values = {
        "run.dir": tmp_path / "run", "run.device": "cpu", "data.train": tmp_path / "images",
        "data.val": tmp_path / "images_val", "data.val_pairs": 1, "data.image_size": 32, "data.workers": 0,
        "masks.train_dir": tmp_path / "train", "masks.val_dir": tmp_path / "val", "model.depth": 2,
        "model.base_channels": 2, "loss.weights": "{valid: 1, hole: 6, perceptual: 0, style: 0, tv: 0}",
        "train.batch_size": 1, "phases": "[{steps: 1, lr: 1e-4}]",
    }  # fmt: skip
    return run(main, *(f"{key}={value}" for key, value in values.items()))


def to_weights(tmp_path, name="b.safetensors"):
    save_weights(tmp_path / "a.safetensors", PConvUNet(2, 2).state_dict())
    return run(convert, tmp_path / "a.safetensors", tmp_path / name)


# --- folders without fsync -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.EBADF])
def test_a_folder_need_not_be_synced(tmp_path, monkeypatch, code):
    """Shared folders of virtual machines, Samba and WSL behave so."""
    fsync = os.fsync

    def files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    assert make_masks(tmp_path) == 0
    assert repair(tmp_path) == 0
    assert to_weights(tmp_path) == 0
    assert train(tmp_path) == 0
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_a_file_that_cant_be_synced_is_no_result(tmp_path, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "a", lambda path: path.write_text("a"))
    assert not list(tmp_path.iterdir())


# --- names -------------------------------------------------------------------------------------------------------


def test_names_as_long_as_a_disk_takes(tmp_path):
    long = "ü" * 125 + ".png"  # 254 bytes
    assert len(os.fsencode(long)) == 254
    assert repair(tmp_path, "--output", tmp_path / long) == 0
    assert read_photo(tmp_path / long).pixels.shape == PICTURE.shape
    name = "x" * 243 + ".safetensors"
    assert to_weights(tmp_path, name) == 0
    assert (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_lists_and_paths_are_found_as_they_are_shown(tmp_path, stored, asked):
    folder, name = (unicodedata.normalize(stored, text) for text in ("Bilder für é", "Ö.png"))
    save_picture(tmp_path / folder / name)
    wanted = unicodedata.normalize(asked, f"{folder}/{name}")
    (tmp_path / "list.txt").write_text(f"{wanted}\n", encoding="utf-8")
    (found,) = find_images(str(tmp_path / "list.txt"), "data.train")
    assert read_photo(Path(found)).pixels.shape == PICTURE.shape
    assert as_stored(tmp_path / wanted) == str(tmp_path / folder / name)


def test_a_name_that_is_not_there_stays_as_it_is(tmp_path):
    for name in ("é/none.png", "none.png", "/é"):
        assert as_stored(name) == name
    with pytest.raises(UserError, match="no such file"):
        read_photo(tmp_path / "é.png")


# --- listing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("/a/airfield/1.jpg 0", "data_large/a/airfield/1.jpg"),
        ("Places365_val_1.jpg 165", "val_large/Places365_val_1.jpg"),
        ("a/airfield/1.jpg", "data_256/a/airfield/1.jpg"),
    ],
)
def test_lists_of_places365_as_they_unpack(tmp_path, line, place):
    save_picture(tmp_path / place)
    (tmp_path / "other").mkdir()
    (tmp_path / "places365.txt").write_text(f"{line}\n")
    assert find_images(str(tmp_path / "places365.txt"), "data.train") == [str(tmp_path / place)]


def test_a_list_whose_images_lie_in_two_places(tmp_path):
    for folder in ("data_256", "data_large"):
        save_picture(tmp_path / folder / "a" / "1.jpg")
    (tmp_path / "list.txt").write_text("/a/1.jpg 0\n")
    with pytest.raises(UserError, match="data_256 and in data_large"):
        find_images(str(tmp_path / "list.txt"), "data.train")


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "$RECYCLE.BIN", "$Recycle.Bin", "#recycle", "__MACOSX", "System Volume Information", "lost+found"],
)
def test_folders_of_systems_are_not_trained_on(tmp_path, name):
    own = save_picture(tmp_path / "d" / "holiday" / "a.jpg")
    save_picture(tmp_path / "d" / name / "thumb.jpg")
    save_picture(tmp_path / "d" / "holiday" / name / "deeper" / "thumb.jpg")
    assert find_images(str(tmp_path / "d"), "data.train") == [str(own)]


def test_what_training_leaves_out_is_told(tmp_path, capsys):
    save_picture(tmp_path / "d" / "a.jpg")
    save_picture(tmp_path / "d" / "more" / "b.gif")
    save_mask(tmp_path / "masks" / "m.png")
    shutil.copy(tmp_path / "d" / "more" / "b.gif", tmp_path / "masks")
    find_images(str(tmp_path / "d"), "data.train")
    assert "1 of other kinds" in (err := capsys.readouterr().err)
    assert "more/b.gif" in err
    find_masks(str(tmp_path / "masks"), "masks.train_dir")
    assert "b.gif" in capsys.readouterr().err


# --- concurrent writers --------------------------------------------------------------------------------------------


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("folder", ["train", "val"])
def test_masks_are_made_by_one_process_at_a_time(tmp_path, capsys, folder):
    assert make_masks(tmp_path) == 0
    before = contents(tmp_path)
    with locked(tmp_path / folder):
        assert make_masks(tmp_path, "--force") == 1
    assert "in use" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert make_masks(tmp_path, "--force", "run.seed=5") == 0
    assert contents(tmp_path).keys() == before.keys()


@pytest.mark.slow
def test_two_processes_that_replace_masks_lose_none(tmp_path):
    command = [sys.executable, PROJECT / "masks.py", "--force", *(f"masks.{key}_dir={tmp_path / key}" for key in
               ("train", "val")), "masks.train_count=400", "masks.val_count=20", "masks.size=128"]  # fmt: skip
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in running]
    codes = [process.returncode for process in running]
    assert 0 in codes
    assert all(code == 0 or "in use" in error for code, error in zip(codes, errors, strict=True))
    assert len(list((tmp_path / "train").glob("*.png"))) == 400
    assert all(read_mask_alone(path, "black").size for path in (tmp_path / "train").glob("*.png"))


def test_a_histogram_replaces_nothing_but_a_histogram(tmp_path, capsys):
    save_mask(tmp_path / "masks" / "m.png")
    photograph = save_picture(tmp_path / "photo.png")
    before = photograph.read_bytes()
    assert run(masks, "--stats", tmp_path / "masks", "--out", photograph) == 1
    assert "not a histogram by masks.py" in capsys.readouterr().err
    assert photograph.read_bytes() == before
    for _ in range(2):
        assert run(masks, "--stats", tmp_path / "masks", "--out", tmp_path / "new.png") == 0


# --- small machines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        OSError(errno.EMFILE, "Too many open files"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_machine_lacks_is_one_line(capsys, error):
    @reports_user_errors
    def script(_):
        raise error

    assert script([]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_an_error_of_ours_stays_an_error():
    @reports_user_errors
    def script(_):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        script([])


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "4", "RANK": "0"}])
def test_a_stray_world_size_is_said_so(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="unset WORLD_SIZE"), processes(timedelta(seconds=9)):
        pass


@pytest.mark.slow
def test_a_stray_world_size_is_one_line(tmp_path):
    save_picture(tmp_path / "d" / "a.png")
    save_mask(tmp_path / "masks" / "m.png")
    command = [sys.executable, PROJECT / "evaluate.py", "--images", tmp_path / "d", "--masks", tmp_path / "masks",
               "--out", tmp_path / "out", "--baseline", "mean"]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "WORLD_SIZE": "2"}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "WORLD_SIZE" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_names_and_terminals_of_any_encoding(tmp_path):
    folder = os.fsencode(tmp_path) + "/日\udcff".encode("utf-8", "surrogateescape")
    os.mkdir(folder)
    shutil.copy(save_mask(tmp_path / "m.png"), folder + b"/\xfe.png")
    save_weights(tmp_path / "a.safetensors", PConvUNet(2, 2).state_dict())
    commands = [
        [b"masks.py", b"--stats", folder, b"--out", os.fsencode(tmp_path) + b"/\xfd.png"],
        [b"convert.py", os.fsencode(tmp_path) + b"/a.safetensors", folder + b"/\xfc.safetensors"],
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    for script, *arguments in commands:
        command = [os.fsencode(sys.executable), os.fsencode(PROJECT) + b"/" + script, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr
