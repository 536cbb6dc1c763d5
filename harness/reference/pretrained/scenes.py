"""Scenes of real things: what is where, on which coloured plate, on which background, and what is written on signs.

    scene = draw(random.Random(0), writing=False, training=True)

A scene is data only; render.py paints it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from harness.reference.pretrained.things import NAMES, THINGS, Thing, may_meet

SIDE = 168  # pixels
COLOURS = {
    "red": (208, 44, 44),
    "orange": (240, 140, 30),
    "yellow": (246, 222, 60),
    "green": (60, 160, 70),
    "blue": (50, 95, 215),
    "purple": (140, 65, 175),
    "pink": (245, 150, 190),
    "brown": (130, 85, 50),
    "black": (35, 35, 38),
    "white": (245, 245, 243),
}
GROUNDS = {  # backgrounds: paler, so that a plate of the same name still shows
    "gray": (150, 150, 152),
    "green": (150, 195, 140),
    "blue": (150, 185, 225),
    "yellow": (240, 230, 165),
    "pink": (240, 200, 212),
    "white": (240, 240, 238),
}
WORDS = """
stop exit open taxi cafe bank park shop milk soup zoo gym west lake road sale free wet hot cold fast help push art
""".split()  # noqa: SIM905
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "STIXGeneralBol")
GAP = 16.0  # pixels that two centres differ by before a question says left or above


@dataclass(frozen=True)
class Item:
    """One object: a thing, a lettered sign, or a shirt with a number. Centre and half extents in pixels.

    `colour` is that of the plate under a thing (empty: no plate), of the sign, or of the shirt. `text` is what a sign
    or shirt says, or a thing's label.
    """

    kind: str
    name: str
    colour: str
    x: float
    y: float
    wide: float
    high: float
    turn: float = 0.0
    mirrored: bool = False
    text: str = ""
    font: str = ""
    points: int = 0

    @property
    def thing(self) -> Thing | None:
        return THINGS.get(self.name) if self.kind == "thing" else None


@dataclass(frozen=True)
class Scene:
    """What is in the picture, its background's colour, and the seed of the background's pattern."""

    items: tuple[Item, ...]
    ground: str
    backdrop: int
    noise: float = 0.0


def _spot(rng: random.Random, items: list[Item], wide: float, high: float) -> tuple[float, float] | None:
    """A free centre for a box of these half extents, or None."""
    for _ in range(60):
        x, y = rng.uniform(wide + 1, SIDE - wide - 1), rng.uniform(high + 1, SIDE - high - 1)
        if all(abs(x - i.x) > wide + i.wide or abs(y - i.y) > high + i.high for i in items):
            return x, y
    return None


def _fits(name: str, colour: str, items: list[Item], ground: str, training: bool) -> bool:
    others = [i.name for i in items if i.kind == "thing" and i.name != name]
    return all(may_meet(name, other, training=training) for other in (*others, *filter(None, (colour, ground))))


def _thing(
    rng: random.Random, items: list[Item], ground: str, training: bool, names: list[str], count: int
) -> Item | None:
    half = rng.uniform(20, 25 if count > 3 else 32 if count > 2 else 38)
    plate = rng.random() < 0.6
    for _ in range(12):
        name = rng.choice(names)
        colour = rng.choice(list(COLOURS)) if plate else ""
        if _fits(name, colour, items, ground, training):
            break
    else:
        return None
    outer = half + 5 if plate else half
    spot = _spot(rng, items, outer, outer)
    if spot is None:
        return None
    return Item("thing", name, colour, *spot, outer, outer, turn=rng.uniform(-12, 12), mirrored=rng.random() < 0.5)


def things_scene(rng: random.Random, *, training: bool, number: int = 0) -> Scene:
    """`number` things (default: one to five); sometimes the same thing several times, or several of one kind."""
    ground = rng.choice(list(GROUNDS))
    number = number or rng.choices((1, 2, 3, 4, 5), (1, 4, 4, 4, 2))[0]
    names = list(NAMES)
    style = rng.random()
    if style < 0.3:  # a few names: the same thing several times
        names = rng.sample(NAMES, 2)
    elif style < 0.5:  # one or two kinds
        kinds = [THINGS[name].kind for name in rng.sample(NAMES, 2)]
        names = [name for name in NAMES if THINGS[name].kind in kinds]
    items: list[Item] = []
    for _ in range(number):
        if item := _thing(rng, items, ground, training, names, number):
            items.append(item)
    if not items:
        return things_scene(rng, training=training, number=number)
    return Scene(tuple(items), ground, rng.getrandbits(32), rng.uniform(0, 7))


def _lettered(rng: random.Random, items: list[Item], colour: str) -> Item | None:
    """A sign with a word or a number, or a shirt with a number; letters as wide as an image token, or wider."""
    kind = rng.random()
    number = kind > 0.5
    text = str(rng.randint(0, 99)) if number else rng.choice(WORDS)
    if kind > 0.75:
        half = rng.uniform(44, 54)
        shape, wide, high, points = "shirt", half, half * 0.9, round(half * 0.95)
    else:
        points = rng.randint(42, 54) if number else rng.randint(35, 42)
        shape, wide, high = "sign", 7 + 0.36 * points * max(2, len(text)), 4 + 0.45 * points
    spot = _spot(rng, items, wide, high)
    if spot is None:
        return None
    turn = rng.uniform(-5, 5)
    return Item(shape, shape, colour, *spot, wide, high, turn=turn, text=text, font=rng.choice(FONTS), points=points)


def _labelled(rng: random.Random, items: list[Item], ground: str, training: bool) -> Item | None:
    """A thing with a word on a white label under it; its box holds both."""
    for _ in range(12):
        name = rng.choice(NAMES)
        if _fits(name, "", items, ground, training):
            break
    else:
        return None
    text, points = rng.choice(WORDS), rng.randint(33, 38)
    wide, high = 5 + 0.36 * points * len(text), 28 + 0.45 * points
    spot = _spot(rng, items, wide, high)
    if spot is None:
        return None
    mirrored = rng.random() < 0.5
    return Item(
        "thing", name, "", *spot, wide, high, mirrored=mirrored, text=text, font=rng.choice(FONTS), points=points
    )


def writing_scene(rng: random.Random, *, training: bool) -> Scene:
    """One to three lettered objects of different colours and texts, and sometimes a thing without any."""
    ground = rng.choice(list(GROUNDS))
    items: list[Item] = []
    colours = rng.sample(list(COLOURS), 4)
    for colour in colours[: rng.choices((1, 2, 3), (3, 5, 2))[0]]:
        item = _labelled(rng, items, ground, training) if rng.random() < 0.25 else _lettered(rng, items, colour)
        if item and item.text not in [i.text for i in items] and item.name not in [i.name for i in items if i.thing]:
            items.append(item)
    if not items:
        return writing_scene(rng, training=training)
    if rng.random() < 0.4:
        names = [name for name in NAMES if name not in [i.name for i in items]]
        if item := _thing(rng, items, ground, training, names, 4):
            items.append(item)
    return Scene(tuple(items), ground, rng.getrandbits(32), rng.uniform(0, 5))


def draw(rng: random.Random, *, writing: bool, training: bool) -> Scene:
    """A scene of things, or of writing; `training` says in which half of the splits it is."""
    return writing_scene(rng, training=training) if writing else things_scene(rng, training=training)
