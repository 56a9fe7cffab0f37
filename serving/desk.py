"""The tasks that the page requests: open a photograph, read a mask, fill a hole, save."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from data.mask_files import hole_ratio, read_mask
from data.names import OUTPUT_FORMATS
from data.photo import Photo, check_keeps, encode_photo, read_photo
from repair import check_size, fill_photo, read_checked_mask
from serving.edits import apply_edits, edit_of
from serving.message import MalformedMessage
from serving.methods import load_methods
from utils.errors import UserError

Header = Mapping[str, Any]
Answer = tuple[dict[str, Any], list[bytes]]

LONGEST_NAME = 255  # characters
_LARGEST_PLACE = 2**20  # px
MOST_EDITS = 500

# Pillow warns above this, and refuses images of more than twice as many pixels.
_MANY_PIXELS = 60 * 10**6

# Formats and modes, in Pillow's terms, that every browser shows with the colours of Photo.rgb().
_SHOWN_BY_BROWSERS = ("JPEG", "PNG", "WEBP"), ("L", "LA", "P", "RGB", "RGBA")


class Desk:
    """Handlers, one method per task: each maps a request's header and files to the answer's header and files.

    The first file of a request is always the photograph. Handlers raise UserError for what the user can fix, and
    MalformedMessage for requests that the page never sends.
    """

    def __init__(self, models: Mapping[str, Path], device: str) -> None:
        Image.MAX_IMAGE_PIXELS = _MANY_PIXELS
        self.methods = load_methods(models, device)
        self.formats = tuple(suffix for suffix in OUTPUT_FORMATS if suffix not in (".tiff", ".jpeg"))

    def open(self, header: Header, files: list[bytes]) -> Answer:
        """Return the size as shown and, if browsers may show the file differently or not at all, a PNG of it."""
        (data,) = _counted(files, 1)
        photo = read_photo(_name(header, "name"), data)
        height, width = photo.visible().shape
        return {"width": width, "height": height}, [] if _browsers_show(data, photo) else [_view(photo)]

    def mask(self, header: Header, files: list[bytes]) -> Answer:
        """Return the hole of a mask file as bits, 1 = hole, each row padded to full bytes."""
        data, mask = _counted(files, 2)
        hole = _one_of(header, "hole", ("black", "white"))
        valid = read_checked_mask(_name(header, "mask"), hole, mask)
        photo = read_photo(_name(header, "name"), data)
        check_size(valid, _name(header, "mask"), photo, _name(header, "name"))
        return {}, [np.packbits(valid == 0, axis=1).tobytes()]

    def fill(self, header: Header, files: list[bytes]) -> Answer:
        """Fill the hole. Files: the photograph, the mask (holes black), earlier edits. Returns one more edit."""
        fill = self.methods[_one_of(header, "method", tuple(self.methods))]
        photo, rest = _edited(header, files, 2)
        name, mask_name = _name(header, "name"), _name(header, "mask")
        valid, _, _ = read_mask(mask_name, "black", rest[0])
        check_size(valid, mask_name, photo, name)
        if valid.all():
            raise UserError("nothing is painted yet: paint over what should go, then fill")
        if not valid.any():
            raise UserError("all of the picture is painted; nothing is left to fill it from")
        edit, left, top = edit_of(fill_photo(fill, photo, valid, name), valid)
        return {"left": left, "top": top, "hole": hole_ratio(valid)}, [edit]

    def save(self, header: Header, files: list[bytes]) -> Answer:
        """Encode the edited photograph. Files: the photograph, edits. Returns the file that predict.py would write."""
        suffix = _one_of(header, "format", self.formats)
        photo, _ = _edited(header, files, 1)
        output = Path(_name(header, "name").stem + "_inpainted" + suffix)
        check_keeps(output, photo)
        try:
            data = encode_photo(photo, suffix)
        except (OSError, ValueError) as error:  # larger than WebP or JPEG can be
            raise UserError(f"{output} can't be written: {error}") from None
        return {"name": output.name}, [data]


def _edited(header: Header, files: Sequence[bytes], others: Literal[1, 2]) -> tuple[Photo, Sequence[bytes]]:
    """Return the photograph with all edits applied, and the files between photograph and edits.

    others: number of files before the edits, including the photograph.
    """
    places = header.get("places")
    if not isinstance(places, list) or len(places) > MOST_EDITS or not all(map(_is_place, places)):
        raise MalformedMessage(f"places must be a list of at most {MOST_EDITS} [left, top]")
    _counted(files, others + len(places))
    photo = read_photo(_name(header, "name"), files[0])
    return apply_edits(photo, files[others:], [(left, top) for left, top in places]), files[1:others]


def _is_place(place: object) -> bool:
    return (
        isinstance(place, list)
        and len(place) == 2
        and all(type(value) is int and 0 <= value < _LARGEST_PLACE for value in place)
    )


def _counted(files: Sequence[bytes], count: int) -> Sequence[bytes]:
    if len(files) != count:
        raise MalformedMessage(f"{count} files are needed, got {len(files)}")
    return files


def _name(header: Header, key: str) -> Path:
    """Return a file's name, made printable. It is used only in messages and never opened."""
    name = header.get(key)
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise MalformedMessage(f"{key} must be a text of 1 to {LONGEST_NAME} characters")
    return Path("".join(letter if letter.isprintable() and letter not in "/\\" else "_" for letter in name))


def _one_of(header: Header, key: str, choices: Sequence[Any]) -> Any:
    value = header.get(key)
    if not isinstance(value, str) or value not in choices:
        raise MalformedMessage(f"{key} must be one of {', '.join(choices)}")
    return value


def _browsers_show(data: bytes, photo: Photo) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        formats, modes = _SHOWN_BY_BROWSERS
        plain = image.format in formats and image.mode in modes and photo.pixels.dtype == np.uint8
        return plain and (photo.orientation == 1 or image.format == "JPEG")


def _view(photo: Photo) -> bytes:
    """Encode the upright photograph as PNG with 8 bits per channel."""
    pixels = photo.shown()
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return encode_photo(Photo(np.ascontiguousarray(pixels), photo.icc_profile), ".png")
