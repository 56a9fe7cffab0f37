"""Images and masks: file search, decoding, order, and random augmentation."""

import math
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.augment import augment_mask, centre_crop, fit_mask, outlined, random_part
from data.listing import find_images
from data.loader import StepBatches, as_floats, training_batches, validation_batches
from data.mask_files import write_mask
from data.mask_stats import inscribed_radius
from data.order import CROPS, generator, shuffled
from data.samples import resized, training_samples, validation_pairs
from data.schedule import Schedule
from utils.config_files import load_config
from utils.errors import UserError, message_of

PROJECT = Path(__file__).resolve().parent.parent
COLOURS = [(20 * i + 10, 240 - 20 * i, 7 * i) for i in range(11)]  # of the images of `world`, one each


def floats(sample):
    """Return image and mask as floats, as in a batch."""
    return as_floats(sample.image, sample.mask)


def save(path, colour=(200, 100, 50), size=(40, 30), mode="RGB", **options):
    """Write an image of one colour, creating its folders. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def some_masks(folder, count=5, size=48):
    folder.mkdir(parents=True)
    for i in range(count):
        mask = np.ones((size, size), np.uint8)
        mask[5 + 4 * i : 15 + 4 * i, 10 : 12 + 5 * i] = 0
        write_mask(folder / f"{i}.png", mask)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Write 11 training images of different colours, 4 validation images, and masks."""
    root = tmp_path_factory.mktemp("world")
    for i, colour in enumerate(COLOURS):
        save(root / f"train/{i:02}.png", colour, size=(50 + i, 40))
    for i in range(4):
        (root / "val").mkdir(exist_ok=True)
        Image.fromarray(noise(40, 60, i)).save(root / f"val/{i}.png")
    some_masks(root / "masks/train")
    some_masks(root / "masks/val")
    return root


def config_of(root, *overrides):
    """Return the config of a small training run with the images and masks below `root`."""
    places = {
        "data.train": root / "train",
        "data.val": root / "val",
        "masks.train_dir": root / "masks/train",
        "masks.val_dir": root / "masks/val",
    }
    small = ("data.image_size=32", "model.depth=2", "train.batch_size=3", "data.workers=0", "data.val_pairs=6")
    return load_config(overrides=[*(f"{key}={path}" for key, path in places.items()), *small, *overrides])


def batches(config, first=0, last=5):
    return list(training_batches(training_samples(config), config, first, last))


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(one, other)
        for batch, other_batch in zip(batches, others, strict=True)
        for one, other in zip(batch, other_batch, strict=True)
    )


# --- file search -----------------------------------------------------------------------------------------------


def test_a_folder_is_searched_to_any_depth(tmp_path):
    wanted = ["a.jpg", "b/c/d/e/f.PNG", "b/g.JPeG", "h i/j k.webp", "l.bmp", "m.png"]
    for name in wanted:
        save(tmp_path / name)
    for name in (".hidden.jpg", "b/._a.jpg", ".git/x.png", "b/.cache/x.png"):
        save(tmp_path / name)
    for name in ("notes.txt", "b/jpg", "x.npy"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert find_images(str(tmp_path), "data.train") == sorted(str(tmp_path / name) for name in wanted)


def test_a_hidden_folder_that_is_named_is_searched(tmp_path):
    image = save(tmp_path / ".photos/a.jpg")
    assert find_images(str(tmp_path / ".photos"), "data.train") == [str(image)]


def test_links_are_followed_each_real_folder_once(tmp_path):
    root = tmp_path / "root"
    save(root / "a/1.png")
    save(tmp_path / "outside/2.png")
    os.symlink(root, root / "a/back")  # a cycle
    os.symlink(tmp_path / "outside", root / "x")
    os.symlink(tmp_path / "outside", root / "y")
    os.symlink(root / "a/1.png", root / "3.png")
    os.symlink(root / "nowhere.png", root / "4.png")  # a dangling link is not an image
    os.mkfifo(root / "5.png")  # nor is a pipe: opening it would block forever
    assert find_images(str(root), "data.train") == [str(root / name) for name in ("3.png", "a/1.png", "x/2.png")]


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "empty/below").mkdir(parents=True)
    with pytest.raises(UserError, match=r"data\.val: no images \(jpg, .*\) in the folder .*/empty or below"):
        find_images(str(tmp_path / "empty"), "data.val")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"data\.train: no such folder or list: .*/none; name a folder"):
        find_images(str(tmp_path / "none"), "data.train")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_must_not_be_read(tmp_path):
    save(tmp_path / "a/1.png")
    os.chmod(tmp_path / "a", 0)
    with pytest.raises(UserError, match=r"data\.train: no permission to read .*/a"):
        find_images(str(tmp_path), "data.train")


