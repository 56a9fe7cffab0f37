"""Draw docs/app.png anew, the page with a painted hole: python -m tests.screenshot docs/app.png"""

import io
import shutil
import sys

from PIL import Image
from playwright.sync_api import sync_playwright
from skimage import data

from tests.browser import visits
from tests.conftest import CHROMIUM_FLAGS, running_app

SIZE = {"width": 1120, "height": 680}  # px


def main(path):
    photograph = io.BytesIO()
    Image.fromarray(data.rocket()).save(photograph, format="PNG")
    with running_app() as (address, _), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        with visits(browser, address) as visit:
            page = visit(viewport=SIZE)
            page.open({"name": "rocket.png", "mimeType": "", "buffer": photograph.getvalue()})
            page.tab.fill("#size", "46")
            page.drag((0.502, 0.32), (0.502, 0.88))
            page.pixels()  # all is drawn then
            shot = Image.open(io.BytesIO(page.tab.screenshot())).convert("RGB")
        browser.close()
    shot.quantize(256).save(path, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    main(*sys.argv[1:])
