"""A photograph to be repaired, with all that must come out as it went in: depth, alpha, profile, orientation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.errors import UserError
from utils.files import write_atomically
from utils.images import open_image

OUTPUT_SUFFIXES = (".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg")

_ORIENTATION = 0x0112  # EXIF tag
_PNG_16_BIT = 24  # byte of a PNG file that says 16 where a channel has 16 bits

# From pixels as stored to pixels as shown, by EXIF orientation. All undo themselves but 6 and 8, which undo each other.
_SHOW = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
_UNDO = {6: 8, 8: 6}


@dataclass(frozen=True)
class Photo:
    """pixels: uint8 or uint16, (H,W,C) as stored in the file, C of grey 1 or 2, of RGB 3 or 4, with alpha last."""

    pixels: np.ndarray
    icc_profile: bytes | None
    orientation: int  # EXIF, 1 to 8

    def rgb(self) -> np.ndarray:
        """The picture as shown, float32 (H,W,3) in [0,1], without alpha."""
        shown = _SHOW[self.orientation](self.pixels)
        colour = shown[..., : self._colours] / np.float32(np.iinfo(self.pixels.dtype).max)
        return np.broadcast_to(colour, (*colour.shape[:2], 3)).astype(np.float32)

    def filled(self, rgb: np.ndarray, mask: np.ndarray) -> Photo:
        """The photograph with its hole taken from `rgb`; valid pixels, alpha and all else are the photograph's.

        rgb: float (H,W,3) in [0,1], mask: (H,W), 0 = hole; both as shown.
        """
        if self._colours == 1:  # luma of ITU-R 601, as Pillow's
            rgb = rgb @ np.array([[0.299], [0.587], [0.114]], dtype=rgb.dtype)
        levels = np.iinfo(self.pixels.dtype).max
        values = np.rint(np.clip(rgb, 0, 1).astype(np.float64) * levels).astype(self.pixels.dtype)
        pixels = self.pixels.copy()
        shown = _SHOW[self.orientation](pixels)  # a view: what is written here is written in `pixels`
        np.copyto(shown[..., : self._colours], values, where=mask[..., None] == 0)
        return replace(self, pixels=pixels)

    @property
    def _colours(self) -> int:
        return 3 if self.pixels.shape[2] >= 3 else 1

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)


def read_photo(path: str | Path) -> Photo:
    """Read any image. Grey stays grey, 16 bits stay 16 bits; palette and CMYK become RGB (its profile goes).

    UserError where the file is missing, no image, or damaged.
    """
    image = open_image(path)
    orientation = image.getexif().get(_ORIENTATION, 1)
    orientation = orientation if orientation in _SHOW else 1
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit grey
        pixels = np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)[..., None]
        return Photo(pixels, profile, orientation)
    with open(path, "rb") as file:
        head = file.read(_PNG_16_BIT + 1)
    if head.startswith(b"\x89PNG") and head[_PNG_16_BIT] == 16:  # Pillow would read 8 bits of colour
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        swap = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
        return Photo(cv2.cvtColor(pixels, swap), profile, orientation)
    transparent = "A" in image.mode or "transparency" in image.info
    if image.mode in ("1", "L", "LA"):
        image = image.convert("LA" if transparent else "L")
    else:
        profile = None if image.mode == "CMYK" else profile
        image = image.convert("RGBA" if transparent else "RGB")
    pixels = np.asarray(image)
    return Photo(pixels.reshape(*pixels.shape[:2], -1), profile, orientation)


def check_output(path: Path, photo: Photo | None = None) -> None:
    """UserError where no image can be written under this name, or not this photograph's."""
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"--output {path}: the name must end in one of {', '.join(OUTPUT_SUFFIXES)}")
    if photo is None or path.suffix.lower() == ".png":
        return
    if photo.pixels.dtype == np.uint16:
        raise UserError(f"--output {path}: the image has 16 bits a channel, which only .png keeps here")
    if photo.has_alpha and path.suffix.lower() in (".jpg", ".jpeg"):
        raise UserError(f"--output {path}: the image has an alpha channel, which JPEG can't hold; use .png")


def write_photo(photo: Photo, path: Path) -> None:
    """Write the photograph, lossless but for JPEG, with its profile and orientation; of EXIF the orientation alone.

    The rest of EXIF often holds a small copy of the picture before its repair. An old file is replaced whole.
    """
    check_output(path, photo)
    exif = Image.Exif()
    if photo.orientation != 1:
        exif[_ORIENTATION] = photo.orientation
    if photo.pixels.dtype == np.uint16 and photo.pixels.shape[2] >= 3:
        data = _encode_16_bit_png(photo, exif)
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
        return
    kinds = {".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
    kind = kinds[path.suffix.lower()]
    options = {"WEBP": {"lossless": True, "exact": True}, "TIFF": {"compression": "tiff_deflate"}, "JPEG": {"quality": 95}}
    pixels = photo.pixels[..., 0] if photo.pixels.shape[2] == 1 else photo.pixels
    image = Image.fromarray(pixels)
    write_atomically(
        path,
        lambda temporary: image.save(
            temporary, format=kind, icc_profile=photo.icc_profile, exif=exif, **options.get(kind, {})
        ),
    )


def _encode_16_bit_png(photo: Photo, exif: Image.Exif) -> bytes:
    """PNG with 16 bits of colour a channel, which Pillow can't write."""
    metadata: list[tuple[int, bytes]] = []
    if photo.icc_profile:
        metadata.append((cv2.IMAGE_METADATA_ICCP, photo.icc_profile))
    if len(exif):
        metadata.append((cv2.IMAGE_METADATA_EXIF, exif.tobytes().removeprefix(b"Exif\0\0")))
    swap = cv2.COLOR_RGBA2BGRA if photo.has_alpha else cv2.COLOR_RGB2BGR
    _, data = cv2.imencodeWithMetadata(
        ".png",
        cv2.cvtColor(photo.pixels, swap),
        [kind for kind, _ in metadata],
        [np.frombuffer(value, np.uint8) for _, value in metadata],
    )
    return data.tobytes()
