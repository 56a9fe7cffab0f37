"""The app's server: results, access checks, faults."""

import http.client
import io
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import app as script
import predict
from data.mask_files import write_mask
from data.photo import read_photo
from evaluation.baselines import FILLS
from serving import server
from serving.desk import Desk
from serving.message import MalformedMessage, pack, unpack
from serving.worker import answer
from tests.conftest import PROJECT, running_app
from tests.test_predict import KINDS, network, noise, save, save_mask
from utils.checkpoint import save_weights

CHELSEA = (PROJECT / "docs/chelsea.jpg").read_bytes()
CHELSEA_MASK = (PROJECT / "docs/chelsea_mask.png").read_bytes()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_weights(path, network().state_dict())
    return path


@pytest.fixture(scope="module")
def desk(weights):
    return Desk({"tiny": weights}, "cpu")


@pytest.fixture
def by_predict(tmp_path, weights):
    """Return a function from the bytes of an image and a mask to what predict.py writes for them."""

    def repair(image, mask, suffix=".png"):
        (tmp_path / "image.bin").write_bytes(image)
        (tmp_path / "mask.bin").write_bytes(mask)
        output = tmp_path / f"out{suffix}"
        arguments = ["--image", "image.bin", "--mask", "mask.bin", "--model", weights, "--output", output]
        assert predict.main([str(tmp_path / word if str(word).endswith(".bin") else word) for word in arguments]) == 0
        return output.read_bytes()

    return repair


def ask(desk, task, files, name="photo.png", **header):
    """Return header and files of the desk's answer. Fails if it is an error."""
    header, parts = unpack(answer(desk, pack({"task": task, "name": name, **header}, files)))
    assert "error" not in header, header
    return header, parts


def fill(desk, image, masks, method="tiny"):
    """Fill one mask after another. Returns the edits and their places, as the page stores them."""
    edits, places = [], []
    for mask in masks:
        header, parts = ask(desk, "fill", [image, mask, *edits], mask="mask.png", method=method, places=places)
        edits += parts
        places = [*places, [header["left"], header["top"]]]
    return edits, places


def saved(desk, image, edits, places, suffix=".png"):
    _, (file,) = ask(desk, "save", [image, *edits], format=suffix, places=places)
    return file


# --- results -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_saved_file_is_that_of_predict(tmp_path, desk, by_predict, name):
    image, options, _ = KINDS[name]
    image.save(tmp_path / name, **options)
    save_mask(tmp_path / "mask.png", 20, 15)
    image, mask = (tmp_path / name).read_bytes(), (tmp_path / "mask.png").read_bytes()
    result = saved(desk, image, *fill(desk, image, [mask]))
    assert result == by_predict(image, mask)
    assert result != saved(desk, image, [], [])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_turned_with_16_bits_and_alpha(tmp_path, desk, by_predict, orientation, channels):
    from data.photo import Photo, encode_photo

    image = encode_photo(Photo(noise(12, 20, channels, np.uint16), None, orientation), ".png")
    shown = (20, 12) if orientation >= 5 else (12, 20)
    save_mask(tmp_path / "mask.png", *shown, hole=(slice(1, 4), slice(2, 7)))
    mask = (tmp_path / "mask.png").read_bytes()
    header, (view,) = ask(desk, "open", [image])
    assert (header["height"], header["width"]) == shown
    assert Image.open(io.BytesIO(view)).size == shown[::-1]
    assert saved(desk, image, *fill(desk, image, [mask])) == by_predict(image, mask)


def test_fill_after_fill_is_predict_after_predict(tmp_path, desk, by_predict):
    masks = []
    for top, left in ((20, 30), (22, 10), (60, 33)):
        save_mask(tmp_path / "mask.png", 300, 451, (slice(top, top + 30), slice(left, left + 30)))
        masks.append((tmp_path / "mask.png").read_bytes())
    expected = CHELSEA
    for mask in masks:
        expected = by_predict(expected, mask)
    edits, places = fill(desk, CHELSEA, masks)
    assert saved(desk, CHELSEA, edits, places) == expected
    assert saved(desk, CHELSEA, edits[:1], places[:1]) == by_predict(CHELSEA, masks[0])


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".jpg"])
def test_other_formats(desk, by_predict, suffix):
    result = saved(desk, CHELSEA, *fill(desk, CHELSEA, [CHELSEA_MASK]), suffix)
    assert result == by_predict(CHELSEA, CHELSEA_MASK, suffix)


