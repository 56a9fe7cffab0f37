"""Image files: decoding, preserved properties and encoding for many kinds of files."""

import io
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from data.images import exif_orientation, open_image, open_picture, to_8_bit, to_rgb, upright
from data.mask_files import read_mask, read_mask_alone, write_mask
from data.names import is_image_name, list_images
from data.photo import WHOLE as ALL
from data.photo import Photo, check_keeps, read_photo, write_photo
from utils.errors import UserError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = 0x0112


def noise(height, width, channels, dtype=np.uint8):
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def exif(orientation):
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


def png(pixels, colour, depth, *chunks):
    """Return a PNG made by hand. pixels: (H,W,C); colour: colour type; chunks: (kind, content) before the pixels."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1).view(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes())
    chunks = ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def read_part(path, choose, size):
    """Read the part of an image that `choose` returns for a width and height."""
    with open_picture(path) as picture:
        return picture.decode(choose(*picture.size), size)


def saved(image, path, **options):
    image.save(path, **options)
    return path


# --- supported files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "b/c.Png", "a.webp", "a.bmp", "a.tif", "a.b.TIFF", "日本.png"])
def test_named_as_an_image(name):
    assert is_image_name(name)


@pytest.mark.parametrize("name", ["a.txt", "jpg", "a.jpg.part", "._a.jpg", "b/.a.png", "a.png/b"])
def test_not_named_as_an_image(name):
    assert not is_image_name(name)


def test_images_of_a_folder_are_sorted_without_folders_and_subfolders(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", ".d.png", "sub/e.png", "f.png/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png"]
    with pytest.raises(UserError, match="no such folder"):
        list_images(tmp_path / "none")


# --- invalid files -----------------------------------------------------------------------------------------------


def test_each_bad_file_says_what_is_wrong_with_it(tmp_path, monkeypatch):
    whole = saved(Image.fromarray(noise(40, 40, 3)), tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    saved(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "float.tif")
    for name, reason in (
        ("missing.png", "no such file"),
        (".", "a folder"),
        ("empty.png", "not an image"),
        ("text.png", "not an image"),
        ("cut.jpg", "damaged image .*truncated"),
        ("float.tif", "floating-point"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            open_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="million pixels"):
        open_image(tmp_path / "whole.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    open_image(tmp_path / "whole.jpg")  # Pillow warns above half of its limit; that must not raise


# --- orientation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_pillow_turns_it(tmp_path, orientation, kind):
    path = saved(Image.fromarray(noise(5, 9, 3)), tmp_path / f"a.{kind}", exif=exif(orientation))
    image = open_image(path)
    assert exif_orientation(image) == orientation
    assert np.array_equal(upright(image), ImageOps.exif_transpose(image))


def test_orientation_by_hand():
    image = Image.fromarray(np.array([[1, 2, 3]], np.uint8))
    image.info["exif"] = exif(6).tobytes()  # 6: rotate right to see it upright; the left edge becomes the top
    assert np.asarray(upright(image)).tolist() == [[1], [2], [3]]
    image = Image.fromarray(np.array([[1, 2, 3]], np.uint8))
    image.info["exif"] = exif(8).tobytes()
    assert np.asarray(upright(image)).tolist() == [[3], [2], [1]]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0", b"Exif\0\0rubbish", exif(9).tobytes()])
def test_damaged_exif_counts_as_upright(tmp_path, block, kind):
    path = saved(Image.fromarray(noise(5, 9, 3)), tmp_path / f"a.{kind}", exif=block)
    assert to_rgb(open_image(path)).size == (9, 5)
    assert read_photo(path).orientation == 1


def test_orientation_beside_a_damaged_tag(tmp_path):
    block = exif(6)
    block[0x011A] = 72.0  # a resolution; as a float it is invalid for the image width, whose tag it has
    data = block.tobytes().replace(b"\x01\x1a", b"\x01\x00")
    path = saved(Image.fromarray(noise(5, 9, 3)), tmp_path / "a.png", exif=data)
    assert to_rgb(open_image(path)).size == (5, 9)
    assert read_photo(path).orientation == 6


# --- to RGB ------------------------------------------------------------------------------------------------------


def test_16_bits_to_8_by_hand():
    image = Image.fromarray(np.array([[0, 128, 129, 257, 32767, 32768, 65535]], np.uint16))
    assert np.asarray(to_8_bit(image)).tolist() == [[0, 0, 1, 1, 127, 128, 255]]


def palette_image():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[False, True]])), [[0, 0, 0], [255, 255, 255]]),
        (Image.fromarray(np.array([[7, 9]], np.uint8)), [[7, 7, 7], [9, 9, 9]]),
        (Image.fromarray(np.array([[[7, 0], [9, 255]]], np.uint8)), [[7, 7, 7], [9, 9, 9]]),
        (Image.fromarray(np.array([[[7, 8, 9, 0], [1, 2, 3, 4]]], np.uint8)), [[7, 8, 9], [1, 2, 3]]),
        (Image.fromarray(np.array([[257, 65535]], np.uint16)), [[1, 1, 1], [255, 255, 255]]),
        (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), [[255, 0, 0], [255, 0, 0]]),
        (palette_image(), [[10, 20, 30], [200, 100, 50]]),
    ],
    ids=["1", "L", "LA", "RGBA", "I;16", "CMYK", "P"],
)
def test_any_kind_becomes_rgb(image, expected):
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert np.asarray(rgb).tolist() == [expected]


# --- a part of an image ------------------------------------------------------------------------------------------

WHOLE = 10**6  # larger than any part, so that nothing is decoded at a reduced size


def gradient(width, height, mode="RGB"):
    """Return an image whose colours change slowly, so that it looks the same at any scale."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], 2).astype(np.uint8)).convert(mode)


