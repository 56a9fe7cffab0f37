"""Broken images and masks, killed data workers, and `main.py --check-data`."""

import contextlib
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main as training
from data.check import check_pictures
from data.faults import BadFiles, Fault, read_picture
from data.loader import as_floats, reports_killed_workers, training_batches
from data.mask_files import write_mask
from data.parallel import in_processes
from data.samples import training_samples
from tests.small_runs import Started, arguments, assert_same_weights, copy_of, fails, records, run_main
from training.run_folder import RunFolder
from utils.config_files import load_config
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
COUNT = 12  # images per folder
BROKEN = "07.png"  # the broken one


def noise(seed, height=40, width=50):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write intact images of different noise, and masks."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "train", "val"):
        (folder / name).mkdir()
    for i in range(COUNT):
        noise(i).save(folder / f"images/{i:02}.png")
    for i in range(4):
        mask = np.ones((32, 32), np.uint8)
        mask[5 * i : 5 * i + 9, 8:24] = 0
        write_mask(folder / f"train/{i}.png", mask)
        write_mask(folder / f"val/{i}.png", mask)
    return folder


@pytest.fixture
def images(folder, tmp_path):
    """Return a copy of the images that the test may break."""
    return shutil.copytree(folder / "images", tmp_path / "images")


def config_of(folder, *more):
    return load_config(overrides=arguments(folder, "run", *more))