def test_nothing_filled_nothing_changed(desk):
    photo = read_photo(Path("photo"), saved(desk, CHELSEA, [], []))
    assert np.array_equal(photo.pixels, read_photo(Path("photo"), CHELSEA).pixels)


@pytest.mark.parametrize("method", ["telea", "navier-stokes", "biharmonic", "mean"])
def test_classical_methods_near_the_hole_as_in_the_whole_picture(tmp_path, desk, method):
    from evaluation.baselines import FILLS

    save_mask(tmp_path / "mask.png", 300, 451, (slice(100, 112), slice(200, 213)))
    mask = (tmp_path / "mask.png").read_bytes()
    result = read_photo(Path("result"), saved(desk, CHELSEA, *fill(desk, CHELSEA, [mask], method))).rgb()
    image = read_photo(Path("image"), CHELSEA).rgb()
    valid = np.asarray(Image.open(io.BytesIO(mask))) > 0
    expected = np.where(valid[..., None], image, FILLS[method](image, valid.astype(np.uint8)))
    assert np.abs(result - expected).max() < 0.5 / 255 + 1e-5
    assert (result != image).any()


@pytest.mark.parametrize("colour", ["black", "white"])
def test_a_mask_file_of_either_colour(tmp_path, desk, colour):
    valid = np.random.default_rng(0).random((300, 451)) > 0.3
    write_mask(tmp_path / "mask.png", valid if colour == "black" else ~valid)
    files = [CHELSEA, (tmp_path / "mask.png").read_bytes()]
    _, (bits,) = ask(desk, "mask", files, mask="mask.png", hole=colour)
    holes = np.unpackbits(np.frombuffer(bits, np.uint8).reshape(300, -1), axis=1, count=451)
    assert np.array_equal(holes, ~valid)


def error_of(desk, task, files, **header):
    return unpack(answer(desk, pack({"task": task, "name": "photo.png", **header}, files)))[0].get("error")


def test_errors_are_those_of_predict(tmp_path, desk, capsys):
    save_mask(tmp_path / "small.png", 20, 15)
    small = (tmp_path / "small.png").read_bytes()
    painted = {"mask": "mask.png", "method": "tiny", "places": []}
    assert "not an image" in error_of(desk, "open", [b"GIF"])
    assert "not an image" in error_of(desk, "open", [b""])
    assert "damaged image photo.png" in error_of(desk, "open", [CHELSEA[:9000]])
    assert "mask.png is 15×20 px and image photo.png is 451×300 px" in error_of(
        desk, "fill", [CHELSEA, small], **painted
    )
    for grey, words in ((255, "nothing is painted"), (0, "all of the picture is painted")):
        mask = save_bytes(np.full((300, 451), grey, np.uint8))
        assert words in error_of(desk, "fill", [CHELSEA, mask], **painted)
        file = {"mask": "mask.png", "hole": "black"}
        assert ("has no black pixel", "is all hole")[grey == 0] in error_of(desk, "mask", [CHELSEA, mask], **file)
    assert "16 bits" in error_of(desk, "save", [save_bytes(noise(9, 9, 1, np.uint16))], format=".jpg", places=[])
    assert "earlier fill does not fit" in error_of(desk, "save", [CHELSEA, small], format=".png", places=[[0, 0]])
    edits, _ = fill(desk, CHELSEA, [CHELSEA_MASK])
    assert "earlier fill does not fit" in error_of(desk, "save", [CHELSEA, *edits], format=".png", places=[[300, 0]])


