"""The serverless page: its build, and results equal to those of predict.py."""

import contextlib
import functools
import http.server
import io
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import build_site
import predict
from model.base import thin_plate
from model.network import PConvUNet
from model.site import facts_of
from tests.browser import visits
from tests.conftest import PROJECT
from utils.arguments import DEFAULT_WEIGHTS

CHELSEA = PROJECT / "docs/chelsea.jpg"
LARGEST = 26e6  # bytes of everything that a visitor loads
CLOSE = 2  # grey levels of difference to PyTorch: the weights are float16, and sums have another order


class Quiet(http.server.SimpleHTTPRequestHandler):
    headers_to_add: tuple[tuple[str, str], ...] = ()

    def log_message(self, *_):
        pass

    def end_headers(self):
        for header in self.headers_to_add:
            self.send_header(*header)
        super().end_headers()


class Isolating(Quiet):
    headers_to_add = (
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Embedder-Policy", "require-corp"),
    )


@contextlib.contextmanager
def static_host(folder, handler):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as host:
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        yield f"http://localhost:{host.server_port}/"
        host.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the page with the shipped weights."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (requirements-export.txt)")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("site") / "site"
    assert build_site.main(["--out", str(folder)]) == 0
    return folder


@pytest.fixture(params=[Quiet, Isolating], ids=["one thread", "threads"])
def visit(chromium, site, request):
    with static_host(site, request.param) as address, visits(chromium, address) as open_page:
        yield open_page