def bomb(path):
    """Write a PNG of 20,000×20,000 black pixels in 50 KB, which takes 1.2 GB as RGB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj()
    rows = b"".join(packer.compress(bytes(2501)) for _ in range(20_000)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


BREAKS = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "damaged image .*truncated"),
    "empty": (lambda path: path.write_bytes(b""), "not an image"),
    "text": (lambda path: path.write_text("<html>404 Not Found</html>"), "not an image"),
    "1×1": (lambda path: noise(0, 1, 1).save(path), "is 1×1 px; the shorter side must be at least 16 px"),
    "a line": (lambda path: noise(0, 15, 500).save(path), "is 500×15 px"),
    "a bomb": (bomb, "178 million pixels"),
    "missing": (lambda path: path.unlink(), "no such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_picture_is_replaced_and_nothing_else_changes(folder, images, kind):
    config = config_of(folder, f"data.train={images}")
    samples = training_samples(config)  # the list is made while all images are intact
    whole = [samples[number] for number in range(3 * COUNT)]
    breaks, reason = BREAKS[kind]
    breaks(images / BROKEN)
    hit = []
    for number, (image, mask, _) in enumerate(whole):
        new_image, new_mask, faults = samples[number]
        assert torch.equal(new_mask, mask)
        assert torch.equal(new_image, image) == (not faults)
        if faults:
            hit.append(number)
            (fault,) = faults
            assert fault[:2] == (number, str(images / BROKEN))
            assert re.search(reason, fault.reason)
            assert "\n" not in fault.reason
    assert [number // COUNT for number in hit] == [0, 1, 2]  # once per epoch


def test_the_substitute_is_a_function_of_seed_step_and_slot(folder, images):
    """It does not depend on the worker or the order. Another seed or number gives another substitute."""
    for i in range(COUNT):
        Image.new("RGB", (50, 40), (20 * i, 9, 255 - 20 * i)).save(images / f"{i:02}.png")
    for name in ("01.png", "07.png", "10.png"):
        (images / name).write_bytes(b"")
    stand_ins = {}
    for seed in (0, 1):
        config = config_of(folder, f"data.train={images}", f"run.seed={seed}")
        samples, again = training_samples(config), training_samples(config)
        drawn = {number: samples[number] for number in range(4 * COUNT)}
        for number in reversed(drawn):
            image, mask, faults = again[number]
            assert torch.equal(image, drawn[number].image)
            assert torch.equal(mask, drawn[number].mask)
            assert faults == drawn[number].faults
            if faults:
                stand_ins[seed, number] = tuple(image[:, 0, 0].tolist())
        for workers in (1, 2):
            with_workers = config_of(folder, f"data.train={images}", f"run.seed={seed}", f"data.workers={workers}")
            told = []
            batches = list(training_batches(training_samples(with_workers), with_workers, 0, 2 * COUNT, told.append))
            assert told == [fault for sample in drawn.values() for fault in sample.faults]
            assert all(torch.equal(batches[n // 2][0][n % 2], as_floats(*drawn[n][:2])[0]) for n in drawn)
    assert len(stand_ins) == 2 * 4 * 3
    whole = {(20 * i, 9, 255 - 20 * i) for i in range(COUNT) if i not in (1, 7, 10)}
    assert set(stand_ins.values()) <= whole
    assert len(set(stand_ins.values())) > 5


def test_where_no_picture_is_whole_the_first_is_named(folder, images):
    for path in images.iterdir():
        path.write_bytes(b"")
    samples = training_samples(config_of(folder, f"data.train={images}"))
    with pytest.raises(
        UserError, match=r"^not an image.*\d\d\.png; \d+ other images that were tried instead failed, too$"
    ):
        samples[0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_of_an_animation_the_first_picture_is_taken(tmp_path, kind):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    frames[0].save(tmp_path / "moving.png", kind, save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "moving.png") as image:
        assert image.n_frames == 3
    red, green, blue = np.asarray(read_picture(str(tmp_path / "moving.png"))).reshape(-1, 3).mean(0)
    assert red > 190
    assert max(green, blue) < 10


# --- bad_files.txt -----------------------------------------------------------------------------------------------


def account(tmp_path, images, batch=1, share=0.01):
    config = load_config(overrides=[f"train.batch_size={batch}", f"data.max_bad={share}"])
    return BadFiles(tmp_path / "bad_files.txt", config, images)


@pytest.mark.parametrize(
    ("images", "batch", "share", "step", "allowed"),
    [
        (10**6, 1, 0.01, 10, 10),  # a share of very few images means little: the share is of at least a thousand
        (10**6, 18, 0.01, 55, 10),
        (10**6, 1, 0.01, 2000, 20),
        (10**6, 10, 0.01, 200, 20),
        (1500, 10, 0.01, 10**6, 15),  # after many epochs, the share is of the number of images
        (200, 1, 0.01, 1, 2),  # there are fewer than a thousand images
        (50, 1, 0.01, 1, 0),
        (10**6, 1, 0.0, 5000, 0),
        (10, 1, 1.0, 5000, 10),
    ],
)
def test_how_many_may_be_broken(tmp_path, images, batch, share, step, allowed):
    bad_files = account(tmp_path, images, batch, share)
    for i in range(allowed):
        bad_files.note(Fault(step * batch - 1, f"{i}.jpg", "broken"))
    bad_files.check(step)
    bad_files.note(Fault(step * batch, "one of the next step.jpg", "broken"))
    bad_files.check(step)
    bad_files.note(Fault(step * batch - 1, "one more.jpg", "broken"))
    met = min(images, step * batch)
    with pytest.raises(UserError, match=rf"^step {step}: {allowed + 1} of the {met} pictures .* allows {allowed}\. "):
        bad_files.check(step)


def test_each_is_named_once_by_all_processes_together(tmp_path, capsys):
    one, other = account(tmp_path, 100, batch=4), account(tmp_path, 100, batch=4)
    names = ["a.jpg", "b\tc.jpg", "d\ne.jpg", "ü\udcff.jpg", "f\x85g.jpg", " "]
    for name in names:
        one.note(Fault(7, name, f"damaged image {name}: no\ttail"))
        other.note(Fault(8, name, "again"))
    other.note(Fault(12, "h.jpg", "no such file"))
    one.note(Fault(13, "h.jpg", "no such file"))
    assert one.count(1) == other.count(1) == 0
    assert one.count(2) == other.count(3) == 6
    assert one.count(4) == other.count(4) == 7
    lines = one.path.read_text("utf-8").split("\n")
    assert lines[:3] == [
        "2\ta.jpg\tdamaged image a.jpg: no\\ttail",
        "2\tb\\tc.jpg\tdamaged image b\\tc.jpg: no\\ttail",
        "2\td\\ne.jpg\tdamaged image d\\ne.jpg: no\\ttail",
    ]
    assert lines[6:] == ["4\th.jpg\tno such file", ""]
    assert capsys.readouterr().err.count("warning: ") == 7


@contextlib.contextmanager
def largest_file(size):
    """Limit the size of files of this process, to simulate a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_the_run_goes_on_and_still_counts(tmp_path, capsys):
    bad_files = account(tmp_path, 100, share=0.03)
    with largest_file(40):  # one and a half lines
        for number in (0, 1, 1, 2):
            bad_files.note(Fault(number, f"{number}.jpg", f"damaged image {number}.jpg"))
        assert [bad_files.count(step) for step in range(5)] == [0, 1, 2, 3, 3]
        bad_files.check(3)
        bad_files.note(Fault(2, "3.jpg", "empty"))
        with pytest.raises(UserError, match="^step 3: 4 of the 3 pictures"):
            bad_files.check(3)
    assert bad_files.path.read_text() == "1\t0.jpg\tdamaged image 0.jpg\n"
    assert capsys.readouterr().err.splitlines() == [
        "warning: damaged image 0.jpg; another picture replaces it",
        f"warning: bad_files.txt can't be written; the run continues: File too large: {bad_files.path}",
        "warning: damaged image 1.jpg; another picture replaces it",
        "warning: damaged image 2.jpg; another picture replaces it",
        "warning: empty; another picture replaces it",
    ]
    bad_files.note(Fault(3, "1.jpg", "again"))
    bad_files.note(Fault(3, "4.jpg", "with room again"))
    assert bad_files.path.read_text().splitlines()[1:] == ["4\t4.jpg\twith room again"]
    assert bad_files.count(4) == 5


