"""Shared fixtures: a small run, a server of app.py, Debian's Chromium. Process state is restored after each test."""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

# One thread per process, set before torch is imported: tests run in one process per core, and runs that are compared
# bit for bit must sum in the same order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.small_runs import arguments, make_data, run_main
from training.run_folder import RunFolder

# A shell lets background jobs ignore SIGINT, and processes started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parent.parent
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Restore the current folder, and Pillow's limit, which the page's worker lowers."""
    folder, limit = os.getcwd(), Image.MAX_IMAGE_PIXELS
    yield
    os.chdir(folder)
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture(autouse=True, scope="module")
def limit_of_pillow_as_it_was():
    """Restore Pillow's limit after the fixtures of a test file too."""
    limit = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The data of small runs. Read-only."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def straight(folder, tmp_path_factory):
    """An uninterrupted small run with a checkpoint of every step. Read-only."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "straight")
    run_main(*arguments(folder, run.path))
    return run


@contextlib.contextmanager
def running_app(*options, cwd=PROJECT, env=None, stderr=None):
    """Run app.py in a separate process. Yields (address, process)."""
    pytest.importorskip("starlette", reason="starlette is not installed (requirements-app.txt)")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (requirements-app.txt)")
    command = [sys.executable, PROJECT / "app.py", "--no-browser", "--port", "0", *options]
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    lines = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()
    try:
        yield lines.get(timeout=120).split()[0], process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def app_folder(tmp_path_factory):
    """The current, home and temporary folder of the server of `app`."""
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="session")
def app_and_process(app_folder):
    """Address and process of a server with the shipped weights."""
    env = {"HOME": str(app_folder), "TMPDIR": str(app_folder), "PYTHONDONTWRITEBYTECODE": "1"}
    with running_app(cwd=app_folder, env=env) as address_and_process:
        yield address_and_process


@pytest.fixture(scope="session")
def app(app_and_process):
    return app_and_process[0]


@pytest.fixture
def halt(app_and_process):
    """A function that suspends the worker process of `app`, so that its requests never finish."""

    def halt_it():
        threads = Path(f"/proc/{app_and_process[1].pid}/task").iterdir()
        children = [child for thread in threads for child in (thread / "children").read_text().split()]
        (filling,) = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(int(filling), signal.SIGSTOP)

    return halt_it


@pytest.fixture(scope="session")
def chromium():
    """A browser. Tests that need it are skipped if it or playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no Chromium; `apt-get install chromium` brings it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