LISTS = {
    "plain": ("a.jpg\nb/c.png\n", ["a.jpg", "b/c.png"]),
    "blank lines, no last line end": ("\n\na.jpg\n   \nb/c.png", ["a.jpg", "b/c.png"]),
    "Windows": ("\ufeffa.jpg\r\nb/c.png 3\r\n", ["a.jpg", "b/c.png"]),
    "labels": ("a.jpg 0\nb/c.png\t12\n", ["a.jpg", "b/c.png"]),
    "Places365": ("/b/c.png 7\n/a.jpg 0\n", ["b/c.png", "a.jpg"]),
    "spaces": ("my photo.jpg\nmy photo 2.jpg 5\nb/c.png \n", ["my photo.jpg", "my photo 2.jpg", "b/c.png"]),
    "a name that ends in a number": ("d 5.JPG 17\nd 5.JPG\n", ["d 5.JPG", "d 5.JPG"]),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_paths(tmp_path, monkeypatch, kind):
    text, names = LISTS[kind]
    for name in names:
        save(tmp_path / "place" / name)
    (tmp_path / "place/list.txt").write_bytes(text.encode("utf-8"))
    monkeypatch.chdir(tmp_path)  # paths are relative to the list, not to the current folder
    assert find_images("place/list.txt", "data.train") == [os.path.join("place", name) for name in names]


def test_a_list_of_absolute_paths(tmp_path):
    paths = [str(save(tmp_path / f"away/{i}.png")) for i in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    assert find_images(str(tmp_path / "list.txt"), "data.train") == paths


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the list .*list.txt is empty"),
        (b"\n \n", "the list .*list.txt is empty"),
        (b"a.jpg\nnotes.txt\n", "line 2: not the path of an image: 'notes.txt'"),
        (b"a.jpg\n12\n", "line 2: not the path of an image: '12'"),
        (b"\xff\xd8\xff\xe0", "not a text file of paths"),  # the user named an image
        (b"none.jpg\na.jpg\n", "no image .*/none.jpg, the first of .*list.txt; paths are relative to the list"),
        (b"/none.jpg 1\n", "no image .*/none.jpg, the first of"),
    ],
)
def test_faults_of_lists(tmp_path, content, message):
    save(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"data\.train: .*" + message):
        find_images(str(tmp_path / "list.txt"), "data.train")


def test_the_sample_is_there():
    train, val = find_images("sample", "data.train"), find_images("sample", "data.val")
    assert (len(train), len(val)) == (3, 1)
    assert not set(train) & set(val)
    assert all(os.path.isfile(path) for path in train + val)


@pytest.mark.parametrize("split", ["train", "val"])
def test_folders_without_masks(world, tmp_path, split):
    make = training_samples if split == "train" else validation_pairs
    with pytest.raises(UserError, match=rf"masks\.{split}_dir: no such folder: .*/none; `python masks.py` .* makes"):
        make(config_of(world, f"masks.{split}_dir={tmp_path / 'none'}"))
    (tmp_path / "notes.txt").write_text("no mask")
    with pytest.raises(UserError, match=rf"masks\.{split}_dir: no masks in {tmp_path}; `python masks.py`"):
        make(config_of(world, f"masks.{split}_dir={tmp_path}"))


# --- order -----------------------------------------------------------------------------------------------------


def order(count, *key):
    return [shuffled(position, count, key) for position in range(count)]


def test_shuffled_is_a_bijection():
    for count in [*range(1, 301), 1023, 1024, 1025, 5000]:
        assert sorted(order(count, 2, count, 7)) == list(range(count))


def test_shuffled_is_a_bijection_of_millions():
    for count in (1_803_460, 8_026_628, 2**40 + 1):
        items = [shuffled(position, count, (2, 0, 0)) for position in [*range(2000), *range(count - 2000, count)]]
        assert len(set(items)) == 4000
        assert 0 <= min(items) < count / 100
        assert count * 99 / 100 < max(items) < count


@pytest.mark.parametrize(("position", "count"), [(-1, 5), (5, 5), (0, 0)])
def test_no_position_outside_of_the_range(position, count):
    with pytest.raises(ValueError, match="position must lie in"):
        shuffled(position, count, (1,))


def deviation(counts, cells):
    """Return the deviation of counts from equal ones: chi-square, in standard deviations from its mean."""
    mean = counts.total() / cells
    chi = sum((count - mean) ** 2 for count in counts.values()) / mean + (cells - len(counts)) * mean
    return (chi - (cells - 1)) / math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 8, 11, 16])
def test_every_order_is_as_likely(count):
    keys = range(2000)
    first_two = Counter(tuple(shuffled(i, count, (2, key, 0)) for i in (0, 1)) for key in keys)
    assert deviation(first_two, count * (count - 1)) < 4
    last = Counter(shuffled(count - 1, count, (2, key, 0)) for key in keys)
    assert deviation(last, count) < 4
    if count <= 4:
        assert deviation(Counter(tuple(order(count, 2, key, 0)) for key in keys), math.factorial(count)) < 4


