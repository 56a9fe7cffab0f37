"""The gallery: selection of cases, files, and the page in a real browser."""

import itertools
import json
import random
import shutil
import subprocess
import weakref
from html.parser import HTMLParser
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from PIL import Image

from evaluation.gallery import RANKS, Case, choose, write_gallery
from evaluation.metrics import METRICS
from evaluation.pictures import to_8_bit_pixels
from evaluation.summary import BINS, Row

HOSTILE = (
    "<b>bold</b>",
    "</script><script>document.title = 'taken'</script><!--",
    "\"quotes\" and 'quotes' & &amp;",
    "../x",
    "100 % {{data}} ${1}",
    "ä b 日本 \u2028 \udce4",
    "line\nbreak",
    "",
)


# --- selection, by hand ----------------------------------------------------------------------------------------


def rows(l1, bin_=BINS[0], start=0, method="first", border="any"):
    """Return a row for each value, with pairs `start`, `start` + 1 and so on."""
    return [
        Row(pair, f"{pair}.png", "m.png", bin_, border, 0.05, method, {"l1_percent": value, "psnr": value})
        for pair, value in enumerate(l1, start)
    ]


@pytest.mark.parametrize(
    ("l1", "expected"),
    [
        ([3, 1, 2, 5, 4], [(1, "best"), (0, "median"), (3, "worst")]),
        ([3, 1, 2, 4], [(1, "best"), (2, "median"), (3, "worst")]),
        ([2, 2, 2], [(0, "best"), (1, "median"), (2, "worst")]),
        ([2, 1], [(1, "best"), (0, "worst")]),
        ([2], [(0, "best")]),
        ([], []),
    ],
)
def test_best_median_worst(l1, expected):
    assert choose(rows(l1), "first") == expected
    assert choose(rows(l1)[::-1], "first") == expected


def test_choice_is_by_bin_and_of_the_first_method():
    given = [
        *rows([1, 2, 3], BINS[2], start=0, border="free"),
        *rows([0.5, 2.5], BINS[2], start=3),
        *rows([7, 6, 5], BINS[0], start=10),
        *rows([9], "", start=20),
        *rows([5, 4, 3, 2, 1], BINS[2], start=0, method="other"),
    ]
    expected = [(12, "best"), (11, "median"), (10, "worst"), (3, "best"), (1, "median"), (2, "worst"), (20, "best")]
    assert choose(given, "first") == expected
    random.Random(0).shuffle(given)
    assert choose(given, "first") == expected
    assert choose(given, "other") == [(4, "best"), (2, "median"), (0, "worst")]


# --- files -----------------------------------------------------------------------------------------------------


def picture(seed, size=(12, 16)):
    return np.random.default_rng(seed).random((*size, 3)).astype(np.float32)


def make_case(methods=("a", "b"), bin_=BINS[0], rank="best", seed=0, **changes):
    number = itertools.count(1000 * seed)
    case = Case(
        pair=seed,
        image=f"{seed}.png",
        bin=bin_,
        border="free",
        ratio=0.05,
        rank=rank,
        masked=picture(next(number)),
        truth=picture(next(number)),
        composites={method: picture(next(number)) for method in methods},
        scores={method: {"l1_percent": 1.5 + i, "psnr": 20.25 + i, "ssim": 0.5} for i, method in enumerate(methods)},
    )
    return case._replace(**changes)


def make_cases(methods=("a", "b"), bins=BINS, ranks=RANKS):
    return [make_case(methods, bin_, rank, seed) for seed, (bin_, rank) in enumerate(itertools.product(bins, ranks))]


