"""Lists of images: search, packing and mapping, storage in the run; millions of images at small scale."""

import os
import pickle
import random
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import main as training
from benchmarks import image_list as benchmark
from benchmarks import open_list
from data import listing
from data.image_list import ImageList
from data.kept_lists import images_of_run
from data.listing import find_images, is_unchanged, list_of_images
from data.mask_files import write_mask
from data.names import is_image_name
from utils.errors import UserError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def plainly_found(root):
    """Return what `find_images` finds in a folder, by a simple sequential search, sorted at the end."""
    found, seen, waiting = [], set(), [str(root)]
    while waiting:
        folder = waiting.pop(0)
        if os.path.realpath(folder) in seen:
            continue
        seen.add(os.path.realpath(folder))
        paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        folders = [path for path in paths if os.path.isdir(path)]
        waiting = [path for path in folders if not os.path.basename(path).startswith(".")] + waiting
        found += [path for path in paths if os.path.isfile(path) and is_image_name(os.path.basename(path))]
    return sorted(found)


# Names that sort differently with a trailing slash, or are hard to encode.
FOLDERS = ["a", "a-b", "a b", "a.jpg", "a0", "ä", "B", ".c", "new\nline", os.fsdecode(b"\xff")]
FILES = [
    "a.png",
    "a-b.jpg",
    "a.jpg.jpg",
    "0.webp",
    "é.jpg",
    "notes.txt",
    ".x.jpg",
    "A.JPG",
    "d\n.bmp",
    "\U0001f600.png",
]
FILES += [os.fsdecode(b"\xfe.jpg")]


def grow(folder, rng, depth=3):
    """Create random folders, files and links to folders, including cycles."""
    folder.mkdir(exist_ok=True)
    for name in rng.sample(FOLDERS, rng.randrange(5) if depth else 0):
        grow(folder / name, rng, depth - 1)
    for name in rng.sample(FILES, rng.randrange(6)):
        if not (folder / name).exists():
            (folder / name).touch()
    inside = [folder, folder.parent, *(path for path in folder.iterdir() if path.is_dir())]
    for name in rng.sample(("a!", "a1", "link"), rng.randrange(3)):
        os.symlink(rng.choice(inside), folder / name)


@pytest.mark.parametrize("seed", range(30))
def test_a_search_finds_what_a_plain_one_does_in_its_order(tmp_path, seed):
    root = tmp_path / "root"
    grow(root, random.Random(seed))
    touch(root / "z.png")
    wanted = plainly_found(root)
    assert find_images(str(root), "data.train") == wanted
    images = list_of_images(str(root), "data.train")
    assert list(images) == [images[i] for i in range(len(images))] == wanted
    images.save(tmp_path / "list")
    assert list(ImageList.open(tmp_path / "list")) == wanted


def test_folders_are_read_several_at_once(tmp_path, monkeypatch):
    touch(*(tmp_path / f"{i}/1.jpg" for i in range(16)))
    real = os.scandir

    def slow(path):
        time.sleep(0.1)
        return real(path)

    monkeypatch.setattr(os, "scandir", slow)
    start = time.perf_counter()
    assert len(find_images(str(tmp_path), "data.train")) == 16
    assert time.perf_counter() - start < 1  # sequentially 1.7 s