def test_neighbours_are_unrelated():
    for count in (100, 1000):
        items = np.array(order(count, 2, 1, 0))
        other = np.array(order(count, 2, 2, 0))
        straight = np.arange(count)
        for one, two in ((items[1:], items[:-1]), (items, straight), (items, other), (items[2:], items[:-2])):
            assert abs(np.corrcoef(one, two)[0, 1]) < 4 / math.sqrt(count)
        assert np.mean(items[1:] - items[:-1] == 1) < 5 / count
        assert np.mean(items == other) < 8 / count


def test_generators_differ_by_purpose_number_and_seed():
    keys = [(p, n, s) for p in (1, 2, 3) for n in (0, 1, 2, 2**31) for s in (0, 1, 5, 2**32 + 5, 2**63 - 1)]
    draws = {generator(*key).integers(2**63) for key in keys}
    assert len(draws) == len(keys)
    assert generator(1, 2, 3).integers(2**63) == generator(1, 2, 3).integers(2**63)


# --- samples ---------------------------------------------------------------------------------------------------


def test_form_of_a_batch(world):
    config = config_of(world)
    for image, mask in [*batches(config), *validation_batches(validation_pairs(config), config)]:
        assert image.shape == (3, 3, 32, 32)
        assert mask.shape == (3, 1, 32, 32)
        assert image.dtype == mask.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 1
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert image.is_contiguous()
        assert mask.is_contiguous()
    assert all(tensor.is_contiguous() for tensor in training_samples(config)[0][:2])