def test_rewinding_drops_what_comes_again_and_what_was_cut_off(tmp_path):
    bad_files = account(tmp_path, 100)
    bad_files.rewind(3)
    assert not bad_files.path.exists()
    bad_files.path.write_bytes("1\ta\tx\n3\tb\ty\n\nscribble\n4\tc\tz\n2\tü\tw\n3\td".encode())
    bad_files.rewind(3)
    assert bad_files.path.read_bytes() == "1\ta\tx\n3\tb\ty\n2\tü\tw\n".encode()
    assert [bad_files.count(step) for step in range(5)] == [0, 1, 2, 3, 3]


# --- runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_world(folder, tmp_path_factory):
    """Return the folder with two broken images, and a run over it."""
    world = tmp_path_factory.mktemp("broken")
    shutil.copytree(folder, world, dirs_exist_ok=True)
    (world / "images" / BROKEN).write_bytes(b"")
    noise(0, 1, 1).save(world / "images/02.png")
    run = RunFolder(world / "run")
    run_main(*run_arguments(world, run))
    return world, run


def run_arguments(world, run, *more):
    whole = ("data.max_bad=0.2", f"data.val={world / 'images/03.png.txt'}")
    (world / "images/03.png.txt").write_text("03.png\n")
    return arguments(world, run.path, *whole, *more)


def bad_lines(run):
    return (run.path / "bad_files.txt").read_text().splitlines()


def test_a_run_over_broken_pictures_goes_on_and_names_each_once(broken_world):
    world, run = broken_world
    lines = [line.split("\t") for line in bad_lines(run)]
    assert sorted(Path(path).name for _, path, _ in lines) == ["02.png", BROKEN]
    assert sorted(reason.split(str(world))[0] for _, _, reason in lines) == [
        "image ",
        "not an image, or of a kind that Pillow can't read: ",
    ]
    samples = training_samples(load_config(run.config))
    first = {fault.path: fault.number // 2 + 1 for n in range(15, -1, -1) for fault in samples[n].faults}
    assert {path: int(step) for step, path, _ in lines} == first
    counts = [line["train/bad_files"] for line in records(run) if "train/bad_files" in line]
    assert counts == [sum(int(step) <= now for step, _, _ in lines) for now in range(1, 9)]
    assert counts[-1] == 2


def test_workers_change_nothing_of_it(broken_world, tmp_path):
    world, straight = broken_world
    run = RunFolder(tmp_path / "run")
    run_main(*run_arguments(world, run, "data.workers=2"))
    assert_same_weights(run, straight)
    assert records(run) == records(straight)
    assert bad_lines(run) == bad_lines(straight)


@pytest.mark.parametrize("step", [0, 2, 4, 6])
def test_resume_over_broken_pictures_equals_a_straight_run(broken_world, tmp_path, step):
    _, straight = broken_world
    run = copy_of(straight, tmp_path / "run", step)
    with open(run.path / "bad_files.txt", "a") as file:
        file.write("7\t/cut/o")
    run_main("--resume", run.path)
    assert_same_weights(run, straight)
    assert records(run) == records(straight)
    assert bad_lines(run) == bad_lines(straight)


def test_too_many_broken_pictures_stop_a_run_that_can_go_on(broken_world, tmp_path, capsys):
    world, straight = broken_world
    run = RunFolder(tmp_path / "run")
    line = fails(capsys, *run_arguments(world, run, "data.max_bad=0.1"))  # one of 12
    step = max(int(line.split("\t")[0]) for line in bad_lines(straight))
    assert line.startswith(f"error: step {step}: 2 of the {min(2 * step, COUNT)} pictures read so far are broken")
    assert str(run.path / "bad_files.txt") in line
    assert torch.load(run.last, weights_only=True)["step"] == step - 1
    run_main("--resume", run.path, "data.max_bad=0.2")
    assert_same_weights(run, straight)
    assert bad_lines(run) == bad_lines(straight)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("key", "name"), [("data.val", "images/03.png"), ("masks.train_dir", "train/0.png")])
