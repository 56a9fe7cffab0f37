"""What several test files share: a small run, a server of app.py, Debian's Chromium; and each test leaves the process
as it was.
"""

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

# One thread for each process, before torch is there: there are as many processes as cores, and runs that are compared
# bit for bit must sum in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.small_runs import arguments, make_data, run_main
from training.run_folder import RunFolder

# A shell ignores Ctrl-C for what it starts in the background, and so would all that is started here.
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
    """The current folder, and Pillow's limit, which the page's worker lowers."""
    folder, limit = os.getcwd(), Image.MAX_IMAGE_PIXELS
    yield
    os.chdir(folder)
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture(autouse=True, scope="module")
def limit_of_pillow_as_it_was():
    """The same around what a file's own fixtures do."""
    limit = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The data of small runs: nothing may change it."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def straight(folder, tmp_path_factory):
    """A small run that nothing interrupts, with a checkpoint of every step: nothing may change it."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "straight")
    run_main(*arguments(folder, run.path))
    return run


@contextlib.contextmanager
def running_app(*options, cwd=PROJECT, env=None, stderr=None):
    """app.py in a process of its own: yields (its address, the process)."""
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
    """Where the server of `app` would leave files."""
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="session")
def app_and_process(app_folder):
    """The address of a server with the shipped weights, and its process."""
    env = {"HOME": str(app_folder), "TMPDIR": str(app_folder), "PYTHONDONTWRITEBYTECODE": "1"}
    with running_app(cwd=app_folder, env=env) as address_and_process:
        yield address_and_process


@pytest.fixture(scope="session")
def app(app_and_process):
    return app_and_process[0]


@pytest.fixture
def halt(app_and_process):
    """A function that halts the process of `app` that fills: what it is asked then takes for ever."""

    def halt_it():
        threads = Path(f"/proc/{app_and_process[1].pid}/task").iterdir()
        children = [child for thread in threads for child in (thread / "children").read_text().split()]
        (filling,) = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(int(filling), signal.SIGSTOP)

    return halt_it


@pytest.fixture(scope="session")
def chromium():
    """A browser; the tests that need it are skipped where it or playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no Chromium; `apt-get install chromium` brings it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
