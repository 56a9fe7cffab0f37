"""The page in a browser, in the words of the person before it."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

PATIENCE = 120_000  # ms: the machine may be busy


class Page:
    """The page in a tab: the words of a person for it."""

    def __init__(self, tab, address):
        from playwright.sync_api import expect

        self.tab, self.expect, self.problems = tab, expect, []
        tab.set_default_timeout(PATIENCE)
        tab.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: self.problems.append(str(error)))
        tab.on("request", lambda request: self._check(request.url, address))
        tab.goto(address)
        expect(tab.locator("#method option")).not_to_have_count(0, timeout=PATIENCE)

    def _check(self, url, address):
        if not url.startswith((address, f"blob:{address}", "data:")):
            self.problems.append(f"a request to {url}")

    def says(self, text):
        self.expect(self.tab.locator("#status")).to_contain_text(text, timeout=PATIENCE)

    def complains(self, text):
        self.expect(self.tab.locator("#error")).to_contain_text(text, timeout=PATIENCE)

    def open(self, file, width=None):
        self.tab.set_input_files("#file", file)
        self.says("px. Paint over")

    def point(self, x, y):
        """The place in the window of a share of the stage's width and height."""
        box = self.tab.locator("#stage").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def drag(self, *points):
        mouse = self.tab.mouse
        mouse.move(*self.point(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.point(*point), steps=6)
        mouse.up()

    def choose(self, value):
        self.tab.locator(f"input[value={value}]").check(force=True)

    def fill(self):
        self.tab.keyboard.press("Enter")
        self.says("Filled by")

    def is_filled_again(self):
        self.tab.locator("#status").evaluate("element => { element.textContent = ''; }")
        self.fill()

    def saved(self, button="#save"):
        if button == "#save-mask":
            self.tab.locator("details").evaluate("element => { element.open = true; }")
        with self.tab.expect_download(timeout=PATIENCE) as download:
            self.tab.click(button)
        return Path(download.value.path()).read_bytes()

    def mask(self):
        """The painted mask, 1 = valid."""
        return np.asarray(Image.open(io.BytesIO(self.saved("#save-mask")))).astype(np.uint8)

    def pixels(self):
        """What the stage shows, uint8 (H,W,3), without the ring around it that tells where the keyboard is."""
        drawn = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.tab.evaluate(drawn)
        shot = Image.open(io.BytesIO(self.tab.locator("#stage").screenshot())).convert("RGB")
        return np.asarray(shot)[6:-6, 6:-6]


@contextlib.contextmanager
def visits(chromium, address):
    """A function that opens the page in a tab of its own. At the end there must have been no problem in any."""
    contexts, pages = [], []

    def open_page(**options):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1100, "height": 750}, **options}))
        pages.append(Page(contexts[-1].new_page(), address))
        return pages[-1]

    try:
        yield open_page
    finally:
        for context in contexts:
            context.close()
    assert [problem for page in pages for problem in page.problems] == []