def test_broken_validation_pictures_and_masks_stop_a_run(folder, tmp_path, capsys, key, name, workers):
    """Skipping a validation image would change the mean metrics. Masks are few and made by the user."""
    world = shutil.copytree(folder, tmp_path / "world")
    (world / name).write_bytes(b"")
    (world / "list.txt").write_text("images/03.png\n")
    train = "images" if key != "data.val" else "images/00.png.txt"
    (world / "images/00.png.txt").write_text("00.png\n")
    more = (f"data.train={world / train}", f"data.val={world / 'list.txt'}", f"data.workers={workers}")
    line = fails(capsys, *arguments(world, tmp_path / "run", *more))
    assert line == f"error: not an image, or of a kind that Pillow can't read: {world / name}"


# --- killed data workers -----------------------------------------------------------------------------------------


# Four pairs. A worker that makes the third kills itself, before or after its earlier ones are taken.
KILLS_ITS_WORKER = """
import os, signal, sys, time
import torch
from data.loader import Batches, reports_killed_workers
from data.samples import Sample
from utils.errors import reports_user_errors

wait, step = map(float, sys.argv[1:])

class KillsItsWorker(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        if number == 2:
            time.sleep(wait)
            os.kill(os.getpid(), signal.SIGKILL)
        return Sample(torch.zeros(3, 1, 1, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.uint8), [])

@reports_user_errors
def main(argv):
    with reports_killed_workers():
        for batch in Batches(KillsItsWorker(), num_workers=1):
            time.sleep(step)

sys.exit(main([]))
"""


@pytest.mark.parametrize(("wait", "step"), [(0, 0), (0.3, 0), (0.3, 5)])  # while it transfers, is waited for, or works
def test_a_killed_worker_ends_a_script_with_one_line(wait, step):
    command = [sys.executable, "-c", KILLS_ITS_WORKER, str(wait), str(step)]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    line = "error: a data worker is killed by signal: Killed; was memory short? If so, use fewer data.workers\n"
    assert run.stderr == line
    assert run.returncode == 1


@pytest.mark.parametrize("late", [True, False])
def test_a_worker_that_is_killed_while_it_hands_over_a_batch(late):
    """The connection breaks, and torch's signal may arrive a little later."""

    def as_torch_does(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGALRM, as_torch_does)
    try:
        with pytest.raises(UserError) as error, reports_killed_workers():  # noqa: PT012
            if late:
                signal.setitimer(signal.ITIMER_REAL, 0.2)
            raise ConnectionResetError("reset by peer")
    finally:
        signal.signal(signal.SIGALRM, before)
    how = "is killed by signal: Killed" if late else "ended"
    assert str(error.value) == f"a data worker {how}; was memory short? If so, use fewer data.workers"


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="^another$"), reports_killed_workers():
        raise RuntimeError("another")


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the children of a process are read in /proc")
def test_a_killed_data_worker_ends_the_run_with_a_line_and_resume_equals_a_straight_run(folder, tmp_path):
    straight, run = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "run")
    more = ("phases.0.steps=120", "train.eval_every=1000", "data.workers=2", "train.save_every=3")
    run_main(*arguments(folder, straight.path, *more))
    started = Started(run, *arguments(folder, run.path, *more))
    started.wait_for((run.checkpoints / "step_00000003.pt").exists)
    os.kill(children_of(started.process.pid)[0], signal.SIGKILL)
    assert started.end() == 1
    error = started.text()
    assert "Traceback" not in error
    assert re.search(r"^error: a data worker (is killed|exited).*was memory short\?", error.splitlines()[-1])
    assert torch.load(run.last, weights_only=True)["step"] % 3 == 0
    run_main("--resume", run.path)
    assert_same_weights(run, straight)


# --- --check-data ------------------------------------------------------------------------------------------------


def check(folder, *more):
    return training.main(["--check-data", *arguments(folder, "nowhere", *more)])


