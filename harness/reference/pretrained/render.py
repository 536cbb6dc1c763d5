"""Paints a scene: emoji of the Noto Color Emoji font on plates, signs, shirts and labels, on a patterned background.

    painter = Painter(emoji_font()); picture = painter.render(scene)      # PIL, 168 x 168

Only training and remaking the question sets need the font; the shipped sets hold finished pictures.
"""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.reference.pretrained.scenes import COLOURS, GROUNDS, SIDE, Item, Scene
from harness.reference.pretrained.things import THINGS
from harness.reference.scenes import font
from harness.types import InputError

FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",  # Debian, Ubuntu
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",  # Arch
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",  # Fedora
)
GLYPH = 109  # the only size that the font's bitmaps have
BOX = 136


def emoji_font(path: Path | None = None) -> Path:
    """The font's file: the one given, or where the systems' packages put it. Raises InputError if there is none."""
    places = [path] if path else [Path(place) for place in FONT_PLACES]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"no emoji font ({places[0]} is missing); run `apt-get install fonts-noto-color-emoji`, or pass --emoji FILE"
        " with the path of NotoColorEmoji.ttf"
    )


class Painter:
    """Renders scenes with one emoji font; keeps each emoji's bitmap."""

    def __init__(self, font: Path) -> None:
        try:
            self.font = ImageFont.truetype(str(font), GLYPH)
        except OSError as error:
            raise InputError(f"{font}: not a font with bitmaps of size {GLYPH} ({error})") from error
        self._glyphs: dict[str, Image.Image] = {}

    def glyph(self, name: str) -> Image.Image:
        """The emoji of a thing on a transparent square."""
        if name not in self._glyphs:
            image = Image.new("RGBA", (BOX, BOX))
            ImageDraw.Draw(image).text(
                (BOX / 2, BOX / 2), THINGS[name].emoji, font=self.font, anchor="mm", embedded_color=True
            )
            self._glyphs[name] = image
        return self._glyphs[name]

    def render(self, scene: Scene) -> Image.Image:
        """The picture, RGB, SIDE x SIDE."""
        image = _background(scene)
        shade = random.Random(scene.backdrop)
        for item in scene.items:
            fill = tuple(
                max(0, min(255, c + shade.randint(-12, 12))) for c in COLOURS.get(item.colour, (245, 245, 243))
            )
            if item.kind == "thing":
                self._thing(image, item, fill)
            else:
                _lettered(image, item, fill)
        if scene.noise >= 1:
            grain = np.random.default_rng(scene.backdrop + 1).normal(0, scene.noise, (SIDE, SIDE, 1)).astype(np.float32)
            image = Image.fromarray(np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8))
        return image

    def _thing(self, image: Image.Image, item: Item, fill: tuple[int, ...]) -> None:
        x, y, half = item.x, item.y, item.wide
        if item.text:
            tall = 0.45 * item.points
            half = item.high - tall
            y = item.y - item.high + half
        elif item.colour:
            box = [x - item.wide, y - item.high, x + item.wide, y + item.high]
            _smooth(image, box, fill, tuple(int(c * 0.7) for c in fill))
            half -= 5
        glyph = self.glyph(item.name)
        if item.mirrored:
            glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        size = round(2 * half)
        glyph = glyph.resize((size, size), Image.Resampling.BOX if size < 60 else Image.Resampling.BILINEAR)
        if item.turn:
            glyph = glyph.rotate(item.turn, Image.Resampling.BILINEAR)
        image.paste(glyph, (round(x - half), round(y - half)), glyph)
        if item.text:
            low, tall = item.y + item.high, 0.9 * item.points
            ImageDraw.Draw(image).rectangle(
                [x - item.wide, low - tall, x + item.wide, low], (248, 248, 246), (60, 60, 60)
            )
            _write(image, item, (x, low - tall / 2), (20, 20, 20))