def save_bytes(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def test_hints_reach_the_page(tmp_path, desk):
    valid = np.zeros((300, 451), bool)
    valid[:40] = True
    write_mask(tmp_path / "mask.png", valid)
    files = [CHELSEA, (tmp_path / "mask.png").read_bytes()]
    header, _ = ask(desk, "mask", files, mask="mask.png", hole="black")
    assert any("hint: 87 % of mask mask.png is hole" in note for note in header["notes"])


def test_pillows_warning_of_a_large_picture_does_not(monkeypatch, desk):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    assert ask(desk, "open", [CHELSEA])[0]["notes"] == []


@pytest.mark.parametrize(
    "header",
    [
        {"task": "open", "name": ""},
        {"task": "open", "name": 7},
        {"task": "open", "name": "x" * 1000},
        {"task": "fill", "name": "a", "mask": "b", "method": "unknown", "places": []},
        {"task": "fill", "name": "a", "mask": "b", "method": ["tiny"], "places": []},
        {"task": "fill", "name": "a", "mask": "b", "method": "tiny", "places": [[0]]},
        {"task": "fill", "name": "a", "mask": "b", "method": "tiny", "places": [[0, -1]]},
        {"task": "save", "name": "a", "format": "/etc/passwd", "places": []},
        {"task": "save", "name": "a", "format": ".png", "places": [[True, 0]]},
        {"task": "__init__", "name": "a"},
        {"task": {}, "name": "a"},
        {},
    ],
)
def test_headers_that_the_page_never_sends(desk, header):
    message = unpack(answer(desk, pack(header, [CHELSEA])))[0]["error"]
    assert message.startswith("malformed request")


def test_a_name_is_only_a_name(desk):
    name = f"{PROJECT}/docs/chelsea.jpg\n\x1b[31m"  # a file that exists
    header, _ = unpack(answer(desk, pack({"task": "open", "name": name}, [b"no picture"])))
    assert "not an image" in header["error"]
    assert "/" not in header["error"]
    assert header["error"].isprintable()


def test_messages_survive_the_way(desk):
    parts = [b"", b"abc", bytes(1000)]
    assert unpack(pack({"a": "ü"}, parts)) == ({"a": "ü"}, parts)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        b"\0\0\0\2{}",
        b"\0\0\0\2[]",
        b"\xff\xff\xff\xff{}",
        b'\0\0\0\x0d{"parts":[1]}',
        b'\0\0\0\x0e{"parts":[-1]}',
        b'\0\0\0\x10{"parts":[true]}a',
        b'\0\0\0\x0f{"parts":[1e9]}',
        b'\0\0\0\x0c{"parts":{}}',
        b"\0\0\0\x04\xff\xfe\xfd\xfc",
        b"\0\0\x4e\x20" + b"[" * 20000,
    ],
)
def test_malformed_messages(message):
    with pytest.raises(MalformedMessage):
        unpack(message)


