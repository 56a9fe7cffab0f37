"""What a photograph keeps in a repair: depth, colours, resolution; and what is refused rather than lost."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from data.names import OUTPUT_FORMATS
from data.photo import read_photo, write_photo
from utils.errors import UserError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DEEP = np.random.default_rng(0).integers(0, 65536, (64, 80, 3), np.uint16)
PIXELS = (DEEP >> 8).astype(np.uint8)


# --- depth -------------------------------------------------------------------------------------------------------


def ppm(largest):
    pixels = (DEEP >> 16 - largest.bit_length()).astype(">u2" if largest > 255 else np.uint8)
    return b"P6\n# 80 64 255 is no header\n80 64\n%d\n" % largest + pixels.tobytes()


def sgi(bytes_a_channel):
    head = struct.pack(">HBBHHHH", 474, 0, bytes_a_channel, 3, 80, 64, 3) + bytes(500)
    pixels = DEEP if bytes_a_channel == 2 else PIXELS
    return head + pixels[::-1].transpose(2, 0, 1).astype(f">u{bytes_a_channel}").tobytes()


def by_cv2(kind, pixels, *options):
    return cv2.imencode(kind, np.ascontiguousarray(pixels[..., ::-1]), options)[1].tobytes()


EXACT = (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000)

FILES = {  # an 8-bit file and one with more bits
    "ppm": (ppm(255), ppm(65535)),
    "10.ppm": (ppm(255), ppm(1023)),
    "sgi": (sgi(1), sgi(2)),
    "jp2": (by_cv2(".jp2", PIXELS, *EXACT), by_cv2(".jp2", DEEP, *EXACT)),
    "tif": (by_cv2(".tif", PIXELS), by_cv2(".tif", DEEP)),
}


@pytest.mark.parametrize("name", FILES)
def test_more_than_8_bits_are_refused_where_pillow_would_drop_them(tmp_path, name):
    for data, deep in zip(FILES[name], (False, True), strict=True):
        path = tmp_path / f"a.{name}"
        path.write_bytes(data)
        if deep:
            with pytest.raises(UserError, match="more than 8 bits"):
                read_photo(path)
        else:
            assert np.abs(read_photo(path).pixels.astype(int) - PIXELS).max() <= (40 if "jp2" in name else 0)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_more_than_8_bits_of_an_avif_are_refused(tmp_path, bits):
    try:
        data = by_cv2(".avif", DEEP >> 16 - bits if bits > 8 else PIXELS, cv2.IMWRITE_AVIF_DEPTH, bits)
    except (cv2.error, AttributeError):
        pytest.skip("this OpenCV writes no AVIF")
    (tmp_path / "a.avif").write_bytes(data)
    if bits > 8:
        with pytest.raises(UserError, match="more than 8 bits"):
            read_photo(tmp_path / "a.avif")
    else:
        assert read_photo(tmp_path / "a.avif").pixels.shape == PIXELS.shape


@pytest.mark.parametrize("kind", ["png", "tif", "jp2", "pgm"])
def test_16_bits_of_grey_are_kept(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    options = EXACT if kind == "jp2" else ()
    path.write_bytes(cv2.imencode(f".{kind}", DEEP[..., 0], options)[1].tobytes())
    photo = read_photo(path)
    assert photo.pixels.dtype == np.uint16
    assert np.abs(photo.pixels[..., 0].astype(int) - DEEP[..., 0]).max() <= (300 if kind == "jp2" else 0)
    write_photo(photo, tmp_path / "b.png")
    assert np.array_equal(read_photo(tmp_path / "b.png").pixels, photo.pixels)


# --- colours and resolution ----------------------------------------------------------------------------------------


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels, *chunks, **options):
    file = io.BytesIO()
    if pixels.dtype == np.uint16:
        data = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))[1].tobytes()
    else:
        Image.fromarray(pixels).save(file, "PNG", **options)
        data = file.getvalue()
    return data[:33] + b"".join(chunk(*part) for part in chunks) + data[33:]


CHUNKS = {
    "cICP": (b"cICP", bytes([9, 16, 0, 1])),  # BT.2020, PQ
    "cLLI": (b"cLLI", struct.pack(">II", 10_000_000, 4_000_000)),
    "gAMA": (b"gAMA", struct.pack(">I", 100000)),
    "cHRM": (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),  # Display P3
    "sRGB": (b"sRGB", b"\0"),
    "pHYs": (b"pHYs", struct.pack(">IIB", 11811, 5906, 1)),
    "pHYs without a unit": (b"pHYs", struct.pack(">IIB", 2, 1, 0)),
}


@pytest.mark.parametrize("pixels", [PIXELS, DEEP, np.dstack([PIXELS, PIXELS[..., :1]])], ids=["8 bits", "16", "alpha"])
@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_of_a_png_come_back(tmp_path, name, pixels):
    (tmp_path / "a.png").write_bytes(png(pixels, CHUNKS[name]))
    photo = read_photo(tmp_path / "a.png")
    write_photo(photo, tmp_path / "b.png")
    data = (tmp_path / "b.png").read_bytes()
    assert data.count(chunk(*CHUNKS[name])) == 1
    assert data.find(CHUNKS[name][0]) < data.find(b"IDAT")
    assert np.array_equal(read_photo(tmp_path / "b.png").pixels, photo.pixels)


@pytest.mark.parametrize("name", ["cICP", "gAMA", "cHRM"])
def test_colours_that_only_png_can_describe_go_nowhere_else(tmp_path, name):
    (tmp_path / "a.png").write_bytes(png(PIXELS, CHUNKS[name]))
    for suffix in OUTPUT_FORMATS:
        if suffix != ".png":
            with pytest.raises(UserError, match=name):
                write_photo(read_photo(tmp_path / "a.png"), tmp_path / f"b{suffix}")


def test_plain_srgb_may_become_any_kind(tmp_path):
    usual = [CHUNKS["sRGB"], (b"gAMA", struct.pack(">I", 45455))]
    (tmp_path / "a.png").write_bytes(png(PIXELS, *usual))
    (tmp_path / "b.png").write_bytes(png(PIXELS, (b"gAMA", struct.pack(">I", 50000)), icc_profile=SRGB))
    for suffix in OUTPUT_FORMATS:
        for name in ("a", "b"):
            write_photo(read_photo(tmp_path / f"{name}.png"), tmp_path / f"out{suffix}")


@pytest.mark.parametrize("suffix", OUTPUT_FORMATS)
@pytest.mark.parametrize("source", ["jpg", "png", "tif", "bmp", "webp"])
def test_resolution_comes_back_in_every_kind(tmp_path, source, suffix):
    options = {"dpi": (300, 150)}
    if source == "webp":
        exif = Image.Exif()
        exif[0x011A], exif[0x011B], exif[0x0128] = 300.0, 150.0, 2
        options = {"exif": exif}
    Image.fromarray(PIXELS).save(tmp_path / f"a.{source}", **options)
    write_photo(read_photo(tmp_path / f"a.{source}"), tmp_path / f"b{suffix}")
    assert read_photo(tmp_path / f"b{suffix}").dpi == pytest.approx((300, 150), abs=0.02)
    Image.fromarray(PIXELS).save(tmp_path / f"none.{source}")
    write_photo(read_photo(tmp_path / f"none.{source}"), tmp_path / f"c{suffix}")
    if source != "bmp":  # for BMP, Pillow writes its own value
        assert read_photo(tmp_path / f"c{suffix}").dpi is None
