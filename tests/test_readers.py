"""All readers of image files agree with each other and with the pixels that were written, for a table of formats.

The readers are those of training (a crop), --check-data and validation (the full image), predict.py, evaluate.py
and masks. The reference is the stored pixels, oriented with numpy.
"""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.faults import read_picture
from data.images import open_picture
from data.mask_files import read_mask, read_mask_alone, write_mask
from data.photo import read_photo
from evaluation.pairing import read_pair
from utils.errors import UserError

HEIGHT, WIDTH = 20, 33  # px as stored
ORIENTATION = 274  # tag of TIFF and EXIF

# Map pixels as stored to pixels as shown, by EXIF orientation.
SHOW = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def noise(channels, dtype=np.uint8):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, channels), dtype, endpoint=True)
    return pixels[..., 0] if channels == 1 else pixels


def as_rgb(pixels):
    """Return uint8 (H,W,3) from grey or RGB pixels (H,W) or (H,W,C) with 8 or 16 bits. Alpha is dropped."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    colour = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]
    white = np.iinfo(pixels.dtype).max
    return np.rint(np.broadcast_to(colour, (*pixels.shape[:2], 3)).astype(np.float64) / white * 255)


READERS = {
    "training": lambda path: in_training(path),
    "check-data": lambda path: np.asarray(read_picture(path)),
    "predict": lambda path: read_photo(path).rgb() * 255,
    "evaluate": lambda path: evaluated(path) * 255,
}


def in_training(path):
    """Decode the complete image with the decoder of training samples."""
    with open_picture(path) as picture:
        return picture.decode((0, 0, *picture.size), 10**6)


def evaluated(path):
    """Return the image as evaluate.py reads it, with a mask of the same size."""
    with Image.open(path) as image:  # read_pair resizes to the mask's size
        image.load()
        size = image.size
    for height, width in {size[::-1], size}:
        mask = np.ones((height, width), np.uint8)
        mask[3:6] = 0
        write_mask(path.with_name("mask.png"), mask)
        pixels, _ = read_pair(str(path), path.with_name("mask.png"), "black", None)
        if np.array_equal(pixels.shape[:2], np.asarray(read_picture(path)).shape[:2]):
            return pixels
    raise AssertionError("evaluate.py reads it in another size")


def check_agreement(path, truth, tolerance=1.0):
    """Check that each reader returns the reference, float (H,W,3) from 0 to 255."""
    for name, read in READERS.items():
        pixels = read(path)
        assert pixels.shape == truth.shape, name
        assert np.abs(np.asarray(pixels, np.float64) - truth).max() <= tolerance, name


def check_refusal(path, reason):
    readers = [*READERS.values(), lambda path: read_mask(path, "black")]
    for read in readers:
        with pytest.raises(UserError, match=reason):
            read(path)


# --- TIFF: pixel type, bits, photometric interpretation, orientation, compression, frames -------------------------


def tiff(path, pixels, orientation=1, frames=1, byteorder="<", **options):
    """Write a TIFF with tifffile, independent of Pillow. Pages after the first are black."""
    with tifffile.TiffWriter(path, byteorder=byteorder) as file:
        for frame in range(frames):
            page = pixels if frame == 0 else np.zeros_like(pixels)
            file.write(page, extratags=[(ORIENTATION, "H", 1, orientation, True)], metadata=None, **options)
    return path


GREY_16, PLANES = noise(1, np.uint16), noise(3).transpose(2, 0, 1).copy()
PALETTE = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16) * 257

TIFFS = {  # pixels as stored, tifffile's options, expected pixels
    "grey": (noise(1), {"photometric": "minisblack"}, as_rgb(noise(1))),
    "grey, white is 0": (noise(1), {"photometric": "miniswhite"}, 255 - as_rgb(noise(1))),
    "16 bits": (GREY_16, {"photometric": "minisblack"}, as_rgb(GREY_16)),
    "16 bits, big-endian": (GREY_16, {"photometric": "minisblack", "byteorder": ">"}, as_rgb(GREY_16)),
    "16 bits, white is 0": (GREY_16, {"photometric": "miniswhite"}, 255 - as_rgb(GREY_16)),
    "grey and alpha": (noise(2), {"photometric": "minisblack", "extrasamples": ["unassalpha"]}, as_rgb(noise(2))),
    "RGB": (noise(3), {"photometric": "rgb"}, as_rgb(noise(3))),
    "RGB in planes": (PLANES, {"photometric": "rgb", "planarconfig": "separate"}, as_rgb(noise(3))),
    "RGB and alpha": (noise(4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, as_rgb(noise(4))),
    "palette": (noise(1), {"photometric": "palette", "colormap": PALETTE}, (PALETTE >> 8).T[noise(1)] * 1.0),
    "CMYK": (noise(4), {"photometric": "separated"}, np.array(Image.fromarray(noise(4), "CMYK").convert("RGB")) * 1.0),
}


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("orientation", SHOW)
@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_is_what_numpy_turns(tmp_path, kind, orientation, compression):
    pixels, options, shown = TIFFS[kind]
    frames = 1 + orientation % 2
    path = tiff(tmp_path / "a.tif", pixels, orientation, frames, compression=compression, **options)
    check_agreement(path, SHOW[orientation](shown))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("orientation", SHOW)
def test_masks_are_turned_too(tmp_path, orientation, compression):
    stored = noise(1) // 128 * 255
    path = tiff(tmp_path / "a.tif", stored, orientation, compression=compression, photometric="minisblack")
    wanted = SHOW[orientation](stored) > 0
    assert np.array_equal(read_mask(path, "black")[0], wanted)
    assert np.array_equal(read_mask_alone(path, "black"), wanted)


@pytest.mark.parametrize("compression", [None, "raw", "tiff_lzw", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_tiff_of_pillow(tmp_path, mode, orientation, compression):
    image = Image.fromarray(noise(4), "RGBA").convert(mode)
    image.save(tmp_path / "a.tif", compression=compression, tiffinfo={ORIENTATION: orientation})
    check_agreement(tmp_path / "a.tif", SHOW[orientation](np.asarray(image.convert("RGB"), np.float64)))


def test_twelve_bits_are_scaled_by_their_own_white(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (HEIGHT, 2 * WIDTH))
    high, low = values[:, ::2], values[:, 1::2]
    rows = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=-1).astype(np.uint8).tobytes()
    entries = {256: 2 * WIDTH, 257: HEIGHT, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: HEIGHT, 279: len(rows)}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    (tmp_path / "a.tif").write_bytes((b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4)) + rows)
    check_agreement(tmp_path / "a.tif", np.repeat(values[..., None] / 4095 * 255, 3, axis=2))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32])
def test_pixels_without_a_known_range_are_broken_for_all(tmp_path, dtype):
    pixels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(dtype) % 256
    check_refusal(tiff(tmp_path / "a.tif", pixels, photometric="minisblack"), "whose range is unknown|not an image")