def bomb():
    """Return a PNG of a few hundred bytes that claims to be 20,000×20,000 px."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))


# --- the server: access checks -----------------------------------------------------------------------------------


def request(address, method="GET", path="/", body=None, headers=None):
    """Send a request unchanged, with Host as the only added header. Returns (status, headers, body)."""
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    headers = {"Host": url.netloc, **(headers or {})}
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def post(address, message, **headers):
    return request(address, "POST", "/task", message, {"Content-Type": server.MEDIA_TYPE, **headers})


def open_request():
    return pack({"task": "open", "name": "chelsea.jpg"}, [CHELSEA])


def works(address):
    status, _, body = post(address, open_request())
    return status == 200 and unpack(body)[0]["width"] == 451


def test_page_and_headers(app):
    status, headers, body = request(app)
    policy = headers["Content-Security-Policy"]
    assert status == 200
    assert b"<title>" in body
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert works(app)
    assert unpack(post(app, open_request())[2])[1] == []  # browsers can show a JPEG


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:7860"},
        {"Host": "localhost.evil.example"},
        {"Host": "192.0.2.7"},
        {"Host": ""},
        {"Host": "["},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://localhost"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_foreign_requests_are_refused(app, headers):
    assert post(app, open_request(), **headers)[0] == 403
    assert headers.keys() <= {"Sec-Fetch-Site"} or request(app, headers=headers)[0] == 403


def test_its_own_page_is_not_refused(app):
    port = urlsplit(app).port
    for host in ("localhost", "127.0.0.1"):
        own = {"Host": f"{host}:{port}", "Origin": f"http://{host}:{port}", "Sec-Fetch-Site": "same-origin"}
        assert post(app, open_request(), **own)[0] == 200


def test_which_hosts_are_ours():
    loopback, everywhere = server.our_hosts("127.0.0.1"), server.our_hosts("0.0.0.0")
    assert loopback("localhost")
    assert loopback("::1")
    assert not loopback("192.0.2.7")
    assert everywhere("192.0.2.7")
    assert everywhere("2001:db8::1")
    assert everywhere(socket.gethostname().lower())
    assert not everywhere("evil.example")


def test_forms_cannot_post(app):
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        assert request(app, "POST", "/task", open_request(), {"Content-Type": kind})[0] == 415
    assert request(app, "GET", "/task")[0] in (404, 405)


@pytest.mark.parametrize("path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd", "/x"])
def test_files_of_the_page_alone(app, path):
    status, _, body = request(app, path=path)
    assert status in (400, 404)
    assert b"import" not in body


# --- the server: faults ------------------------------------------------------------------------------------------


def raw(address, data, wait=0.5):
    url = urlsplit(address)
    with socket.create_connection((url.hostname, url.port), timeout=wait) as connection:
        try:
            connection.sendall(data)
            return connection.recv(65536)
        except OSError:
            return b""


def test_two_hundred_malformed_requests(app):
    good = (
        f"POST /task HTTP/1.1\r\nHost: {urlsplit(app).netloc}\r\nContent-Type: {server.MEDIA_TYPE}\r\n"
        f"Content-Length: {len(open_request())}\r\nConnection: close\r\n\r\n"
    ).encode() + open_request()

    def malformed(number):
        generator = random.Random(number)
        data = bytearray(good)
        if number % 4 == 0:  # random bytes
            return generator.randbytes(generator.randrange(1, 3000))
        if number % 4 == 1:  # truncated
            return data[: generator.randrange(len(data))]
        head = good.index(b"\r\n\r\n")
        start, end = (0, head) if number % 4 == 2 else (head + 4, len(data))
        for _ in range(20):
            data[generator.randrange(start, end)] ^= 1 << generator.randrange(8)
        return data

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: raw(app, bytes(malformed(number))), range(200)))
    assert not any(b" 500 " in head[:40] for head in answers)
    assert sum(head.startswith(b"HTTP/1.1 ") for head in answers) > 50
    assert works(app)


def test_twenty_at_once_and_each_gets_its_own(app):
    def at_once(number):
        pixels = np.full((50 + number, 60, 3), number, np.uint8)
        status, _, body = post(app, pack({"task": "open", "name": "a.png"}, [save_bytes(pixels)]))
        return status, unpack(body)[0]["height"]

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(at_once, range(20))) == [(200, 50 + number) for number in range(20)]


def test_a_client_that_goes_away_ends_its_fill(app, halt):
    url = urlsplit(app)
    message = open_request()
    head = (
        f"POST /task HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: {server.MEDIA_TYPE}\r\n"
        f"Content-Length: {len(message)}\r\n\r\n"
    ).encode()
    halt()
    with ThreadPoolExecutor(1) as pool:
        for part in (head + message, head + message[:5000]):  # during the work, and during the transfer of the body
            with socket.create_connection((url.hostname, url.port)) as connection:
                connection.sendall(part)
                time.sleep(0.5)
                next_one = pool.submit(works, app)  # waits, then a new process answers it
                time.sleep(0.5)
            assert next_one.result()


def test_a_bomb_is_refused(app):
    status, _, body = post(app, pack({"task": "open", "name": "bomb.png"}, [bomb()]))
    assert status == 200
    assert "over 120 million pixels" in unpack(body)[0]["error"]
    assert works(app)


def test_too_large_too_many_too_slow(monkeypatch):
    """The server's limits, reduced, with a worker that does not answer until it is released."""
    monkeypatch.setattr(server, "LARGEST_BODY", 1000)
    monkeypatch.setattr(server, "MOST_WAITING", 3)
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    may_answer = threading.Event()
    with thread_server(StubWorker(may_answer)) as address:
        assert post(address, bytes(1001))[0] == 413
        chunked = {"Transfer-Encoding": "chunked", "Content-Type": server.MEDIA_TYPE}
        assert b" 413 " in raw(address, head_of(address, chunked) + b"800\r\n" + bytes(0x800) + b"\r\n", 5)[:30]
        late = {"Content-Length": "900", "Content-Type": server.MEDIA_TYPE}
        assert b" 408 " in raw(address, head_of(address, late) + b"abc", 5)[:30]
        with ThreadPoolExecutor(5) as pool:
            statuses = [pool.submit(lambda: post(address, b"x")[0]) for _ in range(5)]
            time.sleep(0.5)
            may_answer.set()
            assert sorted(status.result() for status in statuses) == [200, 200, 200, 503, 503]
        assert post(address, b"x")[0] == 200


