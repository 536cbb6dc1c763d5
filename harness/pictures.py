"""Encoded images as pictures that look as in a viewer: upright, 16-bit greys scaled, transparency on white.

as_shown(whole(content))    # an RGB picture
"""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # none for which PIL starts another program
DEEPEST = 65535  # white of a 16-bit grey
# What PIL raises for bytes that are no whole image.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def opened(content: bytes) -> Image.Image:
    """The first picture in these bytes, not decoded yet. Raises UNREADABLE for bytes of another format."""
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error


def whole(content: bytes) -> Image.Image:
    """The first picture in these bytes, which may come from anyone, decoded and upright.

    Raises UNREADABLE for a truncated image, and for one of more than about 90 megapixels. Changes settings of the
    process while it runs, so it is not for threads.
    """
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES  # some libraries set this for the whole process
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged notes beside the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = opened(content)
            image.load()
            return _upright(image)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def as_shown(image: Image.Image) -> Image.Image:
    """The picture in RGB, as a viewer on a white page shows it; an upright RGB image is returned as it is.

    `image.convert("RGB")` alone makes most 16-bit greys white and what is black on transparent black on black. It also
    leaves out the rotation of a camera's EXIF. Colour profiles are not applied.
    """
    image = _upright(image)
    if deep(image):
        image = _scaled(image)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image if image.mode == "RGB" else image.convert("RGB")


def deep(image: Image.Image) -> bool:
    """Whether it is a grey of 16 bits."""
    return image.mode.startswith("I")


def special(image: Image.Image) -> bool:
    """Whether viewers and PIL's `convert` may show it differently, though it is upright."""
    return deep(image) or image.has_transparency_data


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; as it is where the EXIF cannot be read."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return image


def _scaled(image: Image.Image) -> Image.Image:
    """A grey of 16 bits as one of 8; its transparent value, if it has one, as an alpha channel."""
    depth = np.asarray(image)
    grey = Image.fromarray(np.round(depth.clip(0, DEEPEST) * (255 / DEEPEST)).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(depth == clear, 0, 255).astype(np.uint8)))
    return grey