def stored_as(kind, mode, orientation, path):
    image = gradient(70, 50).quantize(64) if mode == "P" else gradient(70, 50, mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(gradient(70, 50, "L")).astype(np.uint16) * 257)
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    return saved(image, path, format=kind, exif=exif(orientation), **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("PNG", mode) for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "I;16")),
        *(("TIFF", mode) for mode in ("RGB", "CMYK")),
        ("WEBP", "RGBA"),
    ],
)
def test_a_part_is_what_it_is_of_the_whole_image(tmp_path, kind, mode, orientation):
    path = stored_as(kind, mode, orientation, tmp_path / "a")
    whole = to_rgb(open_image(path))
    for box in ((3, 5, 20, 41), (0, 0, *whole.size), (whole.width - 1, whole.height - 1, *whole.size)):
        asked = []
        part = read_part(path, lambda *size: asked.append(size) or box, WHOLE)  # noqa: B023
        assert asked == [whole.size]
        assert part.dtype == np.uint8
        assert np.array_equal(part, whole.crop(box))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [True, False])
def test_a_large_part_of_a_jpeg_is_decoded_coarsely(tmp_path, mode, progressive, orientation):
    options = {"quality": 95, "progressive": progressive, "exif": exif(orientation)}
    path = saved(gradient(801, 603, mode), tmp_path / "a.jpg", **options)
    whole = to_rgb(open_image(path))
    box = (83, 64, 83 + 400, 64 + 480)
    for size, divisor in ((400, 1), (201, 1), (200, 2), (101, 2), (100, 4), (51, 4), (50, 8), (1, 8)):
        part = read_part(path, lambda *_: box, size)
        assert part.shape == (480 // divisor, 400 // divisor, 3)
        wanted = whole.resize((400 // divisor, 480 // divisor), Image.Resampling.BOX, box)
        assert abs(part - np.asarray(wanted).astype(int)).max() < 8  # half a pixel of the reduced image is 3


def test_a_broken_jpeg_is_what_pillow_says_it_is(tmp_path):
    """OpenCV decodes upright JPEGs but does not report what is wrong."""
    whole = saved(gradient(80, 60), tmp_path / "a.jpg").read_bytes()
    for end in (len(whole) // 2, len(whole) - 2):
        (tmp_path / "a.jpg").write_bytes(whole[:end])
        said = []
        for read in (open_image, lambda path: read_part(path, lambda *size: (0, 0, *size), WHOLE)):
            with pytest.raises(UserError, match="damaged image") as caught:
                read(tmp_path / "a.jpg")
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_rounding_costs_a_part_no_pixel(tmp_path):
    path = saved(gradient(60, 60), tmp_path / "a.jpg")
    for divisor in (2, 4, 8):
        for left in range(16):
            part = read_part(path, lambda *_: (left, 0, left + 5 * divisor, 5 * divisor), 5)  # noqa: B023
            assert part.shape == (5, 5, 3)


def test_a_png_is_never_decoded_coarsely(tmp_path):
    path = saved(gradient(200, 100), tmp_path / "a.jpg", format="PNG")
    assert read_part(path, lambda *size: (0, 0, *size), 5).shape == (100, 200, 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), width=st.integers(1, 150), height=st.integers(1, 150), orientation=st.integers(1, 8))
def test_a_part_keeps_as_many_pixels_as_are_needed(tmp_path, data, width, height, orientation):
    path = saved(gradient(width, height), tmp_path / "a.jpg", exif=exif(orientation))
    box = ()

    def choose(width, height):
        nonlocal box
        left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        box = left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
        return box

    size = data.draw(st.integers(1, 40))
    part = read_part(path, choose, size)
    across, down = box[2] - box[0], box[3] - box[1]
    assert part.shape[0] >= min(size, down)
    assert part.shape[1] >= min(size, across)
    assert part.shape[0] < down / 8 + 2 or min(part.shape[:2]) < 2 * size + 2


def test_of_a_jpeg_with_further_pictures_the_first_is_read(tmp_path):
    path = saved(gradient(400, 300), tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[gradient(40, 30)])
    assert open_image(path).format == "MPO"
    part = read_part(path, lambda *size: (0, 0, *size), 75)
    wanted = np.asarray(gradient(400, 300).resize((100, 75), Image.Resampling.BOX)).astype(int)
    assert part.shape == (75, 100, 3)
    assert abs(part - wanted).max() < 6


def lossless_jpeg(pixels):
    """Return grey (H,W) as a lossless JPEG: differences to the left pixel (in the first column, to the one above)."""

    def segment(marker, content):
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    values = pixels.astype(int)
    before = np.roll(values, 1, 1)
    before[1:, 0], before[0, 0] = values[:-1, 0], 128
    bits = ""
    for difference in (values - before).ravel().tolist():
        length = abs(difference).bit_length()
        number = difference if difference > 0 else difference + (1 << length) - 1
        bits += f"{length:04b}" + (f"{number:0{length}b}" if length else "")
    bits += "1" * (-len(bits) % 8)
    head = segment(0xC3, struct.pack(">BHHB", 8, *pixels.shape, 1) + b"\x01\x11\0")
    codes = segment(0xC4, bytes([0, 0, 0, 0, 9, *[0] * 12]) + bytes(range(9)))  # nine code lengths, four bits each
    scan = segment(0xDA, b"\x01\x01\0\x01\0\0")
    data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + head + codes + scan + data + b"\xff\xd9"


def test_a_lossless_jpeg_is_read_whole(tmp_path):
    """It cannot be decoded at a reduced size. Pillow would try, and write out of bounds."""
    pixels = np.asarray(gradient(90, 60, "L"))
    (tmp_path / "a.jpg").write_bytes(lossless_jpeg(pixels))
    part = read_part(tmp_path / "a.jpg", lambda *size: (0, 0, *size), 5)
    assert np.array_equal(part, np.stack([pixels] * 3, 2))


@pytest.mark.parametrize("progressive", [True, False])
def test_a_coarsely_decoded_jpeg_is_broken_where_the_whole_is(tmp_path, progressive):
    image = Image.fromarray(noise(64, 72, 3))
    data = saved(image, tmp_path / "whole.jpg", progressive=progressive).read_bytes()
    path = tmp_path / "cut.jpg"
    broken = 0
    for length in [*range(1, len(data), 61), *range(len(data) - 20, len(data) + 1)]:
        path.write_bytes(data[:length])
        messages = []
        for read in (open_image, lambda path: read_part(path, lambda *size: (0, 0, *size), 8)):
            try:
                read(path)
                messages.append("")
            except UserError as error:
                messages.append(re.sub(r"\d+ bytes", "bytes", str(error)))
        assert messages[0] == messages[1]
        broken += bool(messages[0])
    assert broken > len(data) // 61


# --- photographs as stored ---------------------------------------------------------------------------------------


def tagged_rgb(path):
    path.write_bytes(png(np.array([[[1, 2, 3], [4, 5, 6]]]), 2, 8, (b"tRNS", struct.pack(">HHH", 4, 5, 6))))


def tagged_grey_16(path):
    path.write_bytes(png(np.array([[[700], [9]]]), 0, 16, (b"tRNS", struct.pack(">H", 700))))


PIXELS = {  # file name: (constructor, pixels as stored)
    "1.png": (lambda path: Image.fromarray(np.array([[False, True]])).save(path), [[[0], [255]]]),
    "l.png": (lambda path: Image.fromarray(np.array([[7, 9]], np.uint8)).save(path), [[[7], [9]]]),
    "la.png": (lambda path: Image.fromarray(np.array([[[7, 0], [9, 255]]], np.uint8)).save(path), [[[7, 0], [9, 255]]]),
    "rgba.png": (
        lambda path: Image.fromarray(np.array([[[7, 8, 9, 0], [1, 2, 3, 4]]], np.uint8)).save(path),
        [[[7, 8, 9, 0], [1, 2, 3, 4]]],
    ),
    "p.png": (lambda path: palette_image().save(path), [[[10, 20, 30], [200, 100, 50]]]),
    "p_one_transparent.png": (
        lambda path: palette_image().save(path, transparency=1),
        [[[10, 20, 30, 255], [200, 100, 50, 0]]],
    ),
    "p_alphas.png": (
        lambda path: palette_image().save(path, transparency=b"\x80\x07"),
        [[[10, 20, 30, 128], [200, 100, 50, 7]]],
    ),
    "rgb_trns.png": (tagged_rgb, [[[1, 2, 3, 255], [4, 5, 6, 0]]]),
    "grey_16_trns.png": (tagged_grey_16, [[[700, 0], [9, 65535]]]),
    "l_trns.png": (
        lambda path: path.write_bytes(png(np.array([[[7], [9]]]), 0, 8, (b"tRNS", b"\0\x09"))),
        [[[7, 255], [9, 0]]],
    ),
    "cmyk.tif": (lambda path: Image.new("CMYK", (2, 1), (0, 255, 255, 0)).save(path), [[[255, 0, 0]] * 2]),
    "grey_16.tif": (lambda path: Image.fromarray(np.array([[7, 65535]], np.uint16)).save(path), [[[7], [65535]]]),
    "rgb.bmp": (lambda path: Image.new("RGB", (2, 1), (1, 2, 3)).save(path), [[[1, 2, 3]] * 2]),
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_as_stored(tmp_path, name):
    make, expected = PIXELS[name]
    make(tmp_path / name)
    assert read_photo(tmp_path / name).pixels.tolist() == expected


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_16_bit_png_as_stored(tmp_path, colour, channels):
    pixels = noise(5, 7, channels, np.uint16)
    (tmp_path / "a.png").write_bytes(png(pixels, colour, 16, (b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))))
    photo = read_photo(tmp_path / "a.png")
    assert photo.pixels.dtype == np.uint16
    assert np.array_equal(photo.pixels, pixels)
    assert photo.orientation == 6


def test_more_bits_than_can_be_kept(tmp_path):
    Image.fromarray(np.array([[70000]], np.int32)).save(tmp_path / "grey.tif")
    cv2.imwrite(str(tmp_path / "colour.tif"), noise(4, 4, 3, np.uint16))
    with pytest.raises(UserError, match="whose range is unknown"):
        read_photo(tmp_path / "grey.tif")
    with pytest.raises(UserError, match="more than 8 bits"):
        read_photo(tmp_path / "colour.tif")


def test_profile_of_cmyk_goes_and_others_stay(tmp_path):
    for mode, kept in (("CMYK", None), ("RGB", SRGB), ("L", SRGB)):
        path = saved(Image.new(mode, (4, 4)), tmp_path / "a.jpg", icc_profile=SRGB)
        assert read_photo(path).icc_profile == kept


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_rgb_by_hand(dtype, channels):
    white = np.iinfo(dtype).max
    pixels = np.array([[[0] * channels, [white] * channels]], dtype)
    rgb = Photo(pixels).rgb()
    assert rgb.dtype == np.float32
    assert rgb.tolist() == [[[0, 0, 0], [1, 1, 1]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shown_as_upright_and_filled_where_shown(tmp_path, orientation):
    pixels = noise(4, 6, 4)
    path = saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif(orientation))
    photo = read_photo(path)
    assert np.array_equal(photo.pixels, pixels)  # as stored
    assert np.array_equal(photo.rgb() * 255, to_rgb(open_image(path)))  # as shown
    assert np.array_equal(photo.visible(), np.asarray(upright(open_image(path)))[..., 3] > 0)

    mask = np.ones(photo.rgb().shape[:2], np.uint8)
    mask[0, 1] = 0
    colour = np.full((*mask.shape, 3), np.float32(0.2))
    write_photo(photo.filled([(ALL, colour)], mask), tmp_path / "b.png")
    before, after = (np.array(upright(open_image(file))) for file in (path, tmp_path / "b.png"))
    assert after[0, 1].tolist() == [51, 51, 51, before[0, 1, 3]]
    after[0, 1] = before[0, 1]
    assert np.array_equal(after, before)
    assert np.array_equal(photo.pixels, pixels)  # the photograph itself is unchanged


def test_fill_is_rounded_to_the_nearest_level():
    rgb = np.array([[[0.001, 0.003, 0.9985]]], np.float32)  # times 255: 0.26, 0.77, 254.6
    assert Photo(np.ones((1, 1, 3), np.uint8)).filled([(ALL, rgb)], np.zeros((1, 1))).pixels.tolist() == [[[0, 1, 255]]]


def test_grey_is_filled_with_luma():
    photo = Photo(np.zeros((1, 1, 1), np.uint8))
    assert (
        photo.filled([(ALL, np.array([[[1.0, 0, 0]]], np.float32))], np.zeros((1, 1))).pixels.item() == 76
    )  # 0.299 · 255


# --- encoding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".png", np.uint8), (".png", np.uint16), (".TIF", np.uint8), (".webp", np.uint8)]
)
def test_what_is_written_is_read_again(tmp_path, suffix, dtype, channels):
    # WebP has no greyscale: a grey image becomes RGB, so its profile can't stay.
    profile = None if suffix == ".webp" and channels < 3 else SRGB
    photo = Photo(noise(5, 9, channels, dtype), profile, 6)
    path = tmp_path / "new folder" / f"a{suffix}"
    write_photo(photo, path)
    again = read_photo(path)
    assert again.icc_profile == photo.icc_profile
    if suffix == ".TIF":  # Pillow applies a TIFF's orientation on read
        again = Photo(np.rot90(again.pixels), orientation=6)
    assert again.orientation == 6
    assert again.pixels.dtype == dtype
    assert np.array_equal(again.rgb(), photo.rgb())
    assert np.array_equal(again.pixels[..., -1], photo.pixels[..., -1])
    assert [item.name for item in path.parent.iterdir()] == [path.name]  # no temporary file is left


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_png_is_what_opencv_reads(tmp_path, channels):
    photo = Photo(noise(5, 9, channels, np.uint16), SRGB, 3)
    write_photo(photo, tmp_path / "a.png")
    blue_first = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(blue_first[..., [2, 1, 0, 3][:channels]], photo.pixels)


def test_of_exif_orientation_alone_is_written(tmp_path):
    block = exif(3)
    block[0x010F] = "maker"
    path = saved(Image.fromarray(noise(5, 9, 3)), tmp_path / "a.jpg", exif=block)
    write_photo(read_photo(path), tmp_path / "b.png")
    assert dict(open_image(tmp_path / "b.png").getexif()) == {ORIENTATION: 3}


@pytest.mark.parametrize(
    ("name", "photo", "lost"),
    [
        ("a.jpg", Photo(np.zeros((1, 1, 4), np.uint8)), "alpha"),
        ("a.webp", Photo(np.zeros((1, 1, 1), np.uint8), b"profile"), "profile"),
        ("a.tif", Photo(np.zeros((1, 1, 3), np.uint16)), "16 bits"),
    ],
)
def test_what_a_format_cannot_keep_is_refused(tmp_path, name, photo, lost):
    for refuse in (lambda: check_keeps(tmp_path / name, photo), lambda: write_photo(photo, tmp_path / name)):
        with pytest.raises(UserError, match=f"the image has .*{lost}"):
            refuse()
    check_keeps(tmp_path / "a.png", photo)


def test_what_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        write_photo(Photo(np.zeros((1, 1, 3), np.uint8)), tmp_path / "file" / "a.png")
    with pytest.raises(UserError, match=r"can't be written.*16383"):
        write_photo(Photo(np.zeros((1, 20000, 3), np.uint8)), tmp_path / "a.webp")


# --- masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", ["black", "white"])
def test_masks_are_cut_at_half(tmp_path, hole):
    pixels = np.array([[0, 31, 32, 127, 128, 223, 224, 255] + 40 * [0] + 52 * [255]], np.uint8)
    path = saved(Image.fromarray(pixels), tmp_path / "a.png")
    white = [[0, 0, 0, 0, 1, 1, 1, 1] + 40 * [0] + 52 * [1]]
    mask, between, by_alpha = read_mask(path, hole)
    assert mask.dtype == np.uint8
    assert mask.tolist() == (white if hole == "black" else (1 - np.array(white)).tolist())
    assert np.array_equal(read_mask_alone(path, hole), mask)
    assert between == 4 / 100
    assert not by_alpha


@pytest.mark.parametrize("hole", ["black", "white"])
@pytest.mark.parametrize("size", [(1, 1), (3, 8), (7, 9), (33, 64), (5, 1)])
def test_a_written_mask_is_read_back(tmp_path, hole, size):
    mask = np.random.default_rng(0).integers(0, 2, size).astype(np.uint8)
    write_mask(tmp_path / "a.png", mask)
    with_pillow, between, _ = read_mask(tmp_path / "a.png", hole)
    assert np.array_equal(with_pillow, mask if hole == "black" else 1 - mask)
    assert between == 0
    alone = read_mask_alone(tmp_path / "a.png", hole)
    assert alone.dtype == np.uint8
    assert np.array_equal(alone, with_pillow)


def own_png(rows, width, height, kind=(1, 0, 0, 0, 0), data=None):
    data = zlib.compress(np.asarray(rows, np.uint8).tobytes()) if data is None else data
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, *kind)), (b"IDAT", data), (b"IEND", b"")]
    body = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