class Page(HTMLParser):
    """The elements of a page: (name, attributes, direct text)."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2] += data

    def of(self, name):
        return [(attributes, text) for tag, attributes, text in self.elements if tag == name]

    @property
    def data(self):
        (text,) = [text for attributes, text in self.of("script") if attributes.get("id") == "data"]
        return json.loads(text, parse_constant=lambda constant: pytest.fail(f"not JSON: {constant}"))


def read_page(folder):
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def pixels(path):
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened)


@pytest.mark.parametrize("methods", [("a", "b"), HOSTILE], ids=["plain", "hostile"])
def test_every_picture_lies_where_the_page_says(tmp_path, methods):
    cases = make_cases(methods, bins=(BINS[1], ""))
    folder = tmp_path / "out" / "gallery"
    assert write_gallery(folder, iter(cases), methods, "title") == folder / "index.html"
    data = read_page(folder).data
    named = {"index.html"}
    assert len(data["cases"]) == 6
    for case, entry in zip(cases, data["cases"]):
        expected = [case.masked, *(case.composites[method] for method in methods), case.truth]
        assert len(entry["pictures"]) == len(data["sources"]) == len(expected)
        for file, shown in zip(entry["pictures"], expected):
            np.testing.assert_array_equal(pixels(folder / file), to_8_bit_pixels(shown))
        beside = pixels(folder / entry["sheet"])[16:28]
        for column, shown in enumerate(expected):
            np.testing.assert_array_equal(beside[:, column * 20 : column * 20 + 16], to_8_bit_pixels(shown))
        named |= {entry["sheet"], *entry["pictures"]}
    assert named == {path.name for path in folder.iterdir()}  # no other files, and each image once
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()] == ["out", "gallery"]


def test_what_the_page_knows(tmp_path):
    case = make_case(["a", "b"], "", "worst", seed=4)
    case.scores["b"]["hole_ssim"] = float("nan")
    write_gallery(tmp_path, [case], ["b", "a"], "title")
    data = read_page(tmp_path).data
    assert data["sources"] == ["masked", "b", "a", "truth"]
    assert [metric["name"] for metric in data["metrics"]] == ["l1_percent", "psnr", "ssim", "hole_ssim"]
    for metric in data["metrics"]:
        assert {**METRICS[metric.pop("name")]._asdict()} == metric
    (entry,) = data["cases"]
    assert entry["scores"] == [
        {"l1_percent": 2.5, "psnr": 21.25, "ssim": 0.5, "hole_ssim": None},
        {"l1_percent": 1.5, "psnr": 20.25, "ssim": 0.5},
    ]
    assert [entry[name] for name in ("pair", "image", "bin", "rank", "border")] == [4, "4.png", "", "worst", "free"]
    assert (entry["width"], entry["height"], entry["ratio"]) == (16, 12, 0.05)


def test_cases_are_shown_by_bin_and_rank_however_they_come(tmp_path):
    cases = make_cases(bins=(*BINS, ""))
    expected = [(case.bin, case.rank) for case in cases]
    random.Random(0).shuffle(cases)
    write_gallery(tmp_path, cases, ["a", "b"], "title")
    assert [(entry["bin"], entry["rank"]) for entry in read_page(tmp_path).data["cases"]] == expected


def test_sheets_have_plain_names_and_show_without_scripts(tmp_path):
    write_gallery(tmp_path, make_cases(bins=BINS[1:3]), ["a", "b"], "title")
    expected = [f"{bin_}_{rank}.png" for bin_ in BINS[1:3] for rank in RANKS]
    without = [attributes for attributes, _ in read_page(tmp_path).of("img") if "src" in attributes]
    assert [unquote(attributes["src"]) for attributes in without] == expected
    assert all(attributes["alt"] for attributes in without)
    assert all((tmp_path / name).is_file() for name in expected)


def test_hostile_names_stay_text(tmp_path):
    title = "{{data}} </title><script>alert(1)</script> \udce4"
    write_gallery(tmp_path, [make_case(HOSTILE, image=HOSTILE[1])], HOSTILE, title)
    page = read_page(tmp_path)
    assert page.data["sources"][1:-1] == list(HOSTILE)
    assert page.data["cases"][0]["image"] == HOSTILE[1]
    assert len(page.of("script")) == 2  # the data and the page's script
    assert page.of("b") == []
    assert page.of("title")[0][1].strip() == title.replace("\udce4", "?")


def test_an_earlier_gallery_is_replaced_and_other_files_stay(tmp_path):
    write_gallery(tmp_path, make_cases(HOSTILE), HOSTILE, "old")
    others = ("notes.txt", "0.1-0.2_best copy.png", "0.1-0.2_good.png", "photo.png", "0.1-0.2_best_mine.png")
    for name in others:
        (tmp_path / name).write_text("mine")
    write_gallery(tmp_path, make_cases(bins=BINS[:1]), ["a", "b"], "new")
    data = read_page(tmp_path).data
    named = {name for entry in data["cases"] for name in (entry["sheet"], *entry["pictures"])}
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", *named, *others}
    assert all((tmp_path / name).read_text() == "mine" for name in others)


def test_only_one_case_is_held(tmp_path):
    def one_by_one():
        for rank in RANKS:
            made = [make_case(rank=rank)]
            truth = weakref.ref(made[0].truth)
            yield made.pop()
            held.append(truth() is not None)

    held = []
    write_gallery(tmp_path, one_by_one(), ["a", "b"], "title")
    assert held == [False] * 3


def test_long_titles_do_not_run_into_one_another(tmp_path):
    """On sheets of 16 px images, titles are cut to the width. They are black on white, above the images."""
    names = ["a very long name of a method", "x"]
    write_gallery(tmp_path, [make_case(names)], names, "title")
    top = pixels(tmp_path / f"{BINS[0]}_best.png")[:16]
    for gap in (16, 36, 56):
        assert (top[:, gap + 1 : gap + 3] == 255).all()
    assert (top[:, 20:36] < 128).any()


# --- in a browser ----------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")


def browse(profile, *arguments):
    """Return what Chromium prints about a page."""
    words = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    flags = [f"--{word}" for word in ("headless", *words.split(), "disable-sync", "hide-scrollbars")]
    flags += ["--force-color-profile=srgb", "--force-device-scale-factor=1", "--virtual-time-budget=3000"]
    command = [BROWSER, *flags, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def flat_case(methods, bin_, rank, index, size=24):
    """Return a case whose images have one colour each: red encodes the case, green the image."""
    shades = iter(np.full((size, size, 3), (30 + 40 * index, 20 + 30 * p, 90), np.float32) / 255 for p in range(9))
    masked, truth, *composites = (next(shades) for _ in range(2 + len(methods)))
    composites = dict(zip(methods, composites))
    return make_case(methods, bin_, rank, index, masked=masked, truth=truth, composites=composites)


def largest_area(screenshot, colour):
    """Return (left, top, width, height) of the largest connected area of a colour."""
    near = (np.abs(screenshot.astype(int) - colour) <= 2).all(2)
    _, _, stats, _ = cv2.connectedComponentsWithStats(near.astype(np.uint8))
    assert len(stats) > 1, f"{colour} is nowhere"
    return stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()][:4].tolist()


@needs_browser
@pytest.mark.parametrize("width", [1200, 500])
def test_the_slider_shows_left_and_right_picture(tmp_path, width):
    folder = tmp_path / "a # gallery %20"
    cases = [flat_case(HOSTILE[:3], BINS[0], rank, index) for index, rank in enumerate(RANKS)]
    index = write_gallery(folder, cases, HOSTILE[:3], "title")
    target = tmp_path / "page.png"
    address = f"{index.as_uri()}#case={BINS[0]}_median&left=1&right=4&slider=25"
    browse(tmp_path / "profile", f"--screenshot={target}", f"--window-size={width},900", address)
    screenshot = pixels(target)[:, :, :3]
    method, truth = ((70, 20 + 30 * place, 90) for place in (2, 1))
    left, top, left_width, height = largest_area(screenshot, method)
    right, right_top, right_width, right_height = largest_area(screenshot, truth)
    assert [right_top, right_height] == pytest.approx([top, height], abs=1)
    side = right + right_width - left
    assert side == right_height
    assert side >= 10 * 24
    assert side % 24 == 0  # whole pixels
    assert left + 0.25 * side == pytest.approx(left + left_width, abs=3)  # the dividing line
    assert left + 0.25 * side == pytest.approx(right, abs=3)


DRIVER = """
<script>
const log = {errors};
const state = () => [
  document.getElementById("count").textContent,
  decodeURI(document.getElementById("picture-left").src.split("/").pop()),
  decodeURI(document.getElementById("picture-right").src.split("/").pop()),
];
const press = (key, target = document.body) => target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const byText = (id, text) => [...document.getElementById(id).children].find((button) => button.textContent === text);
const change = (id, value, event) => {
  const element = document.getElementById(id);
  element.value = value;
  element.dispatchEvent(new Event(event, {bubbles: true}));
};
log.ready = document.documentElement.dataset.ready;
log.start = state();
press("ArrowRight"); log.right = state();
press("ArrowLeft"); press("ArrowLeft"); log.around = state();
press("ArrowRight", document.getElementById("slider")); log.slider_keeps_its_keys = state();
byText("bins", "0.1-0.2").focus(); byText("bins", "0.1-0.2").click(); log.bin = state();
log.focus = document.activeElement.textContent;
log.disabled = byText("ranks", "median").disabled;
byText("ranks", "best").click(); log.rank = state();
change("left", "2", "change"); log.left = state();
press("s"); log.swapped = state();
document.querySelectorAll("#cards .card")[3].querySelectorAll("button")[1].click(); log.card = state();
change("slider", "75", "input");
log.clip = getComputedStyle(document.getElementById("picture-left")).clipPath;
log.address = location.hash;
log.rendering = getComputedStyle(document.getElementById("picture-left")).imageRendering;
location.hash = "#case=0.01-0.1_median&left=99&right=-1&slider=x&zoom=3";
log.sources = [...document.getElementById("left").options].map((option) => option.textContent);
log.best = [...document.querySelectorAll("#cards .best")].map((element) => element.textContent);
log.title = document.title;
log.bold = document.querySelectorAll("b").length;
setTimeout(() => {
  log.linked = [...state(), document.getElementById("pair").style.width];
  log.loaded = [...document.images].filter((image) => image.src).map((image) => image.naturalWidth);
  document.documentElement.dataset.log = JSON.stringify(log);
}, 500);
</script>
"""


@needs_browser
def test_the_page_answers_keys_and_buttons(tmp_path):
    methods = (HOSTILE[0], HOSTILE[1])
    cases = [flat_case(methods, BINS[0], rank, index) for index, rank in enumerate(RANKS)]
    cases += [flat_case(methods, BINS[1], rank, index) for index, rank in ((3, "best"), (4, "worst"))]
    index = write_gallery(tmp_path / "gallery", cases, methods, "the title")
    pictures = [entry["pictures"] for entry in read_page(index.parent).data["cases"]]
    catch = "<head><script>const errors = []; window.onerror = (message) => { errors.push(message); };</script>"
    text = index.read_text(encoding="utf-8").replace("<head>", catch, 1)
    driven = index.with_name("driven.html")
    driven.write_text(text.replace("</body>", DRIVER + "</body>"), encoding="utf-8")

    page = Page(browse(tmp_path / "profile", "--dump-dom", "--window-size=1200,900", driven.as_uri()))
    log = json.loads(page.of("html")[0][0]["data-log"])

    def state(case, left, right):
        return [f"{case + 1} / 5", pictures[case][left], pictures[case][right]]

    assert log["errors"] == []
    assert log["ready"] == "yes"
    assert log["start"] == state(0, 0, 1)
    assert log["right"] == state(1, 0, 1)
    assert log["around"] == log["slider_keeps_its_keys"] == state(4, 0, 1)
    assert log["bin"] == state(4, 0, 1)  # the rank stays `worst`
    assert log["focus"] == "0.1-0.2"
    assert log["disabled"] is True
    assert log["rank"] == state(3, 0, 1)
    assert log["left"] == state(3, 2, 1)
    assert log["swapped"] == state(3, 1, 2)
    assert log["card"] == state(3, 1, 3)
    assert log["clip"] == "inset(0px 25% 0px 0px)"
    assert log["address"] == "#case=0.1-0.2_best&left=1&right=3&slider=50&zoom=0"
    assert log["rendering"] == "pixelated"
    assert log["linked"] == [*state(1, 1, 3), "72px"]
    assert log["sources"] == ["masked", *methods, "truth"]
    assert log["best"] == ["★ 1.50", "★ 0.500", "★ 21.25", "★ 0.500"]
    assert log["title"] == "the title"
    assert log["bold"] == 0
    assert set(log["loaded"]) == {24}


@needs_browser
def test_a_page_without_cases_says_so(tmp_path):
    index = write_gallery(tmp_path / "gallery", [], ["a"], "title")
    page = Page(browse(tmp_path / "profile", "--dump-dom", index.as_uri()))
    assert page.of("html")[0][0]["data-ready"] == "yes"
    (words,) = (text for attributes, text in page.of("p") if attributes.get("id") == "ranking")
    assert words.strip() == "No cases."
