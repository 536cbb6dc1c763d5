"""Generated pictures with a known scene graph: coloured shapes and lettered signs on varied, unevenly lit backgrounds.

    scene = objects_scene(random.Random(0), most=7); picture = render(scene)   # PIL, 96 x 96

The light comes from one side and from above: warm from the left, brighter towards the top. Photographs have such cues
too, and a vision tower without absolute position embeddings needs one to tell left from right.
"""

from __future__ import annotations

import functools
import io
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 96  # pixels
OVERSAMPLE = 2  # pictures are drawn larger and then reduced, for antialiasing

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 225, 50),
    "green": (40, 150, 60),
    "blue": (40, 80, 210),
    "purple": (140, 50, 170),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "diamond")
SIZES = {"small": (6.0, 7.5), "large": (10.5, 12.5)}  # half extent in pixels
WORDS = """
stop exit open taxi cafe bank park shop hotel milk bread fish cake salt soup tea pizza book music film news art zoo gym
bus train ship plane road north south east west river lake sun moon rain snow fire
""".split()  # noqa: SIM905
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "STIXGeneralBol")


@dataclass(frozen=True)
class Thing:
    """One object: a plain shape or, with `text`, a shape or sign with writing. Centre and half extent are in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float = 0.0  # degrees
    text: str = ""
    font: str = ""
    points: int = 0  # font size

    @property
    def half(self) -> tuple[float, float]:
        """Half width and half height of the covered area, in pixels."""
        if self.shape == "sign":
            return (4.0 + 0.33 * self.points * max(2, len(self.text)), 3.5 + 0.5 * self.points)
        return (self.radius, self.radius)


@dataclass(frozen=True)
class Scene:
    """The things in a picture, from back to front, and the seed of its background."""

    things: tuple[Thing, ...]
    backdrop: int
    noise: float = 0.0


def _place(
    rng: random.Random, things: list[Thing], half: tuple[float, float], overlap: float
) -> tuple[float, float] | None:
    """A free centre for a box with this half extent; None if none is found.

    `overlap`: how far boxes may overlap, as a share of their distance.
    """
    for _ in range(40):
        x = rng.uniform(half[0] + 1, SIDE - half[0] - 1)
        y = rng.uniform(half[1] + 1, SIDE - half[1] - 1)
        if all(
            abs(x - t.x) > (1 - overlap) * (half[0] + t.half[0]) or abs(y - t.y) > (1 - overlap) * (half[1] + t.half[1])
            for t in things
        ):
            return x, y
    return None


def _shape(rng: random.Random, things: list[Thing], colours: list[str], shapes: list[str]) -> Thing | None:
    size = rng.choice(list(SIZES))
    radius = rng.uniform(*SIZES[size])
    spot = _place(rng, things, (radius, radius), overlap=0.12)
    if spot is None:
        return None
    return Thing(rng.choice(shapes), rng.choice(colours), size, *spot, radius, turn=rng.uniform(-12, 12))


def objects_scene(rng: random.Random, least: int = 3, most: int = 8) -> Scene:
    """A scene of plain shapes. It favours a few colours and shapes, so that counts and references are not trivial."""
    number = rng.randint(least, most)
    colours = rng.sample(list(COLOURS), rng.randint(2, 5)) if rng.random() < 0.7 else list(COLOURS)
    shapes = rng.sample(SHAPES, rng.randint(2, 4)) if rng.random() < 0.7 else list(SHAPES)
    things: list[Thing] = []
    for _ in range(number):
        if thing := _shape(rng, things, colours, shapes):
            things.append(thing)
    return Scene(tuple(things), rng.getrandbits(32), noise=rng.uniform(0, 8))


def text_scene(rng: random.Random, signs: int = 3, distractors: int = 2) -> Scene:
    """One to `signs` signs (or shapes with a number) of different colours, among a few plain shapes."""
    things: list[Thing] = []
    number = rng.randint(1, signs)
    colours = rng.sample(list(COLOURS), len(COLOURS))
    for colour in colours[:number]:
        kind = rng.random()
        text = rng.choice(WORDS) if kind < 0.6 else str(rng.randint(10, 99))
        if kind > 0.8:  # a number on a shape; shapes that leave room for it
            shape = rng.choice(("circle", "square", "diamond"))
            radius, points = rng.uniform(13, 16), rng.randint(13, 15)
            radius += 3 if shape == "diamond" else 0
            thing = Thing(shape, colour, "large", 0, 0, radius, text=text, font=rng.choice(FONTS), points=points)
        else:
            thing = Thing(
                "sign", colour, "large", 0, 0, 0, text=text, font=rng.choice(FONTS), points=rng.randint(13, 17)
            )
        spot = _place(rng, things, thing.half, overlap=0.0)
        if spot is not None:
            turn = rng.uniform(-10, 10)
            things.append(Thing(**{**thing.__dict__, "x": spot[0], "y": spot[1], "turn": turn}))
    for _ in range(rng.randint(0, distractors)):
        if thing := _shape(rng, things, colours[number:], list(SHAPES)):
            things.append(thing)
    return Scene(tuple(things), rng.getrandbits(32), noise=rng.uniform(0, 6))


# --- drawing ----------------------------------------------------------------------------------------------


@functools.cache
def font(name: str, points: int) -> ImageFont.FreeTypeFont:
    """The font of this file name at a size in points, loaded once."""
    import matplotlib  # its package contains the fonts

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), points)


@functools.cache
def _axes() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / (SIDE - 1)
    return x, y


def _background(seed: int) -> np.ndarray:
    """A muted plain, striped, checked or mottled background with the light described above: (SIDE, SIDE, 3) float32."""
    rng = np.random.default_rng(seed)
    x, y = _axes()
    base = rng.uniform(105, 165) + rng.uniform(-18, 18, 3)
    ground = np.empty((SIDE, SIDE, 3), np.float32)
    ground[:] = base
    kind = rng.integers(4)
    strength = rng.uniform(5, 14)
    if kind == 1:
        angle, pitch = rng.uniform(0, math.pi), rng.uniform(4, 12)
        ground += (
            strength * np.sign(np.sin((x * math.cos(angle) + y * math.sin(angle)) * SIDE * 6.28 / pitch))[..., None]
        )
    elif kind == 2:
        cell = int(rng.integers(6, 16))
        ground += strength * ((x * SIDE // cell + y * SIDE // cell) % 2 * 2 - 1)[..., None]
    elif kind == 3:
        coarse = Image.fromarray(rng.uniform(0, 255, (8, 8)).astype(np.uint8)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        ground += strength * (np.asarray(coarse, np.float32)[..., None] / 127.5 - 1)
    ground += 26 * (0.5 - y)[..., None]  # brighter towards the top
    ground[..., 0] += 30 * (0.5 - x)  # warm from the left
    ground[..., 2] -= 30 * (0.5 - x)
    return ground


def _outline(thing: Thing, scale: float) -> list[tuple[float, float]]:
    """Corners of a shape around the origin, not rotated; raises ValueError for a shape without corners."""
    r = thing.radius * scale
    if thing.shape == "square":
        corners = [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    elif thing.shape == "triangle":
        corners = [(0, -1), (1, 0.85), (-1, 0.85)]
    elif thing.shape == "diamond":
        corners = [(0, -1.05), (0.8, 0), (0, 1.05), (-0.8, 0)]
    elif thing.shape == "cross":
        a = 0.34
        corners = [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    elif thing.shape == "star":
        corners = [
            (s * math.sin(k * math.pi / 5), -s * math.cos(k * math.pi / 5))
            for k in range(10)
            for s in (1.08 if k % 2 == 0 else 0.45,)
        ]
    elif thing.shape == "sign":
        w, h = thing.half
        return [(-w * scale, -h * scale), (w * scale, -h * scale), (w * scale, h * scale), (-w * scale, h * scale)]
    else:
        raise ValueError(f"no outline for the shape {thing.shape!r}")
    return [(r * a, r * b) for a, b in corners]


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, SIDE x SIDE."""
    k = OVERSAMPLE
    ground = np.clip(_background(scene.backdrop), 0, 255).astype(np.uint8)
    image = Image.fromarray(ground).resize((SIDE * k, SIDE * k), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    shade = random.Random(scene.backdrop)
    for thing in scene.things:
        fill = tuple(max(0, min(255, c + shade.randint(-14, 14))) for c in COLOURS[thing.colour])
        edge = tuple(int(c * 0.55) for c in fill) if sum(fill) > 200 else (95, 95, 95)
        if thing.shape == "circle":
            r = thing.radius
            draw.ellipse([k * (thing.x - r), k * (thing.y - r), k * (thing.x + r), k * (thing.y + r)], fill, edge, k)
        else:
            cos, sin = math.cos(math.radians(thing.turn)), math.sin(math.radians(thing.turn))
            corners = [
                (k * thing.x + a * cos - b * sin, k * thing.y + a * sin + b * cos) for a, b in _outline(thing, k)
            ]
            draw.polygon(corners, fill, edge, k)
        if thing.text:
            mask = Image.new("L", (120 * k, 40 * k))
            ImageDraw.Draw(mask).text(
                (60 * k, 20 * k), thing.text, 255, font(thing.font, thing.points * k), anchor="mm"
            )
            mask = mask.rotate(-thing.turn, Image.Resampling.BILINEAR)
            ink = (15, 15, 15) if sum(fill) > 380 else (245, 245, 245)
            image.paste(ink, (round(k * thing.x) - 60 * k, round(k * thing.y) - 20 * k), mask)
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    if scene.noise >= 1:
        grain = np.random.default_rng(scene.backdrop + 1).normal(0, scene.noise, (SIDE, SIDE, 1)).astype(np.float32)
        small = Image.fromarray(np.clip(np.asarray(small, np.float32) + grain, 0, 255).astype(np.uint8))
    return small


def jpeg(image: Image.Image) -> bytes:
    """The picture as JPEG bytes; this is how it is stored and how the model sees it in training."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=88, subsampling=0)
    return sink.getvalue()