def head_of(address, headers):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /task HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\n{lines}\r\n".encode()


class StubWorker:
    def __init__(self, may_answer):
        self.may_answer = may_answer
        self.offers = {}

    async def ask(self, request):
        import asyncio

        while not self.may_answer.is_set():
            await asyncio.sleep(0.01)
        return pack({})

    def stop(self):
        pass


class thread_server:
    """Run the web application in a thread."""

    def __init__(self, worker):
        import uvicorn

        self.listening = script.listen("127.0.0.1", 0)
        application = server.make_server(worker, server.our_hosts("127.0.0.1"))
        self.server = uvicorn.Server(uvicorn.Config(application, log_level="warning", lifespan="off", ws="none"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})

    def __enter__(self):
        self.thread.start()
        return f"http://localhost:{self.listening.getsockname()[1]}"

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()
        self.listening.close()


# --- app.py ------------------------------------------------------------------------------------------------------


def test_nothing_is_kept_on_disk(app, app_folder):
    header = {"task": "fill", "name": "a.jpg", "mask": "m.png", "method": "mean", "places": []}
    body = post(app, pack(header, [CHELSEA, CHELSEA_MASK]))[2]
    assert "error" not in unpack(body)[0]
    assert [path for path in app_folder.rglob("*") if path.is_file()] == []  # home and temporary folder


@pytest.mark.slow
def test_ctrl_c_ends_it_and_its_process(tmp_path, weights):
    with (
        open(tmp_path / "said.txt", "w") as said,
        running_app("--model", f"mine={weights}", stderr=said) as (address, process),
    ):
        offers = json.loads(request(address, path="/methods")[2])
        assert offers["methods"] == ["mine", *FILLS]
        header = {"task": "fill", "name": "a.jpg", "mask": "m.png", "method": "mine", "places": []}
        assert "error" not in unpack(post(address, pack(header, [CHELSEA, CHELSEA_MASK]))[2])[0]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
    assert process.returncode == 0
    deadline = time.monotonic() + 20  # multiprocessing's resource tracker ends a moment later
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (tmp_path / "said.txt").read_text() == ""


@pytest.mark.slow
def test_a_model_that_is_none(tmp_path, capsys):
    save(tmp_path / "picture.png", noise(4, 4, 3))
    assert "picture.png" in fails(capsys, "--model", tmp_path / "picture.png", "--port", 0)


def fails(capsys, *arguments):
    assert script.main(["--no-browser", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_mistakes_in_the_arguments(capsys, weights):
    assert "no such file: nowhere.pt" in fails(capsys, "--model", "nowhere.pt")
    assert "two methods are called" in fails(capsys, "--model", weights, "--model", weights)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in fails(capsys, "--model", weights, "--port", taken.getsockname()[1])
    with pytest.raises(SystemExit):
        script.main(["--port", "99999"])
    assert "'99999' must be a whole number" in capsys.readouterr().err


def test_missing_packages_are_named(tmp_path):
    code = "import sys; sys.modules['uvicorn'] = None; import app; sys.exit(app.main(['--no-browser']))"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "requirements-app.txt" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_listening_to_others_is_warned_of(capsys, monkeypatch, weights, host, warned):
    import uvicorn

    monkeypatch.setattr(server, "Worker", lambda settings: StubWorker(None))
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    assert script.main(["--no-browser", "--host", host, "--port", "0", "--model", str(weights)]) == 0
    assert ("lets everyone" in capsys.readouterr().err) == warned