IMAGES = {
    "grey": (lambda tmp: save(tmp / "a.png", 100, mode="L"), (100, 100, 100)),
    "grey JPEG": (lambda tmp: save(tmp / "a.JPG", 100, mode="L", format="JPEG"), (100, 100, 100)),
    "black and white": (lambda tmp: save(tmp / "a.png", 1, mode="1"), (255, 255, 255)),
    "16 bits": (lambda tmp: Image.fromarray(np.full((30, 40), 25700, np.uint16)).save(tmp / "a.png"), (100, 100, 100)),
    "CMYK": (lambda tmp: save(tmp / "a.jpg", (0, 128, 255, 0), mode="CMYK", quality=95), (255, 127, 0)),
    "alpha": (lambda tmp: save(tmp / "a.png", (200, 100, 50, 9), mode="RGBA"), (200, 100, 50)),
    "grey and alpha": (lambda tmp: save(tmp / "a.png", (100, 9), mode="LA"), (100, 100, 100)),
    "WebP": (lambda tmp: save(tmp / "a.webp", lossless=True), (200, 100, 50)),
    "BMP": (lambda tmp: save(tmp / "a.bmp"), (200, 100, 50)),
    "the smallest": (lambda tmp: save(tmp / "a.png", size=(16, 1000)), (200, 100, 50)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_any_kind_of_image_becomes_rgb(world, tmp_path, kind):
    write, colour = IMAGES[kind]
    write(tmp_path)
    config = config_of(world, f"data.train={tmp_path}", f"data.val={tmp_path}")
    for sample in (training_samples(config)[0], validation_pairs(config)[0]):
        image, _ = floats(sample)
        wanted = torch.tensor(colour).view(3, 1, 1) / 255
        assert image.shape == (3, 32, 32)
        assert (image - wanted).abs().max() < 0.015


def test_a_palette_image_has_the_colours_of_its_palette(world, tmp_path):
    image = Image.new("P", (40, 40), 3)
    image.putpalette([value for i in range(256) for value in (i, 2 * i % 256, 200)])
    image.save(tmp_path / "a.png", transparency=0)
    pixels = validation_pairs(config_of(world, f"data.val={tmp_path}"))[0].image
    assert pixels[:, 0, 0].tolist() == [3, 6, 200]


def test_a_camera_that_was_held_sideways(world, tmp_path):
    upright = Image.fromarray(noise(32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer rotates it by 90° clockwise
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    upright.save(tmp_path / "a/x.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b/x.png", exif=exif)
    pairs = [validation_pairs(config_of(world, f"data.val={tmp_path / name}"))[0][0] for name in "ab"]
    assert torch.equal(*pairs)


def odd_masks(folder, hole):
    """Write typical masks: JPEG, grey edges, alpha, not square, larger, smaller, 16 bits. A third of each is hole."""
    folder.mkdir(parents=True)
    for i, (height, width) in enumerate([(100, 37), (31, 33), (32, 32), (200, 300)]):
        grey = np.full((height, width), 255, np.uint8)
        grey[height // 3 : 2 * height // 3] = 0
        image = Image.fromarray(grey if hole == "black" else 255 - grey)
        image.save(folder / f"{i}.jpg", quality=30)
        image.resize((width + 5, height + 3), Image.Resampling.BICUBIC).save(folder / f"{i}_soft.png")
        image.convert("RGBA").save(folder / f"{i}_rgba.png")
        Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(folder / f"{i}_16.png")


@pytest.mark.parametrize("augment", ["true", "false"])
def test_masks_of_any_kind_come_out_0_or_1(world, tmp_path, augment):
    results = {}
    for hole in ("black", "white"):
        folders = [tmp_path / hole / split for split in ("train", "val")]
        for folder in folders:
            odd_masks(folder, hole)
        places = [f"masks.train_dir={folders[0]}", f"masks.val_dir={folders[1]}"]
        config = config_of(world, *places, f"masks.hole={hole}", f"masks.augment={augment}", "data.val_pairs=16")
        pairs, samples = validation_pairs(config), training_samples(config)
        results[hole] = [floats(pairs[i])[1] for i in range(16)] + [floats(samples[i])[1] for i in range(40)]
        for mask in results[hole]:
            assert mask.shape == (1, 32, 32)
            assert mask.dtype == torch.float32
            assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert 0.5 < torch.stack(results[hole][:16]).mean() < 0.75
    # JPEG noise differs between black and white holes, so soft edges may move by a pixel.
    agreement = [(one == two).float().mean() for one, two in zip(results["black"], results["white"], strict=True)]
    assert min(agreement) > 0.9


def test_masks_are_fitted_with_nearest_neighbour(world):
    mask = np.random.default_rng(0).integers(0, 2, (32, 32), np.uint8)
    assert np.array_equal(fit_mask(mask, 32), mask)
    wide = np.zeros((32, 50), np.uint8)
    wide[:, 9:41] = mask
    assert np.array_equal(fit_mask(wide, 32), mask)
    assert np.array_equal(fit_mask(mask.repeat(2, 0).repeat(2, 1), 32), mask)
    halved = fit_mask(mask, 16)  # nearest neighbour: keeps every second pixel, does not average
    assert any(np.array_equal(halved, mask[y::2, x::2]) for y in (0, 1) for x in (0, 1))


def test_a_mask_without_a_valid_pixel_is_named(world, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write_mask(tmp_path / split / "bad.png", np.zeros((32, 32), np.uint8))
    config = config_of(world, *(f"masks.{split}_dir={tmp_path / split}" for split in ("train", "val")))
    for data in (training_samples(config), validation_pairs(config)):
        with pytest.raises(UserError, match=r"mask .*bad\.png: .* all hole; .* masks\.hole \(black now"):
            data[0]


# --- a sample is a function of (seed, step, slot) --------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(world):
    """Return batches 0 to 5, computed sample by sample without a loader."""
    samples = training_samples(config_of(world))
    batches = []
    for step in range(6):
        rows = [floats(samples[3 * step + slot]) for slot in range(3)]
        batches.append([torch.stack(column) for column in zip(*rows, strict=True)])
    return batches


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_workers_nor_on_where_they_start(world, reference, workers):
    config = config_of(world, f"data.workers={workers}")
    assert same(batches(config, 0, 6), reference)
    assert same(batches(config, 4, 6), reference[4:])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_holds_its_samples_pixel_by_pixel(world, workers):
    config = config_of(world, f"data.train={world / 'val'}", f"data.workers={workers}")  # noise images
    samples, pairs = training_samples(config), validation_pairs(config)
    for batch, data in ((batches(config, 1, 2)[0], samples), (list(validation_batches(pairs, config))[1], pairs)):
        assert same(
            [batch], [[torch.stack(column) for column in zip(*(floats(data[i]) for i in (3, 4, 5)), strict=True)]]
        )


def test_batches_neither_read_nor_change_the_global_random_state(world, reference):
    def state():
        _, words, *rest = np.random.get_state()
        return random.getstate(), words.tolist(), rest, torch.get_rng_state().tolist()

    for workers in (0, 1):
        config = config_of(world, f"data.workers={workers}")
        random.seed(workers)
        np.random.seed(workers)
        torch.manual_seed(workers)
        before = state()
        assert same(batches(config, 0, 2), reference[:2])
        list(validation_batches(validation_pairs(config), config))
        assert state() == before


def test_evaluations_in_between_change_nothing(world, reference):
    config = config_of(world)
    validation = validation_batches(validation_pairs(config), config)
    first = list(validation)
    seen = []
    for batch in training_batches(training_samples(config), config, 0, 6):
        seen.append(batch)
        assert same(list(validation), first)
    assert same(seen, reference)


def test_numbers_of_the_samples_of_a_step():
    phases = "phases=[{steps: 4, lr: 1}, {steps: 3, lr: 1, batch_size: 2}]"
    first, second = Schedule(load_config(overrides=["train.batch_size=3", phases])).phases
    assert list(StepBatches(first, 2, 4)) == [[6, 7, 8], [9, 10, 11]]
    assert len(StepBatches(first, 2, 4)) == 2
    assert list(StepBatches(first, 4, 4)) == []
    assert list(StepBatches(second, 4, 7)) == [[12, 13], [14, 15], [16, 17]]
    assert list(StepBatches(second, 6, 7)) == [[16, 17]]


def test_levels_become_floats_as_by_a_division_of_float32():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = torch.from_numpy(np.stack([levels, levels.T, 255 - levels])).unsqueeze(0)
    floats, mask = as_floats(image, torch.tensor([[[[0, 1]]]], dtype=torch.uint8))
    assert floats.dtype == mask.dtype == torch.float32
    assert np.array_equal(floats.numpy(), np.divide(image.numpy(), 255, dtype=np.float32))
    assert mask.tolist() == [[[[0, 1]]]]


def test_batches_come_on_the_device_that_is_asked_for(world):
    config = config_of(world)
    loaders = (
        training_batches(training_samples(config), config, 0, 1, device="meta"),
        validation_batches(validation_pairs(config), config, device="meta"),
    )
    for loader in loaders:
        for image, mask in loader:
            assert image.device.type == mask.device.type == "meta"
            assert image.dtype == mask.dtype == torch.float32


def test_other_seeds_steps_and_slots_give_other_samples(world, tmp_path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "one.png")  # always the same image: crops and masks must differ
    kinds = {}
    for seed in (0, 1, 2**40):
        samples = training_samples(config_of(world, f"data.train={tmp_path}", f"run.seed={seed}"))
        for number in range(30):
            image, mask, _ = samples[number]
            kinds[seed, number] = image.numpy().tobytes(), mask.numpy().tobytes()
    assert len({image for image, _ in kinds.values()}) == 90
    assert len({mask for _, mask in kinds.values()}) >= 85


def test_every_image_once_an_epoch_in_an_order_of_its_own(world):
    samples = training_samples(config_of(world))
    seen = []
    for number in range(4 * len(COLOURS)):
        colour = tuple(round(value * 255) for value in floats(samples[number])[0].mean((1, 2)).tolist())
        seen.append(COLOURS.index(colour))
    epochs = [tuple(seen[start : start + 11]) for start in range(0, 44, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len(set(epochs)) == 4


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_start_method(world, reference, method):
    before = torch.multiprocessing.get_start_method(allow_none=True)
    config = config_of(world, "data.workers=1")
    torch.multiprocessing.set_start_method(method, force=True)
    try:
        assert same(batches(config, 3, 4), reference[3:4])
    finally:
        torch.multiprocessing.set_start_method(before, force=True)


def test_data_sets_can_be_pickled(world):
    config = config_of(world)
    for data in (training_samples(config), validation_pairs(config)):
        assert same([pickle.loads(pickle.dumps(data))[1][:2]], [data[1][:2]])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_reported_in_one_line(world, tmp_path, workers):
    good = save(tmp_path / "whole.jpg", size=(200, 200))
    broken = tmp_path / "train/broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(good.read_bytes()[:-300])
    config = config_of(world, f"data.train={broken.parent}", f"data.workers={workers}")
    with pytest.raises(UserError) as error:
        batches(config)
    assert str(error.value).startswith(f"damaged image {broken}: ")
    assert "\n" not in str(error.value)
    assert message_of(error.value) == str(error.value)
    assert not multiprocessing.active_children()


def test_a_broken_image_ends_a_script_with_that_line_alone(world, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    script = f"""
from data.loader import training_batches
from data.samples import training_samples
from tests.test_data import config_of
from utils.errors import reports_user_errors
import pathlib, sys

@reports_user_errors
def main(argv):
    config = config_of(pathlib.Path({str(world)!r}), "data.train={tmp_path}", "data.workers=3")
    for batch in training_batches(training_samples(config), config, 0, 9):
        pass

sys.exit(main([]))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert run.stderr == f"error: not an image, or of a kind that Pillow can't read: {tmp_path}/broken.jpg\n"
    assert run.returncode == 1


def test_workers_serve_the_last_step_after_a_signal_to_all_processes(world, reference):
    config = config_of(world, "data.workers=2")
    loader = iter(training_batches(training_samples(config), config, 0, 6))
    seen = [next(loader), next(loader)]  # both workers have started
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    seen.extend(loader)
    assert same(seen, reference)
    assert not multiprocessing.active_children()


# --- validation pairs ------------------------------------------------------------------------------------------


def test_validation_pairs_are_fixed(world):
    pairs = validation_pairs(config_of(world))
    reference = [torch.stack(column) for column in zip(*(floats(pairs[i]) for i in range(6)), strict=True)]
    other = config_of(world, "run.seed=9", "train.batch_size=2", "data.workers=2", "masks.augment=false")
    images, masks = zip(*validation_batches(validation_pairs(other), other), strict=True)
    assert same([[torch.cat(images), torch.cat(masks)]], [reference])


def test_more_images_than_pairs_are_spread_evenly(world):
    pairs = validation_pairs(config_of(world, f"data.val={world / 'train'}", "data.val_pairs=4"))
    means = [floats(pairs[i])[0].mean((1, 2)) * 255 for i in range(len(pairs))]
    colours = [tuple(mean.round().int().tolist()) for mean in means]
    assert [COLOURS.index(colour) for colour in colours] == [0, 2, 5, 8]


def test_fewer_images_meet_several_masks(world):
    pairs = validation_pairs(config_of(world, "data.val_pairs=10"))
    found = [tuple(tensor.numpy().tobytes() for tensor in pairs[i][:2]) for i in range(10)]
    images, masks = zip(*found, strict=True)
    assert sorted(Counter(images).values()) == [2, 2, 3, 3]
    assert list(Counter(masks).values()) == [2] * 5
    assert len(set(found)) > 7


# --- random crops ----------------------------------------------------------------------------------------------


def ramp(width, height):
    """Return an image whose red encodes the column and green the row, from 0 to 255."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], 2).round().astype(np.uint8))


def box_of(crop):
    """Return where a crop of `ramp` came from: (left, top, right, bottom) in [0,1]; left > right if mirrored."""
    pixels = np.asarray(crop).astype(float) / 255
    size = len(pixels)
    red, green = pixels[..., 0].mean(0), pixels[..., 1].mean(1)
    low, high = size // 8, size - 1 - size // 8  # the outermost pixels are blurred
    edges = []
    for row in (red, green):
        slope = (row[high] - row[low]) / (high - low)
        edges.append((row[low] - slope * (low + 0.5), row[high] + slope * (low + 0.5)))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (400, 400)])
def test_a_sample_shows_the_share_and_the_shape_that_it_should(world, tmp_path, width, height):
    ramp(width, height).save(tmp_path / "a.png")
    overrides = (f"data.train={tmp_path}", "data.crop_unit=area", "data.crop_scale=[0.2, 0.5]")
    samples = training_samples(config_of(world, *overrides))
    boxes = [box_of(samples[i].image.permute(1, 2, 0)) for i in range(200)]
    left, top, right, bottom = np.array(boxes).T
    mirrored = left > right
    left, right = np.minimum(left, right), np.maximum(left, right)
    shares = (right - left) * (bottom - top)
    aspects = (right - left) * width / ((bottom - top) * height)
    assert 0.19 < shares.min() < 0.23
    assert 0.47 < shares.max() < 0.51
    assert 0.74 < aspects.min() < 0.79
    assert 1.26 < aspects.max() < 1.36
    assert min(left.min(), top.min()) < 0.02
    assert max(right.max(), bottom.max()) > 0.98
    assert min(left.min(), top.min(), 1 - right.max(), 1 - bottom.max()) > -0.01
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_sample_of_a_large_turned_jpeg_shows_what_one_of_the_upright_picture_shows(world, tmp_path, orientation):
    """The JPEG is decoded at a quarter or an eighth, the PNG at full size; crops agree to half a decoded pixel."""
    upright = ramp(500, 370)
    for name in "ab":
        (tmp_path / name).mkdir()
    upright.save(tmp_path / "a/x.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # numbers of Pillow's transpose methods
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    stored.save(tmp_path / "b/x.jpg", exif=exif, quality=95)
    pairs = [training_samples(config_of(world, f"data.train={tmp_path / name}")) for name in "ab"]
    for number in range(20):
        (whole, mask), (coarse, same_mask) = (floats(samples[number]) for samples in pairs)
        assert torch.equal(mask, same_mask)
        assert (whole - coarse).abs().max() < 0.02


def test_a_part_is_not_squeezed_where_its_shape_does_not_fit():
    for width, height in ((1000, 200), (200, 1000)):
        for i in range(50):
            left, top, right, bottom = random_part(width, height, (1, 1), generator(CROPS, i, 0))
            assert 0.74 < (right - left) / (bottom - top) < 1.34


def test_small_parts_can_be_of_any_place():
    places = Counter()
    for i in range(400):
        left, top, right, bottom = random_part(300, 300, (0.01, 0.02), generator(CROPS, i, 0))
        places[(left + right) // 200, (top + bottom) // 200] += 1
    assert len(places) == 9
    assert min(places.values()) > 20


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 3) | st.integers(1, 1000),
    height=st.integers(1, 3) | st.integers(1, 1000),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
    seed=st.integers(0, 10**6),
    unit=st.sampled_from([("area", 1), ("px", 1500), ("image_size", 6)]),
)
def test_a_part_lies_within_any_image(width, height, scale, seed, unit):
    unit, factor = unit
    scale = (scale[0] * factor, scale[1] * factor)
    left, top, right, bottom = random_part(width, height, scale, generator(CROPS, 0, seed), unit, 256)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if unit != "area":
        assert right - left == bottom - top


def parts(count, *arguments):
    return [random_part(*arguments[:3], generator(CROPS, i, 0), *arguments[3:]) for i in range(count)]


def test_sides_of_parts_by_hand():
    for unit, scale, size, low, high in (("px", (40, 60), 8, 40, 60), ("image_size", (1.0, 1.5), 32, 32, 48)):
        boxes = np.array(parts(400, 200, 150, scale, unit, size))
        sides = boxes[:, 2] - boxes[:, 0]
        assert (sides.min(), sides.max()) == (low, high)
        assert abs(sides.mean() - (low + high) / 2) < 1
        assert boxes[:, 0].min() < 5  # crops occur everywhere
        assert boxes[:, 1].min() < 5
        assert boxes[:, 2].max() > 195
        assert boxes[:, 3].max() > 145
    for unit in ("px", "image_size"):  # a small image limits the crop
        assert parts(3, 30, 20, (64, 64), unit, 64)[0][1::2] == (0, 20)


def test_a_sample_of_image_size_is_cut_out_of_the_picture_as_it_is(world, tmp_path):
    pixels = noise(90, 120)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    overrides = (f"data.train={tmp_path}", "data.crop_unit=image_size", "data.crop_scale=[1, 1]")
    samples = training_samples(config_of(world, *overrides))
    windows = np.lib.stride_tricks.sliding_window_view(pixels[..., 0], (32, 32))
    for number in range(6):
        red = samples[number].image[0].numpy()
        found = [(windows == way).all((2, 3)).sum() for way in (red, red[:, ::-1])]
        assert sum(found) == 1


def test_the_size_of_a_crop_is_that_of_its_phase(world, tmp_path):
    """The red of a ramp encodes the width of the crop."""
    ramp(255, 255).save(tmp_path / "a.png")
    phases = "phases=[{steps: 1, lr: 1}, {steps: 1, lr: 1, image_size: 64, crop_scale: [2, 2]}]"
    overrides = (f"data.train={tmp_path}", "data.crop_unit=image_size", "data.crop_scale=[1, 1]", phases)
    config = config_of(world, *overrides)
    for phase, side in zip(Schedule(config).phases, (32, 128)):
        left, _, right, _ = box_of(training_samples(config, phase=phase)[0].image.permute(1, 2, 0))
        assert abs(right - left) * 255 == pytest.approx(side, abs=2)


@settings(max_examples=200, deadline=None)
@given(height=st.integers(8, 90), width=st.integers(8, 90), size=st.sampled_from([16, 64]))
def test_resized_as_pillow_resizes(height, width, size):
    pixels = noise(height, width, height) // 2 + 64  # so that overshoots are not clipped
    wanted = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    result = resized(pixels, size)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    assert abs(result - wanted).max() <= 3  # intermediate rounding
    assert abs(result - wanted).mean() < 0.4
    assert np.array_equal(resized(np.full_like(pixels, 201), size), np.full((size, size, 3), 201))


def test_centre_crop_is_the_largest_square_in_the_middle():
    left, top, right, bottom = box_of(centre_crop(ramp(600, 300), 100, 100))
    assert (left, top, right, bottom) == pytest.approx((0.25, 0, 0.75, 1), abs=0.01)


# --- mask augmentation -----------------------------------------------------------------------------------------


def augmented(mask, seed, size=256, dilate=(0, 0)):
    return augment_mask(mask, size, dilate, generator(CROPS, seed, 0))


def discs(size, *circles):
    """Return a mask (size,size) with round holes, each (x, y, radius) in px."""
    mask = np.ones((size, size), np.uint8)
    for x, y, radius in circles:
        cv2.circle(mask, (x, y), radius, 0, -1)
    return mask


def test_augmentation_keeps_shapes():
    """Three discs stay round, and their triangle stays similar: rotated, shifted, zoomed by 1 to 1/0.7, mirrored."""
    circles = ((256, 226, 24), (300, 266, 16), (236, 286, 10))
    mask = discs(512, *circles)
    corners = np.array([circle[:2] for circle in circles], float)
    zooms, angles, mirrored, places = [], [], [], []
    for seed in range(300):
        holes = (augmented(mask, seed) == 0).astype(np.uint8)
        count, _, stats, centres = cv2.connectedComponentsWithStats(holes)
        boxes = stats[1:]
        if count != 4 or (boxes[:, :2] == 0).any() or (boxes[:, :2] + boxes[:, 2:4] == 256).any():
            continue  # a disc is cut off
        largest_first = np.argsort(-boxes[:, 4])
        found = centres[1:][largest_first]
        sides = [np.linalg.norm(np.roll(points, 1, 0) - points, axis=1) for points in (found, corners)]
        zoom = sides[0] / sides[1]
        assert zoom.max() - zoom.min() < 0.03 * zoom.mean()
        for (_, _, across, down, area), (_, _, radius) in zip(boxes[largest_first], circles, strict=True):
            assert abs(across - down) <= 2
            assert abs(across - (2 * radius + 1) * zoom.mean()) <= 2
            assert area == pytest.approx(math.pi * (radius + 0.3) ** 2 * zoom.mean() ** 2, rel=0.15)
        (x1, y1), (x2, y2) = found[1] - found[0], found[2] - found[0]
        zooms.append(2 * zoom.mean())  # the crop has half as many pixels per side as the mask
        mirrored.append(x1 * y2 < x2 * y1)
        angles.append(math.atan2(y1, x1))
        places.append(found.mean(0))
    assert len(zooms) > 200
    assert 0.98 < min(zooms) < 1.05
    assert 1.35 < max(zooms) < 1 / 0.7 + 0.03
    assert 0.4 < np.mean(mirrored) < 0.6
    assert min(np.histogram(angles, 8, (-math.pi, math.pi))[0]) > 8
    assert np.ptp(places, axis=0).min() > 60


def test_dilation_adds_hole_and_takes_none_away():
    mask = discs(512, (200, 250, 30), (320, 300, 3))
    for seed in range(40):
        plain, dilated = augmented(mask, seed), augmented(mask, seed, dilate=(20, 20))
        assert (dilated <= plain).all()
        assert dilated.sum() < plain.sum()


@pytest.mark.parametrize("size", [256, 512])
def test_dilation_is_by_a_square_of_so_many_px_at_512(size):
    speck = np.ones((size, size), np.uint8)
    speck[size // 2, size // 2] = 0
    areas = []
    for seed in range(60):
        holes = (augmented(speck, seed, size=512, dilate=(18, 18)) == 0).astype(np.uint8)
        areas.append(int(holes.sum()))
        (_, (across, down), _) = cv2.minAreaRect(cv2.findNonZero(holes))
        assert abs(across - down) <= 2  # a rotated square
    assert 18**2 * 0.9 < min(areas) < max(areas) < 18**2 / 0.7**2 * 1.1


def test_dilation_is_drawn_from_its_range():
    speck = np.ones((512, 512), np.uint8)
    speck[256, 256] = 0
    sides = [math.sqrt((augmented(speck, seed, 512, (9, 49)) == 0).sum()) for seed in range(200)]
    assert 8 < min(sides) < 15
    assert 45 < max(sides) < 49 / 0.7 + 2
    assert np.std(sides) > 9


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 3) | st.integers(1, 90),
    width=st.integers(1, 3) | st.integers(1, 90),
    size=st.sampled_from([4, 32, 64]),
    dilate=st.sampled_from([(0, 0), (0, 9), (9, 49), (512, 512)]),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_an_augmented_mask_is_0_or_1_and_never_all_hole(height, width, size, dilate, share, seed):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    result = augmented(mask, seed, size, dilate)
    assert result.shape == (size, size)
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= {0, 1}
    assert result.any() or not fit_mask(mask, size).any()


def own_scale(mask, seed, size=128):
    return augment_mask(mask, size, (0, 0), generator(CROPS, seed, 0), own_scale=True)


def test_at_its_own_scale_holes_stay_as_wide_as_they_are():
    """Bars of 20 px in a mask of 256 become 20 / 1.2 to 20 / 0.85 px wide in a sample of 128, in any direction."""
    mask = np.ones((256, 256), np.uint8)
    mask[:, 30:50] = mask[:, 118:138] = mask[:, 206:226] = 0
    widths = []
    for seed in range(100):
        part = own_scale(mask, seed)
        assert part.shape == (128, 128)
        depth = cv2.distanceTransform(1 - part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        widths.append(2 * depth[24:-24, 24:-24].max() - 1)  # away from the edge, beyond which there are no valid pixels
    assert 15.5 < min(widths) < 18
    assert 22 < max(widths) < 25


def test_at_its_own_scale_a_mask_has_a_hole_and_valid_pixels_where_it_can():
    spot = np.ones((256, 256), np.uint8)
    spot[:12, :12] = 0
    for mask in (spot, 1 - spot):
        for seed in range(60):
            part = own_scale(mask, seed)
            assert part.any()
            assert not part.all()
    assert own_scale(np.ones((256, 256), np.uint8), 0).all()


@pytest.mark.parametrize("width", [1, 4])
def test_an_outlined_hole_is_a_strip_around_the_hole(width):
    mask = np.ones((30, 40), np.uint8)
    mask[10:16, 12:20] = 0
    expected = np.ones((30, 40), np.uint8)
    expected[10 - width : 16 + width, 12 - width : 20 + width] = 0
    expected[10:16, 12:20] = 1
    np.testing.assert_array_equal(outlined(mask, width), expected)


def test_about_the_given_share_of_masks_is_outlined():
    """Of the hole of 100 px, only an outline leaves no hole pixel deeper than 6 px."""
    mask = np.ones((256, 256), np.uint8)
    mask[78:178, 78:178] = 0
    wide = sum(
        inscribed_radius(augment_mask(mask, 256, (0, 0), generator(CROPS, seed, 0), outlines=0.3)) * 256 > 6
        for seed in range(200)
    )
    assert 120 < wide < 160


@pytest.mark.parametrize("shape", [(1, 1), (20, 300), (64, 64)])
def test_a_mask_that_is_smaller_than_a_crop_at_its_own_scale(shape):
    for seed in range(20):
        assert set(np.unique(own_scale(np.ones(shape, np.uint8), seed))) == {1}
    mask = (np.random.default_rng(0).random(shape) < 0.5).astype(np.uint8)
    assert set(np.unique(own_scale(mask, 0))) <= {0, 1}


def test_a_mask_that_dilation_would_close_is_only_fitted():
    mask = np.zeros((64, 64), np.uint8)
    mask[30:34, 30:34] = 1
    for seed in range(30):
        assert np.array_equal(augmented(mask, seed, 64, (200, 200)), mask)


def test_an_augmented_mask_of_no_hole_stays_so():
    for seed in range(20):
        assert augmented(np.ones((50, 80), np.uint8), seed, 64, (9, 49)).all()
