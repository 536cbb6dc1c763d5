"""Questions about a scene, computed from its graph: every form is a small functional program with one right answer.

    for q in ask(scene, "mini_gqa", random.Random(0)): print(q.form, q.text, q.answer)

A reference ("the small red star") always singles out one thing. Forms propose candidates for every answer they can
truthfully give and one is drawn per answer first, so that inside a form no answer can be guessed blind.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.reference.scenes import COLOURS, SHAPES, SIZES, Scene, Thing

GAP = 9.0  # pixels that two centres differ by before a relation is asked about


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the form (template) it came from."""

    form: str
    text: str
    answer: str


def _name(thing: Thing) -> str:
    return "sign" if thing.shape == "sign" else thing.shape


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def _a(colour: str) -> str:
    return f"an {colour}" if colour == "orange" else f"a {colour}"


def _references(things: tuple[Thing, ...], hide: str = "") -> list[tuple[str, Thing]]:
    """Shortest descriptions that fit exactly one thing, `hide` (an attribute) not mentioned."""
    found = []
    patterns = (("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("size", "colour"))
    for pattern in patterns:
        if hide in pattern:
            continue
        counts = Counter(tuple(getattr(t, a) for a in pattern) for t in things)
        for t in things:
            if counts[tuple(getattr(t, a) for a in pattern)] == 1:
                words = [getattr(t, a) for a in pattern]
                found.append((" ".join([*words, "object"] if "shape" not in pattern else words), t))
    return found


def _side(a: Thing, b: Thing) -> list[str]:
    """The relations in which a clearly stands to b."""
    sides = []
    if abs(a.x - b.x) > GAP:
        sides.append("left of" if a.x < b.x else "right of")
    if abs(a.y - b.y) > GAP:
        sides.append("above" if a.y < b.y else "below")
    return sides


Proposals = Iterator[tuple[str, str]]  # (text, answer)


# --- objects: colour, shape, size, count, yes/no ----------------------------------------------------------


def _colour(scene: Scene, rng: random.Random) -> Proposals:
    for words, thing in _references(scene.things, hide="colour"):
        yield f"What color is the {words}?", thing.colour


def _shape(scene: Scene, rng: random.Random) -> Proposals:
    for words, thing in _references(scene.things, hide="shape"):
        yield f"What shape is the {words}?", thing.shape


def _size(scene: Scene, rng: random.Random) -> Proposals:
    for words, thing in _references(scene.things, hide="size"):
        yield f"Is the {words} small or large?", thing.size


def _count(scene: Scene, rng: random.Random) -> Proposals:
    for colour in COLOURS:
        yield f"How many {colour} objects are there?", str(sum(t.colour == colour for t in scene.things))
    for shape in SHAPES:
        yield f"How many {_plural(shape)} are there?", str(sum(t.shape == shape for t in scene.things))
    for size in SIZES:
        yield f"How many {size} objects are there?", str(sum(t.size == size for t in scene.things))


def _exists(scene: Scene, rng: random.Random) -> Proposals:
    """The wrong pairs are made of a colour and a shape that are both there: each has to be bound to the other."""
    pairs = {(t.colour, t.shape) for t in scene.things}
    colours, shapes = sorted({c for c, _ in pairs}), sorted({s for _, s in pairs})
    for colour in colours:
        for shape in shapes:
            yield f"Is there {_a(colour)} {shape}?", "yes" if (colour, shape) in pairs else "no"


# --- compositions: relations, logic, comparison, same or different, two hops --------------------------------


def _relation(scene: Scene, rng: random.Random) -> Proposals:
    references = _references(scene.things)
    rng.shuffle(references)
    for (words_a, a), (words_b, b) in itertools.pairwise(references):
        if a is b:
            continue
        for side in _side(a, b):
            opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[side]
            yield f"Is the {words_a} {side} the {words_b}?", "yes"
            yield f"Is the {words_a} {opposite} the {words_b}?", "no"


def _logic(scene: Scene, rng: random.Random) -> Proposals:
    pairs = {(t.colour, t.shape) for t in scene.things}
    colours, shapes = sorted({c for c, _ in pairs}), sorted({s for _, s in pairs})
    options = [(c, s) for c in colours for s in shapes]
    present, absent = [o for o in options if o in pairs], [o for o in options if o not in pairs]
    for word in ("and", "or"):
        for truth in (True, False):  # both answers equally often for both words: neither gives the answer away
            mixed = rng.choice([(True, False), (False, True)])
            flags = rng.choice([(True, True), mixed]) if word == "or" else (True, True)
            if not truth:
                flags = rng.choice([(False, False), mixed]) if word == "and" else (False, False)
            if (present or not any(flags)) and (absent or all(flags)):
                (c1, s1), (c2, s2) = (rng.choice(present if flag else absent) for flag in flags)
                if (c1, s1) != (c2, s2):
                    yield f"Is there {_a(c1)} {s1} {word} {_a(c2)} {s2}?", "yes" if truth else "no"


def _compare(scene: Scene, rng: random.Random) -> Proposals:
    for attribute in ("colour", "shape"):
        counts = Counter(getattr(t, attribute) for t in scene.things)
        names = sorted(counts)
        for a in names:
            for b in names:
                if a != b and counts[a] != counts[b]:
                    first, second = (f"{n} objects" if attribute == "colour" else _plural(n) for n in (a, b))
                    yield f"Are there more {first} than {second}?", "yes" if counts[a] > counts[b] else "no"


def _same(scene: Scene, rng: random.Random) -> Proposals:
    for attribute, word in (("colour", "color"), ("shape", "shape"), ("size", "size")):
        references = _references(scene.things, hide=attribute)
        rng.shuffle(references)
        for (words_a, a), (words_b, b) in itertools.pairwise(references):
            if a is not b:
                same = getattr(a, attribute) == getattr(b, attribute)
                yield f"Do the {words_a} and the {words_b} have the same {word}?", "yes" if same else "no"


def _two_hop(scene: Scene, rng: random.Random) -> Proposals:
    """One of several like things, singled out by where it stands to another; each stands clearly on a side."""
    for words, anchor in _references(scene.things):
        for shape in sorted({t.shape for t in scene.things}):
            like = [t for t in scene.things if t.shape == shape and t is not anchor]
            for side in ("left of", "right of", "above", "below"):
                there = [t for t in like if side in _side(t, anchor)]
                unclear = [t for t in like if not set(_side(t, anchor)) & _axis(side)]
                if len(there) == 1 and len(like) > 1 and not unclear:
                    yield f"What color is the {shape} {side} the {words}?", there[0].colour


def _axis(side: str) -> set[str]:
    return {"left of", "right of"} if side in ("left of", "right of") else {"above", "below"}


def _extreme(scene: Scene, rng: random.Random) -> Proposals:
    for side, key in (
        ("leftmost", lambda t: t.x),
        ("rightmost", lambda t: -t.x),
        ("topmost", lambda t: t.y),
        ("lowest", lambda t: -t.y),
    ):
        ranked = sorted(scene.things, key=key)
        if len(ranked) > 1 and key(ranked[1]) - key(ranked[0]) > GAP * 0.6:
            yield f"What color is the {side} object?", ranked[0].colour
            yield f"What shape is the {side} object?", ranked[0].shape


# --- writing ----------------------------------------------------------------------------------------------


def _read(scene: Scene, rng: random.Random) -> Proposals:
    written = [t for t in scene.things if t.text]
    for thing in written:
        kind = "number" if thing.text.isdigit() else "word"
        yield f"What {kind} is on the {thing.colour} {_name(thing)}?", thing.text
        if sum(t.text.isdigit() == thing.text.isdigit() for t in written) == 1:
            yield f"What {kind} is written in the picture?", thing.text
        if sum(t.shape == thing.shape for t in written) == 1 and thing.shape == "sign":
            yield "What does the sign say?", thing.text


def _carrier(scene: Scene, rng: random.Random) -> Proposals:
    written = [t for t in scene.things if t.text]
    if len(written) > 1:
        for thing in written:
            if sum(t.text == thing.text for t in written) == 1:
                noun = "sign" if thing.shape == "sign" else "object"
                yield f"What color is the {noun} with {thing.text}?", thing.colour


Form = Callable[[Scene, random.Random], Proposals]
FORMS: dict[str, dict[str, Form]] = {
    "mini_vqav2": {"colour": _colour, "shape": _shape, "size": _size, "count": _count, "exists": _exists},
    "mini_gqa": {
        "relation": _relation,
        "logic": _logic,
        "compare": _compare,
        "same": _same,
        "two_hop": _two_hop,
        "extreme": _extreme,
    },
    "mini_textvqa": {"read": _read, "carrier": _carrier},
}


def propose(scene: Scene, task: str, form: str, rng: random.Random) -> list[Question]:
    """All questions of one form that the scene answers, shuffled."""
    found = [Question(form, text, answer) for text, answer in FORMS[task][form](scene, rng)]
    rng.shuffle(found)
    return found


# Forms that are learned last are asked more often in training: shares of a turn, 1 for the others.
SLOW = {"count": 2, "relation": 2, "compare": 2, "read": 2, "same": 4}


def ask(scene: Scene, task: str, rng: random.Random, number: int) -> list[Question]:
    """Up to `number` questions on a scene, spread over the forms of a task and over the answers within each form."""
    queues = {}
    for form in FORMS[task]:
        seen: Counter[str] = Counter()
        ranked = []
        for question in propose(scene, task, form, rng):
            ranked.append((seen[question.answer], rng.random(), question))
            seen[question.answer] += 1
        queues[form] = [q for *_, q in sorted(ranked, key=lambda item: item[:2])]
    turns = [form for form in queues for _ in range(SLOW.get(form, 1))]
    chosen: list[Question] = []
    while len(chosen) < number and any(queues.values()):
        for form in rng.sample(turns, len(turns)):
            if queues[form] and len(chosen) < number:
                chosen.append(queues[form].pop(0))
    return chosen