ROWS = [[2, 0b10110000], [2, 0b01000000]]  # the first row, and the difference of the second to it


def test_a_mask_like_our_own(tmp_path):
    (tmp_path / "a.png").write_bytes(own_png(ROWS, 4, 2))
    assert read_mask_alone(tmp_path / "a.png", "black").tolist() == [[1, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    "file",
    [
        own_png([[0, 0b10110000], [2, 0b01000000]], 4, 2),  # another filter
        own_png([[4, 0b10110000], [1, 0b01000000]], 4, 2),
        own_png([[2, 1, 2, 3, 4], [2, 1, 1, 1, 1]], 4, 2, (8, 0, 0, 0, 0)),  # 8-bit grey
        own_png(ROWS, 4, 2) + b"behind the end",
        own_png(ROWS, 4, 2).replace(b"IEND", b"IENE"),
        own_png(ROWS, 4, 2)[:-20],
        own_png(ROWS, 4, 2).replace(b"IDAT", b"IDAX"),
        own_png(ROWS, 4, 3),  # a missing row
        own_png([*ROWS, [2, 0]], 4, 2),  # an extra row
        own_png(ROWS, 4, 2, data=b"no zlib"),
        own_png(ROWS, 4, 2, data=zlib.compress(bytes(4))[:-3]),
        own_png(ROWS, 0, 2),
        own_png(ROWS, 2**31, 2),
        b"",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_any_other_file_is_read_as_pillow_reads_it(tmp_path, file):
    (tmp_path / "a.png").write_bytes(file)
    results = []
    for read in (lambda path: read_mask(path, "black")[0], lambda path: read_mask_alone(path, "black")):
        try:
            results.append(read(tmp_path / "a.png").tolist())
        except UserError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_a_mask_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_mask_alone(tmp_path / "a.png", "black")


# --- any bytes give an image or a UserError ----------------------------------------------------------------------


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


SEEDS = [
    encoded(Image.fromarray(noise(6, 5, 3)), "JPEG"),
    encoded(Image.fromarray(noise(6, 5, 3)), "JPEG", exif=exif(6), icc_profile=SRGB),
    encoded(Image.fromarray(noise(6, 5, 4)), "PNG", exif=exif(8)),
    encoded(palette_image(), "PNG", transparency=1),
    encoded(palette_image(), "GIF"),
    encoded(Image.fromarray(noise(6, 5, 2)), "TIFF", compression="tiff_deflate"),
    encoded(Image.fromarray(noise(6, 5, 3)), "WEBP", exif=exif(3)),
    encoded(Image.fromarray(noise(6, 5, 3)), "BMP"),
    png(noise(6, 5, 3, np.uint16), 2, 16, (b"tRNS", b"\0\1\0\2\0\3")),
    png(noise(6, 5, 2, np.uint16), 4, 16),
]


@st.composite
def damaged_files(draw):
    """An image file with a few bytes changed and perhaps truncated, or random bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, min(len(data), 400) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(1, len(data)))]) if draw(st.booleans()) else bytes(data)


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=damaged_files())
def test_any_file_is_an_image_or_a_user_error(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    errors = []
    for read in (
        read_photo,
        lambda path: to_rgb(open_image(path)),
        lambda path: read_part(path, lambda *size: (0, 0, *size), 1),
        lambda path: read_part(path, lambda *size: (0, 0, *size), WHOLE),
        lambda path: read_mask(path, "black"),
    ):
        try:
            read(path)
        except UserError as error:
            errors.append(str(error))
    assert "\n" not in "".join(errors)
    assert path.read_bytes() == data
