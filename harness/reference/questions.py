"""Questions about a scene, computed from its scene graph; each form is a small program with exactly one right answer.

    for q in ask(scene, "mini_gqa", random.Random(0), 8): print(q.form, q.text, q.answer)

A reference ("the small red star") always fits exactly one thing. A form proposes questions for every answer that is
possible in the scene; the answer is then drawn first, so that no answer of a form can be guessed without the image.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from harness.reference.scenes import COLOURS, SHAPES, SIZES, Scene, Thing

T = TypeVar("T", bound=Hashable)
GAP = 9.0  # pixels; a relation is asked only if two centres differ by more


@dataclass(frozen=True)
class Question:
    """A question, its answer, and its form (template)."""

    form: str
    text: str
    answer: str


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def _a(colour: str) -> str:
    return f"an {colour}" if colour == "orange" else f"a {colour}"


def _references(things: tuple[Thing, ...], hide: str = "") -> list[tuple[str, Thing]]:
    """Descriptions that fit exactly one thing and do not mention the attribute `hide`."""
    references = []
    patterns = (("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("size", "colour"))
    for pattern in patterns:
        if hide in pattern:
            continue
        counts = Counter(tuple(getattr(t, a) for a in pattern) for t in things)
        for t in things:
            if counts[tuple(getattr(t, a) for a in pattern)] == 1:
                words = [getattr(t, a) for a in pattern]
                references.append((" ".join([*words, "object"] if "shape" not in pattern else words), t))
    return references


class Placed(Protocol):
    """What has a centre, in pixels."""

    @property
    def x(self) -> float: ...

    @property
    def y(self) -> float: ...


def sides(a: Placed, b: Placed, gap: float = GAP) -> list[str]:
    """The relations of a to b that are clear: their centres differ by more than `gap` pixels."""
    clear = []
    if abs(a.x - b.x) > gap:
        clear.append("left of" if a.x < b.x else "right of")
    if abs(a.y - b.y) > gap:
        clear.append("above" if a.y < b.y else "below")
    return clear


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
    """Yes and no questions about a colour with a shape.

    The colour and the shape of a "no" question both occur in the scene, so the model has to combine them.
    """
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
        for side in sides(a, b):
            opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[side]
            yield f"Is the {words_a} {side} the {words_b}?", "yes"
            yield f"Is the {words_a} {opposite} the {words_b}?", "no"


def _logic(scene: Scene, rng: random.Random) -> Proposals:
    pairs = {(t.colour, t.shape) for t in scene.things}
    colours, shapes = sorted({c for c, _ in pairs}), sorted({s for _, s in pairs})
    options = [(c, s) for c in colours for s in shapes]
    present, absent = [o for o in options if o in pairs], [o for o in options if o not in pairs]
    for word, truth, flags in logic_forms(rng):
        if (present or not any(flags)) and (absent or all(flags)):
            (c1, s1), (c2, s2) = (rng.choice(present if flag else absent) for flag in flags)
            if (c1, s1) != (c2, s2):
                yield f"Is there {_a(c1)} {s1} {word} {_a(c2)} {s2}?", "yes" if truth else "no"


def logic_forms(rng: random.Random) -> Iterator[tuple[str, bool, tuple[bool, bool]]]:
    """(and or or, the answer, which of the two things are there): neither word gives the answer away."""
    for word in ("and", "or"):
        for truth in (True, False):
            mixed = rng.choice([(True, False), (False, True)])
            flags = rng.choice([(True, True), mixed]) if word == "or" else (True, True)
            if not truth:
                flags = rng.choice([(False, False), mixed]) if word == "and" else (False, False)
            yield word, truth, flags


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
    """The colour of one of several things of the same shape, identified by its clear relation to another thing."""
    for words, anchor in _references(scene.things):
        for shape in sorted({t.shape for t in scene.things}):
            candidates = [t for t in scene.things if t.shape == shape and t is not anchor]
            for side in ("left of", "right of", "above", "below"):
                matches = [t for t in candidates if side in sides(t, anchor)]
                unclear = [t for t in candidates if not set(sides(t, anchor)) & along(side)]
                if len(matches) == 1 and len(candidates) > 1 and not unclear:
                    yield f"What color is the {shape} {side} the {words}?", matches[0].colour


def along(side: str) -> set[str]:
    """A relation and its opposite."""
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
        yield f"What {kind} is on the {thing.colour} {thing.shape}?", thing.text
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
    questions = [Question(form, text, answer) for text, answer in FORMS[task][form](scene, rng)]
    rng.shuffle(questions)
    return questions


# Forms that the model learns last are asked more often in training: turns per round; other forms have 1.
SLOW = {"count": 2, "relation": 2, "compare": 2, "read": 2, "same": 4}


def ask(scene: Scene, task: str, rng: random.Random, number: int) -> list[Question]:
    """Up to `number` questions about a scene, spread over the forms of a task and over the answers of each form."""
    queues = {form: by_answer(propose(scene, task, form, rng), rng) for form in FORMS[task]}
    return in_turns(queues, [form for form in queues for _ in range(SLOW.get(form, 1))], rng, number)


def by_answer(questions: Sequence[Question], rng: random.Random) -> list[Question]:
    """The questions in an order in which every answer comes once before any comes again; by chance otherwise."""
    seen: Counter[str] = Counter()
    ranked = []
    for question in questions:
        ranked.append((seen[question.answer], rng.random(), question))
        seen[question.answer] += 1
    return [question for *_, question in sorted(ranked, key=lambda item: item[:2])]


def in_turns(queues: dict[T, list[Question]], turns: list[T], rng: random.Random, number: int) -> list[Question]:
    """Up to `number` questions from the fronts of these queues, in rounds of these turns, whose order is drawn."""
    chosen: list[Question] = []
    while len(chosen) < number and any(queues.values()):
        for key in rng.sample(turns, len(turns)):
            if queues[key] and len(chosen) < number:
                chosen.append(queues[key].pop(0))
    return chosen
