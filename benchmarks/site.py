"""The page without a server: time of a 512×512 px fill in a browser against PyTorch, and download size.

Run from the project's folder: python -m benchmarks.site. Needs Chromium, npm and requirements-dev.txt.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import build_site
from benchmarks.tables import Row, show
from data.holes import draw_mask
from data.mask_files import write_mask
from model import DEFAULT_WEIGHTS, inpaint, load_for_prediction

PROJECT = Path(__file__).resolve().parent.parent
SIZE = 512  # px
ROUNDS = 4
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


class Isolating(http.server.SimpleHTTPRequestHandler):
    """A static host with the headers that let WebAssembly use threads."""

    def log_message(self, *_: Any) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


def rows() -> Iterator[Row]:
    """Yield (what was measured, figure, target). The rivals alternate, and the minimum time of each counts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = folder / "site"
        if build_site.main(["--out", str(site)]):
            sys.exit(1)
        pixels = np.array(Image.open(PROJECT / "docs/chelsea.jpg").convert("RGB").resize((SIZE, SIZE)))
        mask = draw_mask(np.random.default_rng(0), SIZE, "contours", 0.3)
        Image.fromarray(pixels).save(folder / "image.png")
        write_mask(folder / "mask.png", mask)
        megabytes = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
        yield "page, library and network without a server", f"{megabytes:.1f} MB", "26"
        browser, torch_ = measure(site, folder, pixels, mask)
    yield "a fill of 512×512 px: browser / PyTorch", f"{browser / torch_:.1f}", "5"
    yield "a fill of 512×512 px: browser, PyTorch", f"{browser:.2f} s, {torch_:.2f} s", ""


def measure(site: Path, folder: Path, pixels: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Return the seconds of a fill in Chromium, including the page's own work, and of model.inpaint."""
    network = load_for_prediction(DEFAULT_WEIGHTS)
    image_tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    mask_tensor = torch.from_numpy(mask).float()[None, None]
    inpaint(network, image_tensor, mask_tensor, scale=1)  # a single pass, as on the page
    seconds: dict[str, list[float]] = {"browser": [], "torch": []}
    handler = functools.partial(Isolating, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as host, sync_playwright() as driver:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        tab = browser.new_page()
        tab.set_default_timeout(120_000)
        tab.goto(f"http://localhost:{host.server_port}/")
        tab.set_input_files("#file", folder / "image.png")
        expect(tab.locator("#save")).to_be_enabled(timeout=120_000)
        for number in range(ROUNDS + 1):
            tab.set_input_files("#mask-file", folder / "mask.png")
            expect(tab.locator("#status")).to_contain_text("The hole is that of", timeout=120_000)
            tab.click("#fill")
            expect(tab.locator("#status")).to_contain_text("Filled by", timeout=120_000)
            if number:  # the first one loads the network
                words = tab.locator("#status").inner_text().split(" in ")[1]
                seconds["browser"].append(float(words.split(" s ")[0]))
            tab.click("#undo")
            tab.click("#clear")
            began = time.perf_counter()
            inpaint(network, image_tensor, mask_tensor, scale=1)
            seconds["torch"].append(time.perf_counter() - began)
        browser.close()
        host.shutdown()
    return min(seconds["browser"]), min(seconds["torch"])


if __name__ == "__main__":
    show(rows())
