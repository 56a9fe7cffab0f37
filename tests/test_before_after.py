"""The image that `make demo` writes at the end."""

from pathlib import Path

import numpy as np
from PIL import Image

from evaluation import before_after

HEIGHT, WIDTH = 20, 30


def save(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return str(path)


def test_photograph_with_hole_repaired_and_as_it_was_stand_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    was, now = rng.integers(0, 255, (2, HEIGHT, WIDTH, 3))
    mask = np.full((HEIGHT, WIDTH), 255)
    mask[5:9, 7:12] = 0
    files = [save(tmp_path / "was.png", was), save(tmp_path / "m.png", mask), save(tmp_path / "now.png", now)]
    assert before_after.main([*files, str(tmp_path / "sheet.png")]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    step = (sheet.shape[1] - WIDTH) // 2  # from one image to the next
    rows = sheet[-HEIGHT - 4 : -4]  # below the titles, above the last gap
    shown, repaired, before = (rows[:, left : left + WIDTH] for left in (0, step, 2 * step))
    assert np.array_equal(shown, np.where(mask[..., None] > 0, was, 255))
    assert np.array_equal(repaired, now)
    assert np.array_equal(before, was)


def test_mistakes_are_one_line(tmp_path, capsys):
    small, large = save(tmp_path / "s.png", np.zeros((4, 4, 3))), save(tmp_path / "l.png", np.zeros((5, 4, 3)))
    mask = save(tmp_path / "m.png", np.eye(4) * 255)
    for arguments, words in ((["a", "b"], "usage"), ([small, mask, large, str(tmp_path / "out.png")], "same size")):
        assert before_after.main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert words in error
    assert not Path(tmp_path / "out.png").exists()