def test_whole_data_are_described(folder, capsys):
    assert check(folder) == 0
    out, err = capsys.readouterr()
    assert "data.train: 12 images, 0 broken" in out
    assert "masks.val_dir: 4 masks, 0 broken" in out
    assert "shorter side: 40 to 40 px" in out
    assert "hole ratio: mean 0.141; 0.01-0.1 0.0%, 0.1-0.2 100.0%" in out  # 9 × 16 of 32 × 32 px
    assert "broken:" not in err
    assert not (PROJECT / "nowhere").exists()


def test_all_that_is_broken_is_listed(folder, tmp_path, capsys):
    world = shutil.copytree(folder, tmp_path / "world")
    for number, kind in enumerate(("cut off", "empty", "text", "1×1", "a line")):
        BREAKS[kind][0](world / f"images/{number:02}.png")
    noise(9, 20, 90).save(world / "images/09.png")
    write_mask(world / "train/0.png", np.zeros((32, 32), np.uint8))
    (world / "val/3.png").write_bytes(b"")
    before = {path: path.read_bytes() for path in world.rglob("*.png")}
    assert check(world) == 1
    out, err = capsys.readouterr()
    assert "data.train: 12 images, 5 broken" in out
    assert "shorter side: 20 to 40 px; quantiles 5% 20, 25% 40, 50% 40" in out
    assert "below data.image_size = 32, so enlarged: 1 (14.3%)" in out
    assert "masks.train_dir: 4 masks, 1 broken" in out
    broken = [line for line in err.splitlines() if "broken: " in line]
    assert len(broken) == 5 + 5 + 1 + 1  # data.val has the same images
    for name in ("images/00.png", "images/04.png", "train/0.png", "val/3.png"):
        assert any(str(world / name) in line for line in broken)
    assert {path: path.read_bytes() for path in world.rglob("*.png")} == before


def test_an_epoch_takes_as_long_as_its_images_on_so_many_workers(tmp_path, capsys, monkeypatch):
    class Slow:
        def __init__(self):
            self.now = 0.0

        def perf_counter(self):  # called before and after each image
            self.now += 90
            return self.now

    monkeypatch.setattr("data.check.time", Slow())
    monkeypatch.setattr("data.check.cores", lambda: 8)
    for i in range(10):
        noise(i).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(10)]
    for workers, words in ((0, "15.0 min"), (4, "3.8 min"), (8, "1.9 min"), (64, "1.9 min")):
        assert check_pictures("data.train", paths, 32, workers) == 0
        assert (
            f"decoding an epoch: {words} with data.workers = {workers} on 8 cores, 90000.0 ms" in capsys.readouterr()[0]
        )


def test_check_data_needs_its_folders_and_no_run(folder, tmp_path, capsys):
    assert "masks.val_dir: no such folder" in fails(
        capsys, "--check-data", *arguments(folder, "run", "masks.val_dir=no")
    )
    for option in ("--resume", "--init-from"):
        with pytest.raises(SystemExit):
            training.main(["--check-data", option, str(tmp_path)])
        assert "leave out --resume and --init-from" in capsys.readouterr().err


def test_check_data_needs_no_torch(folder):
    code = "import sys, main; assert main.main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "--check-data", *arguments(folder, "run")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Endless:
    """An iterable of more jobs than fit into memory. Counts the jobs that were requested."""

    def __init__(self):
        self.last = 0

    def __len__(self):
        return 8_000_000

    def __getitem__(self, number):
        self.last = max(self.last, number)
        return number


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_are_taken_only_as_they_are_needed(processes):
    jobs = Endless()
    results = in_processes(abs, jobs, processes, "jobs", "numbers")
    assert [next(results) for _ in range(1000)] == list(range(1000))
    assert jobs.last < 1200
    results.close()


@pytest.mark.skipif(os.name == "nt", reason="signals of a process group")
@pytest.mark.parametrize("wait", [0.1, 1])  # while the processes start, and while they work
def test_ctrl_c_ends_check_data_without_a_traceback(folder, tmp_path, wait):
    images = tmp_path / "images"
    images.mkdir()
    noise(0, 1500, 2000).save(images / "0.png")
    for i in range(1, 600):
        os.link(images / "0.png", images / f"{i}.png")
    command = [sys.executable, "main.py", "--check-data", *arguments(folder, "run", f"data.train={images}")]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(children_of(process.pid)) < 3 and time.monotonic() < deadline:  # with multiprocessing's own process
        time.sleep(0.05)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