def test_progress_counts_files(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "_UPDATE_EVERY", 4)
    bars = []

    class Bar(listing.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": False})
            bars.append(self)

    monkeypatch.setattr(listing, "tqdm", Bar)
    touch(*(tmp_path / f"{i % 3}/{i}.jpg" for i in range(29)))
    find_images(str(tmp_path), "data.train")
    assert [bar.n for bar in bars] == [29]


def test_a_name_with_a_nul_in_a_list(tmp_path):
    touch(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\nb\0c.jpg\n")
    with pytest.raises(UserError, match=r"data\.train: .*list.txt line 2: not the path of an image: 'b\\x00c.jpg'"):
        find_images(str(tmp_path / "list.txt"), "data.train")


# --- packing ---------------------------------------------------------------------------------------------------


def packed(count, source="places", stamps=None):
    return ImageList.of((f"a/{i:08}.jpg" for i in range(count)), source, "root", stamps or {})


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("saved", [False, True])
def test_a_packed_list_is_a_sequence(tmp_path, count, saved):
    images, wanted = packed(count), [f"root/a/{i:08}.jpg" for i in range(count)]
    if saved:
        images.save(tmp_path / "list")
    assert len(images) == count
    assert list(images) == wanted
    assert [images[i] for i in range(-count, count)] == wanted + wanted
    assert images[3:200:7] == wanted[3:200:7]
    for index in (count, -count - 1):
        with pytest.raises(IndexError):
            images[index]


def test_absolute_paths_stay(tmp_path):
    images = ImageList.of(["/away/1.jpg", "2.jpg"], "list.txt", "/root", {})
    assert list(images) == ["/away/1.jpg", "/root/2.jpg"]


def test_a_saved_list_is_pickled_as_the_name_of_its_file(tmp_path, monkeypatch):
    images = packed(100_000)
    assert list(pickle.loads(pickle.dumps(images))) == list(images)
    monkeypatch.chdir(tmp_path)
    images.save("list")
    text = pickle.dumps(images)
    monkeypatch.chdir("/")
    assert len(text) < 500
    assert list(pickle.loads(text)) == list(images)


def test_what_is_packed_is_small():
    assert len(packed(100_000)._data) < 100_000 * 4


def test_saving_where_it_came_from_writes_nothing(tmp_path):
    path = tmp_path / "list"
    packed(10).save(path)
    before = path.stat()
    ImageList.open(path).save(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    packed(11).save(path)
    assert len(ImageList.open(path)) == 11


def test_a_list_that_is_replaced_stays_as_it_is_where_it_is_open(tmp_path):
    packed(500).save(tmp_path / "list")
    images = ImageList.open(tmp_path / "list")
    packed(3).save(tmp_path / "list")
    assert len(list(images)) == 500


def test_any_damage_is_noticed(tmp_path):
    path = tmp_path / "list"
    packed(70, stamps={"": [5, 0]}).save(path)
    whole = path.read_bytes()
    damaged = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    damaged += [whole[:i] for i in range(0, len(whole), 5)]
    damaged += [whole + b"\0", b"\x89PNG\r\n\x1a\n" * 100, whole.replace(b"list 1", b"list 2")]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            ImageList.open(path)
    path.write_bytes(whole)
    assert len(ImageList.open(path)) == 70


# --- detecting changes -----------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    touch(root / "a/1.jpg", root / "a/b/2.jpg", root / "c/3.jpg")
    (root / "list.txt").write_text("a/1.jpg\nc/3.jpg\n")
    for path in (root, *root.rglob("*")):
        os.utime(path, (1e9, 1e9))  # long ago, to be independent of the disk's clock
    return root


CHANGES = {
    "a new image": lambda root: touch(root / "a/b/4.jpg"),
    "a new folder": lambda root: touch(root / "d/4.jpg"),
    "an image less": lambda root: (root / "c/3.jpg").unlink(),
    "another name": lambda root: (root / "a/1.jpg").rename(root / "a/0.jpg"),
    "a folder less": lambda root: shutil.rmtree(root / "a/b"),
    "another folder in its place": lambda root: (shutil.rmtree(root / "c"), touch(root / "c/3.jpg")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_folder_is_noticed(photos, change):
    images = list_of_images(str(photos), "data.train")
    assert is_unchanged(images)
    CHANGES[change](photos)
    assert not is_unchanged(images)


@pytest.mark.parametrize("text", ["a/1.jpg\nc/3.jpg\na/b/2.jpg\n", "a/1.jpg\nc/4.jpg\n", None])
def test_a_change_of_a_text_file_is_noticed(photos, text):
    images = list_of_images(str(photos / "list.txt"), "data.train")
    touch(photos / "a/9.jpg")  # not in the list
    assert is_unchanged(images)
    (photos / "list.txt").unlink()
    if text is not None:
        (photos / "list.txt").write_text(text)
    assert not is_unchanged(images)


def test_nothing_is_searched_to_see_that_nothing_changed(photos, monkeypatch):
    images = list_of_images(str(photos), "data.train")
    looked = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: looked.append(os.fspath(path)) or real(path, **how))
    monkeypatch.setattr(os, "scandir", None)
    assert is_unchanged(images)
    assert sorted(looked) == [f"{photos}/", f"{photos}/a/", f"{photos}/a/b/", f"{photos}/c/"]


# --- storage in the run ----------------------------------------------------------------------------------------


@pytest.fixture
def kept(photos, tmp_path):
    """Return the file of a run's list of `photos`."""
    list_of_images(str(photos), "data.train").save(tmp_path / "kept")
    return tmp_path / "kept"


def of_run(source, kept, rescan=False, max_missing=1):
    return list(images_of_run(str(source), "data.train", kept, True, rescan, max_missing))


def test_a_run_keeps_its_list(photos, kept, capsys):
    names = list(ImageList.open(kept))
    assert of_run(photos, kept) == names
    assert capsys.readouterr().err == ""
    touch(photos / "0.jpg")
    assert of_run(photos, kept) == names
    error = capsys.readouterr().err
    assert error.startswith(f"data.train: {photos} has changed since this run began")
    assert "list of 3 images; --rescan" in error
    assert error.count("\n") == 1
    images = images_of_run(str(photos), "data.train", kept, True, True, 1)
    assert list(images) == [f"{photos}/0.jpg", *names]
    images.save(kept)
    assert of_run(photos, kept) == list(images)
    assert capsys.readouterr().err == ""


def test_a_damaged_list_is_not_replaced_silently(photos, kept):
    wanted = list(ImageList.open(kept))
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(
        UserError, match="damaged, or a list of another version: .*kept. List the images again with --rescan"
    ):
        of_run(photos, kept)
    assert of_run(photos, kept, rescan=True) == wanted


def test_another_source_needs_a_rescan(photos, kept):
    with pytest.raises(UserError, match="the run's images come from .* add --rescan"):
        of_run(photos / "c", kept)
    assert of_run(photos / "c", kept, rescan=True) == [f"{photos}/c/3.jpg"]


def test_a_missing_disk_is_told(photos, kept):
    shutil.rmtree(photos)
    with pytest.raises(UserError, match=r"data\.train: 3 of the run's 3 images are missing, such as "):
        of_run(photos, kept)
    photos.mkdir()  # an empty mount point
    with pytest.raises(UserError, match=r"data\.train: 3 of the run's 3 images are missing, such as "):
        of_run(photos, kept)


def test_a_resumed_run_goes_on_with_the_images_that_it_began_with(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("images", "train", "val"):
        (tmp_path / name).mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"images/{i + 1}.png")
        mask = np.ones((32, 32), np.uint8)
        mask[4 * i : 4 * i + 9, 8:24] = 0
        write_mask(tmp_path / f"train/{i}.png", mask)
        write_mask(tmp_path / f"val/{i}.png", mask)
    places = [f"data.{split}={tmp_path / 'images'}" for split in ("train", "val")]
    places += [f"masks.{split}_dir={tmp_path / split}" for split in ("train", "val")]
    small = ["model.depth=2", "model.base_channels=2", "data.image_size=32", "train.batch_size=2", "data.workers=0"]
    small += ["data.val_pairs=2", "run.device=cpu", "phases.1.settle_batches=0", "phases.1.steps=0"]

    def started(name, steps):
        arguments = [*places, *small, f"run.dir={tmp_path / name}", f"phases.0.steps={steps}"]
        assert training.main(arguments) == 0
        return tmp_path / name

    straight, stopped = started("straight", 4), started("stopped", 2)
    lists = [(stopped / f"images.{split}.list").read_bytes() for split in ("train", "val")]
    Image.new("RGB", (40, 40)).save(tmp_path / "images/0.png")  # sorted first, so that all others would shift
    shutil.copytree(stopped, tmp_path / "anew")
    capsys.readouterr()

    assert training.main(["--resume", str(stopped), "phases.0.steps=4"]) == 0
    told = capsys.readouterr()
    assert ", 4 images" in told.out
    assert [line.partition(":")[0] for line in told.err.splitlines() if "--rescan" in line] == [
        "data.train",
        "data.val",
    ]
    assert lists == [(stopped / f"images.{split}.list").read_bytes() for split in ("train", "val")]
    one, other = (load_file(run / "weights.safetensors") for run in (straight, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)

    assert training.main(["--resume", str(tmp_path / "anew"), "--rescan", "phases.0.steps=4"]) == 0
    told = capsys.readouterr()
    assert ", 5 images" in told.out
    assert "has changed" not in told.err
    assert len(ImageList.open(tmp_path / "anew/images.train.list")) == 5


# --- the benchmark at small scale ------------------------------------------------------------------------------


def test_memory_of_a_list(tmp_path):
    rng = random.Random(0)  # random names, so that the file is large
    ImageList.of((f"{rng.getrandbits(128):032x}.jpg" for _ in range(300_000)), "", "", {}).save(tmp_path / "list")
    megabytes = (tmp_path / "list").stat().st_size / 1e6
    assert megabytes > 5
    found = benchmark.in_a_new_process(tmp_path / "list", "numpy")
    assert found["cold"] < 1
    assert found["after"] - found["before"] < 3  # MB
    assert found["all"] - found["before"] < megabytes + 3
    assert benchmark.worker_memory(tmp_path / "list") < 3


def test_the_order_of_an_epoch_takes_no_memory():
    _, peak = benchmark.order(8_000_000)
    assert peak < 100_000  # bytes


def test_the_table_of_the_benchmark(tmp_path, monkeypatch):
    for module in (benchmark, open_list):
        monkeypatch.setattr(module, "LOOKUPS", 500)
    monkeypatch.setattr(benchmark, "REPEATS", 5)
    monkeypatch.setattr(benchmark, "in_a_new_process", lambda path, modules: open_list.opening(str(path), "numpy"))
    rows = dict(benchmark.measured(tmp_path, 20_000, 600))
    assert len(rows) > 10
    _, _, times = rows["first sample at step 1,000,000"].partition(", ")
    assert float(times.removesuffix(" times as long")) < 5
