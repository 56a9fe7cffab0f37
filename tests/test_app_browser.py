"""The page in a browser, used as by a person: open photographs, paint, fill, compare, save."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
from data.photo import Photo, encode_photo, read_photo
from tests.browser import PATIENCE, visits
from tests.conftest import PROJECT
from tests.test_predict import ORIENTATION, noise
from utils.arguments import DEFAULT_WEIGHTS

CHELSEA = PROJECT / "docs/chelsea.jpg"


@pytest.fixture
def visit(chromium, app):
    """Open the page. At the end, check that it had no errors and requested nothing from other hosts."""
    with visits(chromium, app) as open_page:
        yield open_page


def by_predict(folder, image, *masks):
    """Return predict.py's result for the bytes of an image and several masks, applied one after another."""
    for mask in masks:
        (folder / "image.bin").write_bytes(image)
        (folder / "mask.bin").write_bytes(mask)
        options = {"image": "image.bin", "mask": "mask.bin", "output": "out.png"}
        arguments = [word for name, file in options.items() for word in (f"--{name}", str(folder / file))]
        assert predict.main([*arguments, "--model", str(DEFAULT_WEIGHTS)]) == 0
        image = (folder / "out.png").read_bytes()
    return image


def look_same(a, b):
    """Compare two screenshots of the stage. The browser's rounding of scaled edges varies."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 4


def test_open_paint_fill_compare_undo_save(tmp_path, visit):
    page = visit()
    page.open(CHELSEA)
    page.drag((0.3, 0.4), (0.5, 0.5), (0.6, 0.3))
    mask = page.saved("#save-mask")
    page.tab.locator("#stage").focus()
    painted = page.pixels()
    page.fill()
    filled = page.pixels()
    assert not look_same(painted, filled)
    result = page.saved()
    assert result == by_predict(tmp_path, CHELSEA.read_bytes(), mask)
    page.tab.locator("#stage").focus()

    page.tab.keyboard.down("c")
    before = page.pixels()
    page.tab.keyboard.up("c")
    assert not look_same(before, filled)
    assert look_same(page.pixels(), filled)
    page.choose("slider")
    page.tab.locator("#stage").focus()
    half = filled.shape[1] // 2
    slider = page.pixels()[: int(filled.shape[0] * 0.9)]  # above the slider handle
    assert look_same(slider[:, : half - 9], before[: len(slider), : half - 9])
    assert look_same(slider[:, half + 9 :], filled[: len(slider), half + 9 :])
    page.choose("side")
    sides = page.pixels()
    left, right = (sides[:, start : start + half - 9].astype(int) for start in (0, half + 6))  # pixels() crops 6 px
    assert np.abs(left - right).max() > 30  # two copies of the image, the hole filled in one
    assert (np.abs(left - right) > 4).mean() < 0.1
    page.choose("off")
    page.tab.locator("#stage").focus()

    page.tab.keyboard.press("Control+z")  # undoes the fill
    assert look_same(page.pixels(), painted)
    assert page.saved("#save-mask") == mask
    page.tab.keyboard.press("Control+Shift+z")
    assert page.saved() == result
    assert page.saved("#save-mask") == mask  # the mask of the last fill, because nothing is painted


@pytest.mark.slow
def test_fills_go_on_and_come_back(tmp_path, visit):
    page = visit()
    page.open(CHELSEA)
    page.drag((0.3, 0.4), (0.5, 0.5))
    first = page.saved("#save-mask")
    page.tab.locator("#stage").focus()
    page.fill()
    page.drag((0.4, 0.6), (0.5, 0.3))  # over the first stroke
    second = page.saved("#save-mask")
    page.tab.locator("#stage").focus()
    page.is_filled_again()
    image = CHELSEA.read_bytes()
    assert page.saved() == by_predict(tmp_path, image, first, second)
    for _ in range(4):
        page.tab.click("#undo")
    photo = read_photo(Path("photo"), page.saved())
    assert np.array_equal(photo.pixels, read_photo(CHELSEA).pixels)
    for _ in range(2):
        page.tab.click("#redo")
    assert page.saved() == by_predict(tmp_path, image, first)


@pytest.mark.slow
def test_another_method_fills_the_same_hole(visit):
    page = visit()
    page.open(CHELSEA)
    page.drag((0.3, 0.4), (0.5, 0.5))
    page.tab.locator("#stage").focus()
    page.fill()
    network, mask = page.saved(), page.saved("#save-mask")
    page.tab.select_option("#method", "telea")
    page.tab.locator("#stage").focus()
    page.is_filled_again()
    page.says("Filled by telea")
    assert page.saved() != network
    assert page.saved("#save-mask") == mask


def test_brush_eraser_rectangle_lasso_widen_clear(visit):
    page = visit()
    page.open(CHELSEA)
    page.choose("rectangle")
    page.drag((0.3, 0.3), (0.6, 0.7))
    rectangle = page.mask() == 0
    rows, columns = np.nonzero(rectangle.any(1))[0], np.nonzero(rectangle.any(0))[0]
    assert rectangle[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert rectangle.sum() == len(rows) * len(columns)

    page.choose("eraser")
    page.drag((0.2, 0.5), (0.7, 0.5))
    erased = page.mask() == 0
    assert (erased <= rectangle).all()
    assert 0.05 < 1 - erased.sum() / rectangle.sum() < 0.5

    page.choose("lasso")
    page.drag((0.7, 0.2), (0.8, 0.2), (0.8, 0.4))
    lasso = (page.mask() == 0) & ~erased
    box = np.ptp(np.nonzero(lasso.any(1))[0]) * np.ptp(np.nonzero(lasso.any(0))[0])
    assert 0.4 < lasso.sum() / box < 0.6  # a triangle

    before = page.mask() == 0
    page.tab.fill("#widen-by", "3")
    page.tab.click("#widen")
    reach = np.hypot(*np.mgrid[-3:4, -3:4]) <= 3
    padded = np.pad(before, 3)
    expected = np.zeros_like(before)
    for y, x in zip(*np.nonzero(reach)):
        expected |= padded[y : y + before.shape[0], x : x + before.shape[1]]
    assert np.array_equal(page.mask() == 0, expected)
    page.tab.click("#undo")
    assert np.array_equal(page.mask() == 0, before)

    page.tab.click("#clear")
    page.tab.locator("#stage").focus()
    page.tab.keyboard.press("Enter")
    page.complains("Nothing is painted")
    page.tab.click("#undo")
    assert np.array_equal(page.mask() == 0, before)


@pytest.mark.slow
def test_the_brush_is_as_large_as_its_size_at_any_zoom(visit):
    page = visit()
    page.open(CHELSEA)
    widths = []
    for key in ("0", "1"):
        page.tab.locator("#stage").focus()
        page.tab.keyboard.press(key)
        page.drag((0.5, 0.5), (0.5, 0.5))
        zoom = int(page.tab.inner_text("#zoom").rstrip(" %")) / 100
        widths.append((page.mask() == 0).any(0).sum() * zoom)
        page.tab.click("#clear")
    assert widths == pytest.approx([28, 28], abs=3)
    size = page.tab.input_value("#size")
    page.tab.keyboard.press("]")
    assert int(page.tab.input_value("#size")) > int(size)
    page.tab.keyboard.press("[")
    assert int(page.tab.input_value("#size")) <= int(size)


@pytest.mark.slow
def test_zoom_keeps_the_place_under_the_mouse_and_space_moves(visit):
    page = visit()
    page.open(CHELSEA)
    page.drag((0.4, 0.4), (0.4, 0.4))
    first = page.mask() == 0
    zoom = page.tab.inner_text("#zoom")
    page.tab.mouse.move(*page.point(0.4, 0.4))
    page.tab.mouse.wheel(0, -400)
    page.expect(page.tab.locator("#zoom")).not_to_have_text(zoom)
    assert int(page.tab.inner_text("#zoom").rstrip(" %")) > int(zoom.rstrip(" %"))
    page.tab.mouse.down()
    page.tab.mouse.up()
    assert ((page.mask() == 0) == first).all()  # a finer dot within the first
    page.tab.locator("#stage").focus()
    page.tab.keyboard.down(" ")
    page.drag((0.4, 0.4), (0.6, 0.6))
    page.tab.keyboard.up(" ")
    assert ((page.mask() == 0) == first).all()
    page.choose("eraser")
    page.tab.fill("#size", "200")
    page.drag((0.6, 0.6), (0.6, 0.6))  # the image under the mouse has moved with it
    page.tab.click("#save-mask")
    page.complains("there is no mask to save")


def test_masks_are_loaded_and_saved(tmp_path, visit):
    page = visit()
    page.open(CHELSEA)
    expected = np.asarray(Image.open(PROJECT / "docs/chelsea_mask.png").convert("L")) > 127
    page.tab.set_input_files("#mask-file", PROJECT / "docs/chelsea_mask.png")
    page.says("The hole is that of chelsea_mask.png")
    assert np.array_equal(page.mask() > 0, expected)
    Image.fromarray(~expected).save(tmp_path / "white.png")
    page.tab.select_option("#hole", "white")
    page.tab.click("#clear")
    page.tab.set_input_files("#mask-file", tmp_path / "white.png")
    page.says("The hole is that of white.png")
    assert np.array_equal(page.mask() > 0, expected)

    Image.new("L", (20, 15)).save(tmp_path / "small.png")
    page.tab.set_input_files("#mask-file", tmp_path / "small.png")
    page.complains("small.png")
    assert np.array_equal(page.mask() > 0, expected)


def jpeg_turned():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.open(CHELSEA).save(file, format="JPEG", exif=exif)
    return file.getvalue()


def in_format(kind, mode="RGB"):
    file = io.BytesIO()
    Image.open(CHELSEA).convert(mode).save(file, format=kind)
    return file.getvalue()


KINDS = {
    "turned.jpg": jpeg_turned,
    "cmyk.jpg": lambda: in_format("JPEG", "CMYK"),
    "picture.tif": lambda: in_format("TIFF"),
    "picture.webp": lambda: in_format("WEBP"),
    "alpha.png": lambda: encode_photo(Photo(noise(90, 120, 4)), ".png"),
    "16 bits, turned, alpha.png": lambda: encode_photo(Photo(noise(90, 120, 4, np.uint16), None, 6), ".png"),
}

QUICK_KIND = "16 bits, turned, alpha.png"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == QUICK_KIND else pytest.mark.slow) for name in KINDS]
)
def test_every_kind_of_picture(tmp_path, visit, name):
    image = KINDS[name]()
    page = visit()
    page.open({"name": name, "mimeType": "", "buffer": image})
    height, width = read_photo(Path(name), image).visible().shape
    page.says(f"{width}×{height} px")
    page.drag((0.45, 0.4), (0.55, 0.6))
    mask = page.saved("#save-mask")
    page.tab.locator("#stage").focus()
    page.fill()
    assert page.saved() == by_predict(tmp_path, image, mask)


def test_errors_stand_on_the_page_and_nothing_is_lost(visit):
    page = visit()
    page.open(CHELSEA)
    page.drag((0.3, 0.4), (0.5, 0.5))
    mask = page.mask()
    page.tab.on("dialog", lambda dialog: dialog.accept())
    page.tab.set_input_files("#file", {"name": "<b>x</b>.png", "mimeType": "", "buffer": b"no picture"})
    page.complains("not an image, or of a kind that Pillow can't read: <b>x<_b>.png")
    assert np.array_equal(page.mask(), mask)
    page.tab.get_by_role("button", name="Dismiss").click()
    page.expect(page.tab.locator("#error")).to_be_hidden()
    page.tab.select_option("#format", ".jpg")
    page.saved()
    page.says("Saved chelsea_inpainted.jpg")


def test_a_fill_is_cancelled(visit, halt):
    page = visit()
    page.open(CHELSEA)
    page.drag((0.3, 0.4), (0.5, 0.5))
    mask = page.mask()
    halt()
    page.tab.select_option("#method", "telea")
    page.tab.locator("#stage").focus()
    page.tab.keyboard.press("Enter")
    page.expect(page.tab.locator("#progress")).to_be_visible(timeout=PATIENCE)
    page.drag((0.3, 0.6), (0.5, 0.6))  # does not paint
    page.tab.click("#cancel")
    page.says("Cancelled. The hole is as you painted it.")
    page.expect(page.tab.locator("#progress")).to_be_hidden()
    assert np.array_equal(page.mask(), mask)
    page.tab.locator("#stage").focus()
    page.fill()  # by a new process


@pytest.mark.slow
def test_paste_and_drop(visit):
    page = visit()
    for name in ("paste", "drop"):
        page.tab.evaluate(
            """async ([name, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], `${name}.jpg`, { type: "image/jpeg" }));
                const options = { bubbles: true, cancelable: true };
                document.dispatchEvent(name === "paste"
                    ? new ClipboardEvent("paste", { ...options, clipboardData: data })
                    : new DragEvent("drop", { ...options, dataTransfer: data }));
            }""",
            [name, list(CHELSEA.read_bytes())],
        )
        page.expect(page.tab.locator("#name")).to_have_text(f"{name}.jpg", timeout=PATIENCE)


def test_a_phone(visit):
    page = visit(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.open(CHELSEA)
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 390
    stage = page.tab.locator("#stage").bounding_box()
    assert stage["height"] > 300
    assert stage["y"] + stage["height"] <= 780
    for id in ("#open", "#fill", "#save", "#undo"):
        box = page.tab.locator(id).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["height"] >= 30
    touch = page.tab.context.new_cdp_session(page.tab)

    def fingers(kind, *points):
        places = [page.point(*point) for point in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in places]})

    fingers("touchStart", (0.3, 0.5))
    for step in range(10):
        fingers("touchMove", (0.3 + 0.04 * step, 0.5))
    fingers("touchEnd")
    painted = page.mask()
    assert 0.005 < (painted == 0).mean() < 0.3
    zoom = page.tab.inner_text("#zoom")
    fingers("touchStart", (0.4, 0.5))
    fingers("touchStart", (0.4, 0.5), (0.6, 0.5))
    for step in range(10):
        fingers("touchMove", (0.4 - 0.03 * step, 0.5), (0.6 + 0.03 * step, 0.5))
    fingers("touchEnd")
    assert int(page.tab.inner_text("#zoom").rstrip(" %")) > 2 * int(zoom.rstrip(" %"))
    assert np.array_equal(page.mask(), painted)  # a pinch does not paint
    page.tab.click("#fill")
    page.says("Filled by")


@pytest.mark.slow
def test_twelve_megapixels_without_lag(tmp_path, visit):
    pixels = np.asarray(Image.open(CHELSEA).resize((4000, 3000)))
    Image.fromarray(pixels).save(tmp_path / "large.jpg")
    page = visit()
    page.open(tmp_path / "large.jpg")
    page.tab.evaluate(
        """() => {
            window.waits = [];
            let last = performance.now();
            const frame = (now) => { window.waits.push(now - last); last = now; requestAnimationFrame(frame); };
            requestAnimationFrame(frame);
        }"""
    )
    page.drag((0.3, 0.3), (0.6, 0.5), (0.4, 0.6), (0.5, 0.2))
    waits = sorted(page.tab.evaluate("window.waits"))
    assert waits[len(waits) // 2] < 100  # ms per frame, rendered in software on a busy machine
    mask = page.saved("#save-mask")
    page.tab.select_option("#method", "telea")
    page.tab.locator("#stage").focus()
    page.fill()
    result = read_photo(Path("result"), page.saved())
    valid = np.asarray(Image.open(io.BytesIO(mask))) > 0
    original = read_photo(tmp_path / "large.jpg")
    assert np.array_equal(result.pixels[valid], original.pixels[valid])
    assert (result.pixels[~valid] != original.pixels[~valid]).any()


@pytest.mark.slow
def test_names_focus_and_dark_mode(visit):
    page = visit(color_scheme="dark")
    page.open(CHELSEA)
    for control in page.tab.locator("button:visible, select:visible, input:visible").all():
        name = control.evaluate(
            "element => element.ariaLabel || element.labels?.[0]?.textContent || element.textContent"
        )
        assert name.strip(), control.evaluate("element => element.outerHTML")
    page.tab.locator("#open").focus()
    reached = []
    for _ in range(25):
        page.tab.keyboard.press("Tab")
        reached.append(page.tab.evaluate("document.activeElement.id || document.activeElement.name"))
    wanted = ["method", "fill", "save", "tool", "size", "clear", "compare", "zoom-in", "stage"]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places)
    dark = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    page.tab.emulate_media(color_scheme="light")
    assert page.tab.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def luminance(colour):
    """Return WCAG's relative luminance of #rrggbb."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_contrast_of_the_colours():
    style = (PROJECT / "app/style.css").read_text(encoding="utf-8")
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        pairs = [("text", "ground"), ("text", "surface"), ("quiet", "ground"), ("quiet", "surface")]
        pairs += [("quiet", "stage"), ("on-strong", "strong"), ("on-error", "error")]
        for front, back in pairs:
            light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)
