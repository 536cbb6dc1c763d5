"""Images as a viewer shows them: every mode that a file can hold, and the turn that a camera notes."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from harness.pictures import UNREADABLE, as_shown, opened, whole

WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    image.save(stream := io.BytesIO(), kind, **how)
    return stream.getvalue()


def grey_png(depth: int, kind: int, pixel: bytes, clear: bytes = b"") -> bytes:
    """A PNG of one pixel in a form that PIL does not write; `clear`: its transparent value."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, depth, kind, 0, 0, 0))]
    parts += [chunk(b"tRNS", clear)] if clear else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(b"\0" + pixel)), chunk(b"IEND", b"")])


def shades(mode: str) -> Image.Image:
    """Two pixels, the first dark and see-through where the mode has alpha, the second plain red or light."""
    image = Image.new("RGBA", (2, 1), (*BLACK, 0))
    image.putpixel((1, 0), (*RED, 255))
    return image.convert(mode)


SHOWN: dict[str, tuple[bytes, list[tuple[int, int, int]]]] = {
    "16-bit grey": (encoded(Image.fromarray(np.array([[0, 32896]], np.uint16))), [BLACK, (128, 128, 128)]),
    "16-bit grey, white": (encoded(Image.fromarray(np.array([[65535, 257]], np.uint16))), [WHITE, (1, 1, 1)]),
    "16-bit grey with a clear value": (grey_png(16, 0, b"\x10\x00", b"\x10\x00"), [WHITE]),
    "16-bit grey with alpha": (grey_png(16, 4, b"\0\0\0\0"), [WHITE]),
    "16-bit colour with alpha": (grey_png(16, 6, b"\0" * 8), [WHITE]),
    "16-bit colour with a clear value": (grey_png(16, 2, b"\xff\xff\0\0\0\0", b"\xff\xff\0\0\0\0"), [WHITE]),
    "8-bit colour with a clear value": (grey_png(8, 2, b"\xff\0\0", b"\0\xff\0\0\0\0"), [WHITE]),
    "1 bit": (encoded(Image.fromarray(np.array([[False, True]]))), [BLACK, WHITE]),
    "grey": (encoded(Image.fromarray(np.array([[7, 200]], np.uint8))), [(7, 7, 7), (200, 200, 200)]),
    "grey with alpha": (encoded(shades("LA")), [WHITE, (76, 76, 76)]),
    "colour with alpha": (encoded(shades("RGBA")), [WHITE, RED]),
    "palette with alpha": (encoded(shades("RGBA").quantize(4)), [WHITE, RED]),
    "palette": (encoded(shades("RGB").quantize(4)), [BLACK, RED]),
    "gif with alpha": (encoded(shades("RGBA"), "GIF"), [WHITE, RED]),
    "webp with alpha": (encoded(shades("RGBA"), "WEBP", lossless=True), [WHITE, RED]),
    "inks": (encoded(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "JPEG"), [RED, RED]),
    "half clear": (encoded(Image.new("RGBA", (1, 1), (*BLACK, 128))), [(127, 127, 127)]),
}


@pytest.mark.parametrize("name", SHOWN)
def test_every_mode_is_shown_as_in_a_viewer(name: str) -> None:
    content, pixels = SHOWN[name]
    for image in (opened(content), whole(content)):
        shown = as_shown(image)
        assert shown.mode == "RGB"
        assert np.asarray(shown).shape == (1, len(pixels), 3)
        assert np.abs(np.asarray(shown)[0].astype(int) - pixels).max() <= 1


def test_what_was_silently_black_or_white_is_not() -> None:
    """PIL's own conversion, on which lmms-eval relies: the reason why ours exists."""
    grey, clear = (opened(SHOWN[name][0]) for name in ("16-bit grey", "colour with alpha"))
    assert grey.convert("RGB").getpixel((1, 0)) == WHITE and clear.convert("RGB").getpixel((0, 0)) == BLACK


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_camera_s_turn_is_applied(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = Image.new("RGB", (32, 16))
    picture.paste(RED, (0, 0, 16, 16))
    shown = as_shown(opened(encoded(picture, kind, exif=exif, **({"quality": 100} if kind != "PNG" else {}))))
    assert shown.size == ((32, 16) if turn < 5 else (16, 32))
    # Where the left half, red, comes to lie.
    left, top = {1: (0, 0), 4: (0, 0), 2: (1, 0), 3: (1, 0), 5: (0, 0), 6: (0, 0), 7: (0, 1), 8: (0, 1)}[turn]
    place = (left * 16 + 8, 8) if turn < 5 else (8, top * 16 + 8)
    assert shown.getpixel(place) == pytest.approx(RED, abs=12)


@given(st.binary(max_size=80))
def test_notes_that_cannot_be_read_change_nothing(noise: bytes) -> None:
    content = encoded(Image.new("RGB", (4, 2), RED), "JPEG", exif=b"Exif\x00\x00" + noise)
    assert set(as_shown(whole(content)).size) == {4, 2}


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_plain_pictures_stay_as_they_are(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    colour = Image.fromarray(pixels[..., :3])
    assert as_shown(colour) is colour
    opaque = Image.fromarray(np.dstack([pixels[..., :3], np.full((height, width), 255, np.uint8)]))
    assert as_shown(opaque).tobytes() == colour.tobytes()
    for mode in ("L", "1", "P"):
        assert as_shown(colour.convert(mode)).tobytes() == colour.convert(mode).convert("RGB").tobytes()


@pytest.mark.parametrize("lenient", [False, True])
def test_only_whole_images_of_known_formats_are_whole(monkeypatch: pytest.MonkeyPatch, lenient: bool) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    picture = encoded(Image.new("RGB", (200, 200), RED), "JPEG")
    for content in (b"", b"x", picture[:-200], encoded(Image.new("RGB", (4, 4)), "TIFF")):
        with pytest.raises(UNREADABLE):
            whole(content)
    assert whole(picture).size == (200, 200) and lenient == ImageFile.LOAD_TRUNCATED_IMAGES