def _smooth(image: Image.Image, box: list[float], fill: tuple[int, ...], edge: tuple[int, ...]) -> None:
    """An ellipse with smooth edges: its mask is drawn at twice the size."""
    wide, high = round(box[2] - box[0]), round(box[3] - box[1])
    disc = Image.new("RGB", (2 * wide, 2 * high), edge)
    ImageDraw.Draw(disc).ellipse([4, 4, 2 * wide - 5, 2 * high - 5], fill)
    mask = Image.new("L", (2 * wide, 2 * high))
    ImageDraw.Draw(mask).ellipse([0, 0, 2 * wide - 1, 2 * high - 1], 255)
    corner = (round(box[0]), round(box[1]))
    image.paste(
        disc.resize((wide, high), Image.Resampling.BOX), corner, mask.resize((wide, high), Image.Resampling.BOX)
    )


def _lettered(image: Image.Image, item: Item, fill: tuple[int, ...]) -> None:
    cos, sin = math.cos(math.radians(item.turn)), math.sin(math.radians(item.turn))
    w, h = item.wide, item.high
    if item.kind == "sign":
        corners = [(-w, -h), (w, -h), (w, h), (-w, h)]
    else:
        corners = [(-0.35, -1), (0.35, -1), (0.62, -0.9), (1, -0.35), (0.72, -0.12), (0.62, -0.3), (0.62, 1)]
        corners = [(a * w, b * h) for a, b in [*corners, *((-a, b) for a, b in reversed(corners[2:]))]]
    turned = [(item.x + a * cos - b * sin, item.y + a * sin + b * cos) for a, b in corners]
    edge = tuple(int(c * 0.55) for c in fill) if sum(fill) > 200 else (120, 120, 120)
    ImageDraw.Draw(image).polygon(turned, fill, edge, 2)
    _write(image, item, (item.x, item.y), (15, 15, 15) if sum(fill) > 380 else (245, 245, 245))


def _write(image: Image.Image, item: Item, centre: tuple[float, float], ink: tuple[int, ...]) -> None:
    mask = Image.new("L", (2 * SIDE, 80))
    text = item.text.upper()
    chosen = font(item.font, item.points)
    room = (1.24 if item.kind == "shirt" else 2) * item.wide - 4  # a shirt's body is narrower than its sleeves
    if (length := chosen.getlength(text)) > room:
        chosen = font(item.font, max(10, int(item.points * room / length)))
    ImageDraw.Draw(mask).text((SIDE, 40), text, 255, chosen, anchor="mm")
    mask = mask.rotate(-item.turn, Image.Resampling.BILINEAR)
    image.paste(ink, (round(centre[0]) - SIDE, round(centre[1]) - 40), mask)


@functools.cache
def _axes() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    return x, y


def _background(scene: Scene) -> Image.Image:
    """Plain, striped, checked or mottled ground of one named colour, a little uneven in its light."""
    rng = np.random.default_rng(scene.backdrop)
    x, y = _axes()
    light = rng.uniform(-14, 14) * (x - 0.5) + rng.uniform(-14, 14) * (y - 0.5)
    kind, strength = rng.integers(4), rng.uniform(4, 10)
    if kind == 1:
        angle, pitch = rng.uniform(0, math.pi), rng.uniform(8, 24)
        light = light + strength * np.sign(np.sin((x * math.cos(angle) + y * math.sin(angle)) * SIDE * 6.28 / pitch))
    elif kind == 2:
        cell = int(rng.integers(10, 28))
        light = light + strength * ((x * SIDE // cell + y * SIDE // cell) % 2 * 2 - 1)
    elif kind == 3:
        coarse = Image.fromarray(rng.uniform(0, 255, (8, 8)).astype(np.uint8))
        coarse = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        light = light + strength * (np.asarray(coarse, np.float32) / 127.5 - 1)
    base = np.array(GROUNDS[scene.ground], np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    return Image.fromarray(np.clip(base + light[..., None], 0, 255).astype(np.uint8))