def picture(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def by_predict(folder, image, mask):
    """Return the result of predict.py in a single pass, as on the page."""
    arguments = ["--image", image, "--mask", mask, "--model", DEFAULT_WEIGHTS, "--output", folder / "expected.png"]
    assert predict.main([str(argument) for argument in [*arguments, "--scale", "1"]]) == 0
    return picture((folder / "expected.png").read_bytes())


@pytest.mark.slow
def test_what_a_visitor_loads(site):
    files = [path for path in site.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    assert {path.name for path in files} >= {"index.html", "network.onnx", "network.json", "worker.js"}
    facts = json.loads((site / "network.json").read_text())
    assert 0 < facts["multiple"] < facts["reach"]
    assert facts["base"] == "thin_plate"
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in page
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.slow
def test_open_load_fill_undo_save(tmp_path, visit):
    page = visit()
    page.open(CHELSEA)
    page.tab.set_input_files("#mask-file", PROJECT / "docs/chelsea_mask.png")
    page.says("The hole is that of chelsea_mask.png")
    valid = page.mask() > 0
    assert np.array_equal(valid, np.asarray(Image.open(PROJECT / "docs/chelsea_mask.png").convert("L")) > 127)
    page.tab.locator("#stage").focus()
    page.fill()
    result = picture(page.saved())
    expected = by_predict(tmp_path, CHELSEA, PROJECT / "docs/chelsea_mask.png")
    assert np.array_equal(result[valid], expected[valid])
    assert np.abs(result - expected).max() <= CLOSE
    page.tab.keyboard.press("Control+z")
    assert np.array_equal(picture(page.saved()), picture(CHELSEA.read_bytes()))
    page.tab.keyboard.press("Control+Shift+z")
    assert np.array_equal(picture(page.saved()), result)


@pytest.mark.slow
def test_paint_twice_in_a_large_picture(tmp_path, visit):
    """Only a part of a large image goes through the network; the result equals that of the full image."""
    Image.open(CHELSEA).resize((1353, 900)).save(tmp_path / "large.png")
    page = visit()
    page.open(tmp_path / "large.png")
    page.drag((0.7, 0.7), (0.75, 0.72))
    (tmp_path / "mask.png").write_bytes(page.saved("#save-mask"))
    page.tab.locator("#stage").focus()
    page.fill()
    result = page.saved()
    assert np.abs(picture(result) - by_predict(tmp_path, tmp_path / "large.png", tmp_path / "mask.png")).max() <= CLOSE

    (tmp_path / "result.png").write_bytes(result)
    page.drag((0.72, 0.72), (0.72, 0.6))  # uses the previous fill
    (tmp_path / "mask.png").write_bytes(page.saved("#save-mask"))
    page.tab.locator("#stage").focus()
    page.is_filled_again()
    expected = by_predict(tmp_path, tmp_path / "result.png", tmp_path / "mask.png")
    assert np.abs(picture(page.saved()) - expected).max() <= CLOSE


@pytest.mark.slow
def test_errors_and_alpha(tmp_path, chromium, site):
    pixels = np.full((40, 60, 4), 200, np.uint8)
    pixels[..., :3] = np.random.default_rng(0).integers(0, 256, (40, 60, 3))
    pixels[:, :20, 3] = 255
    pixels[:, 40:, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    with static_host(site, Quiet) as address, visits(chromium, address) as visit:
        page = visit()
        page.tab.set_input_files("#file", {"name": "x.tif", "mimeType": "", "buffer": b"no picture"})
        page.complains("not an image, or of a kind that this browser can't read: x.tif")
        page.open(tmp_path / "alpha.png")
        page.says("half-transparent")
        page.tab.set_input_files("#mask-file", PROJECT / "docs/chelsea_mask.png")
        page.complains("mask chelsea_mask.png is 451×300 px and image alpha.png is 60×40 px")
        page.drag((0.45, 0.4), (0.5, 0.6))
        page.tab.locator("#stage").focus()
        page.tab.context.set_offline(True)  # the network has not been loaded yet
        page.tab.keyboard.press("Enter")
        page.complains("the network can't be loaded: its host does not answer")
        page.problems.clear()  # the browser's own messages
        page.tab.context.set_offline(False)
        page.fill()
        result = np.asarray(Image.open(io.BytesIO(page.saved())))
        assert np.array_equal(result[..., 3], pixels[..., 3])


@pytest.mark.slow
def test_a_large_hole_in_a_larger_picture(tmp_path, chromium, site):
    """The base at its centre depends on pixels far outside the network's input."""
    Image.open(CHELSEA).resize((1353, 900)).save(tmp_path / "large.png")
    mask = np.full((900, 1353), 255, np.uint8)
    mask[:600, 650:1250] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with static_host(site, Isolating) as address, visits(chromium, address) as visit:
        page = visit()
        page.open(tmp_path / "large.png")
        page.tab.set_input_files("#mask-file", tmp_path / "mask.png")
        page.says("The hole is that of mask.png")
        page.tab.locator("#stage").focus()
        page.fill()
        result = picture(page.saved())
    expected = by_predict(tmp_path, tmp_path / "large.png", tmp_path / "mask.png")
    assert np.abs(result - expected).max() <= CLOSE


BASE = """async ([width, height, pixels, valid, region, facts]) => {
    const { baseOf, surroundings } = await import("./base.js");
    const each = ({ left, top, right, bottom }, use) => {
        for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) use(y * width + x);
    };
    const holdsValid = (box) => {
        let found = false;
        each(box, (i) => { found ||= valid[i] === 1; });
        return found;
    };
    const seen = surroundings({ width, height }, region, facts, holdsValid);
    const part = { width: seen.right - seen.left, height: seen.bottom - seen.top, pixels: [], valid: [] };
    each(seen, (i) => {
        part.valid.push(valid[i]);
        part.pixels.push(...pixels.slice(4 * i, 4 * i + 4));
    });
    const moved = {
        left: region.left - seen.left,
        top: region.top - seen.top,
        right: region.right - seen.left,
        bottom: region.bottom - seen.top,
    };
    return [part.width * part.height, [...baseOf(part, moved, facts)]];
}"""


@pytest.fixture(scope="module")
def static_tab(chromium, tmp_path_factory):
    """Return a tab of a host that serves only base.js."""
    folder = tmp_path_factory.mktemp("static")
    (folder / "index.html").write_text("<title>base</title>")
    shutil.copyfile(PROJECT / "static/base.js", folder / "base.js")
    with static_host(folder, Quiet) as address:
        tab = chromium.new_page()
        tab.goto(address)
        yield tab
        tab.close()


@pytest.mark.parametrize("base", ["push_pull", "thin_plate"])
@pytest.mark.parametrize(("holes", "sees_all"), [("a few", False), ("one large", True), ("nearly all", True)])
def test_its_base_is_that_of_the_whole_picture(static_tab, holes, sees_all, base):
    height, width, multiple = 190, 331, 8
    net = PConvUNet(3, 2, base)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (height, width, 4), np.uint8)
    valid = generator.random((height, width)) < 0.5
    if holes == "one large":
        valid[:, 30:325] = False
    if holes == "nearly all":
        valid[:] = False
        valid[80, 3] = True
    region = {"left": 264, "top": 136, "right": 336, "bottom": 192}  # multiples, so beyond the image
    pixels[~valid] = 77  # must not matter
    arguments = [width, height, pixels.ravel().tolist(), valid.astype(int).ravel().tolist(), region, facts_of(net)]
    seen, values = static_tab.evaluate(BASE, arguments)
    assert (seen == height * width) == sees_all
    image = torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1)[None] / 255
    mask = torch.from_numpy(valid)[None, None].float()
    padding = (0, -width % multiple, 0, -height % multiple)
    whole = thin_plate(F.pad(image, padding), F.pad(mask, padding), net.plate_levels)[0].permute(1, 2, 0).numpy()
    difference = np.array(values).reshape(192 - 136, 336 - 264, 3) - whole[136:192, 264:336]
    margin = 2 * multiple  # pixels closer to the region's sides are only context
    assert np.abs(difference[margin : height - 136, margin : width - 264]).max() < 1e-5


def fails(capsys, *arguments):
    assert build_site.main(list(map(str, arguments))) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_mistakes(tmp_path, capsys, monkeypatch):
    assert "no such file" in fails(capsys, "--model", tmp_path / "none.pt")
    (tmp_path / "letter.txt").write_text("keep me")
    assert "is neither empty nor a page" in fails(capsys, "--out", tmp_path)
    assert "must be a folder" in fails(capsys, "--out", tmp_path / "letter.txt")
    assert list(tmp_path.iterdir()) == [tmp_path / "letter.txt"]
    monkeypatch.setattr(build_site, "LIBRARY", Path("nowhere"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "npm, which fetches onnxruntime-web, is missing" in fails(capsys, "--out", tmp_path / "site")


def test_the_library_is_pinned():
    wanted = json.loads((PROJECT / "static/package.json").read_text())["dependencies"]
    locked = json.loads((PROJECT / "static/package-lock.json").read_text())["packages"]
    assert locked["node_modules/onnxruntime-web"]["version"] == wanted["onnxruntime-web"]
    assert all("integrity" in package for name, package in locked.items() if name)
