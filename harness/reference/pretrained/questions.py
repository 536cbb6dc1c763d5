"""Questions about scenes of real things: what is seen, how it stands together, what is known of it, what is written.

    for q in ask(scene, ("things_gqa",), random.Random(0), 8): print(q.form, q.text, q.answer)

Each form is a small program over the scene and the catalogue with one right answer. Forms propose candidates for every
answer that they can truthfully give; `ask` draws an answer first, so that no answer can be guessed blind.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from harness.reference.pretrained.scenes import GAP, SIDE, WORDS, Item, Scene
from harness.reference.pretrained.things import ALSO, ASKED_KINDS, MASS, NAMES, PLURAL_KINDS, THINGS, Thing
from harness.reference.questions import Question, along, by_answer, in_turns, logic_forms, sides

Proposals = Iterator[tuple[str, str]]  # (text, answer)
EDGES = {
    "furthest to the left": lambda i: i.x,
    "furthest to the right": lambda i: -i.x,
    "nearest to the top": lambda i: i.y,
    "nearest to the bottom": lambda i: -i.y,
}
LEGS = {"2": "two", "4": "four", "6": "six", "8": "eight"}  # in words: GQA's scorer takes answers and digits literally


def _things(scene: Scene) -> list[tuple[Item, Thing]]:
    return [(item, item.thing) for item in scene.items if item.thing]


def _also(scene: Scene) -> set[str]:
    """Names that fit something in the scene beside its own name: a taxi is a car too."""
    return {name for _, thing in _things(scene) for name in ALSO.get(thing.name, ())}


def _single(scene: Scene) -> list[tuple[Item, Thing]]:
    """Things whose name fits no second item: they can be called by it."""
    counts, also = Counter(thing.name for _, thing in _things(scene)), _also(scene)
    return [(item, thing) for item, thing in _things(scene) if counts[thing.name] == 1 and thing.name not in also]


def _extremes(items: Sequence[Item]) -> Iterator[tuple[str, Item]]:
    """(phrase, item) for the item that clearly stands furthest to a side of the picture."""
    for phrase, key in EDGES.items():
        ranked = sorted(items, key=key)
        if len(ranked) > 1 and key(ranked[1]) - key(ranked[0]) > GAP:
            yield phrase, ranked[0]


def _absent(scene: Scene, rng: random.Random) -> Iterator[Thing]:
    """For every thing in the scene one that is not there, often of its kind: wrong names are as likely as right."""
    present, also = {thing.name for _, thing in _things(scene)}, _also(scene)
    for name in sorted(present):
        kind = THINGS[name].kind if rng.random() < 0.5 else ""
        choices = [n for n in NAMES if n not in present | also and (not kind or THINGS[n].kind == kind)]
        if choices:
            yield THINGS[rng.choice(choices)]


# --- things_vqav2: what, colour, count, existence, yes or no ----------------------------------------------------


def _what(scene: Scene, rng: random.Random) -> Proposals:
    for phrase, item in _extremes(scene.items):
        if item.thing:
            yield f"What is {phrase}?", item.thing.name
    plates = Counter(item.colour for item in scene.items if item.thing)
    for item, thing in _things(scene):
        if item.colour and plates[item.colour] == 1:
            yield f"What is on the {item.colour} plate?", thing.name
    kinds = Counter(thing.kind for _, thing in _things(scene))
    for _, thing in _things(scene):
        if kinds[thing.kind] == 1 and thing.kind in PLURAL_KINDS:
            yield f"Which {thing.kind} is in the picture?", thing.name


def _colour(scene: Scene, rng: random.Random) -> Proposals:
    for item, thing in _single(scene):
        if item.colour:
            yield f"What color is the plate under the {thing.name}?", item.colour
    for phrase, item in _extremes([item for item in scene.items if item.thing]):
        if item.colour:
            yield f"What color is the plate under the thing {phrase}?", item.colour
    yield "What color is the background?", scene.ground


def _count(scene: Scene, rng: random.Random) -> Proposals:
    things = [thing for _, thing in _things(scene)]
    yield "How many things are there, not counting plates?", str(len(scene.items))
    for kind, plural in PLURAL_KINDS.items():
        yield f"How many {plural} are there?", str(sum(thing.kind == kind for thing in things))
    for name in sorted({thing.name for thing in things} - _also(scene) - MASS):
        if not THINGS[name].plural:
            yield f"How many {THINGS[name].several} are there?", str(sum(thing.name == name for thing in things))
    yield "How many plates are there?", str(sum(bool(item.colour) for item in scene.items if item.thing))


def _exists(scene: Scene, rng: random.Random) -> Proposals:
    for name in sorted({thing.name for _, thing in _things(scene)}):
        yield f"{_is_there(THINGS[name])}?", "yes"
    for thing in _absent(scene, rng):
        yield f"{_is_there(thing)}?", "no"


def _is_there(thing: Thing) -> str:
    return f"{'Are' if thing.plural else 'Is'} there {thing.phrase}"


def _check(scene: Scene, rng: random.Random) -> Proposals:
    plates = sorted({item.colour for item in scene.items if item.thing and item.colour})
    for item, thing in _single(scene):
        for colour in plates:
            if item.colour:
                yield _verb(thing, f"on the {colour} plate"), "yes" if item.colour == colour else "no"
    for phrase, item in _extremes(scene.items):
        if item.thing:
            yield f"Is the thing {phrase} {item.thing.phrase}?", "yes"
            others = [thing for _, thing in _things(scene) if thing.name not in {item.name, *ALSO.get(item.name, ())}]
            others = others or list(_absent(scene, rng))
            if others:
                yield f"Is the thing {phrase} {rng.choice(others).phrase}?", "no"


def _verb(thing: Thing, rest: str) -> str:
    return f"{'Are' if thing.plural else 'Is'} the {thing.name} {rest}?"


# --- things_gqa: relations, logic, knowledge --------------------------------------------------------------------


def _relation(scene: Scene, rng: random.Random) -> Proposals:
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for (a, first), (b, second) in itertools.permutations(_single(scene), 2):
        for side in sides(a, b, GAP):
            yield _verb(first, f"{side} the {second.name}"), "yes"
            yield _verb(first, f"{opposite[side]} the {second.name}"), "no"


def _neighbour(scene: Scene, rng: random.Random) -> Proposals:
    for item, thing in _single(scene):
        others = [other for other in scene.items if other is not item]
        for side in ("left of", "right of", "above", "below"):
            there = [other for other in others if side in sides(other, item, GAP) and _mostly(side, other, item)]
            unclear = [other for other in others if not along(side) & set(sides(other, item, GAP))]
            if len(there) == 1 and there[0].thing and not unclear:
                yield f"What is {side} the {thing.name}?", there[0].name


def _mostly(side: str, other: Item, item: Item) -> bool:
    """Whether one would say that it stands on this side, and not rather above or beside."""
    across, down = abs(other.x - item.x), abs(other.y - item.y)
    return 2 * across >= down if side in ("left of", "right of") else 2 * down >= across


def _place(scene: Scene, rng: random.Random) -> Proposals:
    for item, thing in _single(scene):
        if abs(item.x - SIDE / 2) > GAP:
            yield _verb(thing, "on the left or on the right"), "left" if item.x < SIDE / 2 else "right"
        if abs(item.y - SIDE / 2) > GAP:
            yield _verb(thing, "at the top or at the bottom"), "top" if item.y < SIDE / 2 else "bottom"


def _logic(scene: Scene, rng: random.Random) -> Proposals:
    present = [THINGS[name] for name in sorted({thing.name for _, thing in _things(scene)})]
    absent = list(_absent(scene, rng))
    for word, truth, flags in logic_forms(rng):
        if (present or not any(flags)) and (absent or all(flags)):
            a, b = (rng.choice(present if flag else absent) for flag in flags)
            if a.name != b.name:
                a, b = sorted((a, b), key=lambda thing: not thing.plural)  # are there grapes or a dog
                yield f"{_is_there(a)} {word} {b.phrase}?", "yes" if truth else "no"


def _choice(scene: Scene, rng: random.Random) -> Proposals:
    """Which of them: exactly one has a property, and it is known of all the others that they have not."""
    things = [thing for _, thing in _single(scene)]
    if len(things) < 2 or len(things) < len(scene.items):
        return
    for text, property_ in PROPERTIES.items():
        values = [property_(thing) for thing in things]
        if None not in values and sum(map(bool, values)) == 1:
            yield f"Which of the things {text}?", things[values.index(True)].name
    sizes = sorted(things, key=lambda thing: thing.size)
    if sizes[0].size and sizes[-1].size - sizes[-2].size >= 2:
        yield "Which of the things is the largest in real life?", sizes[-1].name
    if sizes[0].size and sizes[1].size - sizes[0].size >= 2:
        yield "Which of the things is the smallest in real life?", sizes[0].name


PROPERTIES: dict[str, Callable[[Thing], bool | None]] = {
    "can fly": lambda thing: thing.fly if thing.kind != "sky" else None,
    "can be eaten": lambda thing: thing.eat,
    "has wheels": lambda thing: thing.wheels,
    "is an animal": lambda thing: thing.animal,
    "makes music": lambda thing: None if thing.name == "bell" or thing.kind == "device" else thing.kind == "instrument",
}


def _fact(scene: Scene, rng: random.Random) -> Proposals:
    def said(thing: Thing, who: str) -> Proposals:
        if thing.eat is not None:
            yield f"Is {who} something to eat?", _yes(thing.eat)
        if thing.fly is not None and thing.kind in ("animal", "vehicle"):
            yield f"Can {who} fly?", _yes(thing.fly)
        if thing.wheels is not None and thing.kind in ("vehicle", "animal", "furniture", "tool"):
            yield f"Does {who} have wheels?", _yes(thing.wheels)
        if thing.animal is not None:
            yield f"Is {who} an animal?", _yes(thing.animal)
        if thing.legs:
            number = LEGS.get(thing.legs, "")
            if number:
                yield f"Does {who} have {number} legs?", "yes"
            yield f"Does {who} have {rng.choice([other for other in LEGS.values() if other != number])} legs?", "no"

    for phrase, item in _extremes(scene.items):
        if item.thing:
            yield from said(item.thing, f"the thing {phrase}")
    plates = Counter(item.colour for item in scene.items if item.thing)
    for item, thing in _things(scene):
        if item.colour and plates[item.colour] == 1:
            yield from said(thing, f"the thing on the {item.colour} plate")


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _kind(scene: Scene, rng: random.Random) -> Proposals:
    for phrase, item in _extremes(scene.items):
        if item.thing and item.thing.kind in ASKED_KINDS:
            yield f"What kind of thing is {phrase}?", item.thing.kind


def _trait(scene: Scene, rng: random.Random) -> Proposals:
    """What it gives, and where it lives."""
    kinds = Counter(thing.kind for _, thing in _things(scene))
    spoken = [(f"the {item.thing.kind} {phrase}", item.thing) for phrase, item in _extremes(scene.items) if item.thing]
    spoken += [(f"the {thing.kind}", thing) for _, thing in _things(scene) if kinds[thing.kind] == 1]
    for who, thing in spoken:
        if thing.gives:
            yield f"What does {who} give?", thing.gives
        if thing.home:
            yield f"Where does {who} live?", thing.home


# --- things_textvqa: words, numbers, what carries them ----------------------------------------------------------


def _carriers(scene: Scene) -> Iterator[tuple[str, Item]]:
    """(phrase, item) for lettered items that one phrase fits: the red sign, the shirt, the label under the dog.

    A label looks like a white sign, so beside one neither "the sign" nor "the white sign" is clear.
    """
    lettered = [item for item in scene.items if item.text]
    shapes, labels = Counter(item.kind for item in lettered), any(item.thing for item in lettered)
    for item in lettered:
        if item.thing:
            yield f"the label under the {item.name}", item
            continue
        unclear = labels and item.kind == "sign"
        if not (unclear and item.colour == "white"):
            yield f"the {item.colour} {item.kind}", item
        if shapes[item.kind] == 1 and not unclear:
            yield f"the {item.kind}", item


def _word(scene: Scene, rng: random.Random) -> Proposals:
    for phrase, item in _carriers(scene):
        if not item.text.isdigit():
            yield f"What does {phrase} say?", item.text
    words = [item for item in scene.items if item.text and not item.text.isdigit()]
    if len(words) == 1:
        yield "What word is written in the picture?", words[0].text


def _number(scene: Scene, rng: random.Random) -> Proposals:
    for phrase, item in _carriers(scene):
        if item.text.isdigit():
            yield f"What number is on {phrase}?", item.text
    numbers = [item for item in scene.items if item.text.isdigit()]
    if len(numbers) == 1:
        yield "What number is in the picture?", numbers[0].text


def _carrier(scene: Scene, rng: random.Random) -> Proposals:
    lettered = [item for item in scene.items if item.text]
    for item in lettered:
        if len(lettered) > 1 and not item.thing:
            number = "number" if item.text.isdigit() else "word"
            yield f"What color is the {item.kind} with the {number} {item.text}?", item.colour
        if item.thing:
            yield f"Which thing has the label {item.text}?", item.name


def _says(scene: Scene, rng: random.Random) -> Proposals:
    lettered = [item for item in scene.items if item.text]
    for phrase, item in _carriers(scene):
        number = item.text.isdigit()
        others = [other.text for other in lettered if other is not item and other.text.isdigit() == number]
        wrong = rng.choice(others) if others and rng.random() < 0.6 else ""
        while not wrong or wrong == item.text:
            wrong = str(rng.randint(0, 99)) if number else rng.choice(WORDS)
        for text, answer in ((item.text, "yes"), (wrong, "no")):
            yield f"Is the number on {phrase} {text}?" if number else f"Does {phrase} say {text}?", answer


Form = Callable[[Scene, random.Random], Proposals]
FORMS: dict[str, dict[str, Form]] = {
    "things_vqav2": {"what": _what, "colour": _colour, "count": _count, "exists": _exists, "check": _check},
    "things_gqa": {
        "relation": _relation,
        "neighbour": _neighbour,
        "place": _place,
        "logic": _logic,
        "choice": _choice,
        "fact": _fact,
        "kind": _kind,
        "trait": _trait,
    },
    "things_textvqa": {"word": _word, "number": _number, "carrier": _carrier, "says": _says},
}
WRITING_TASK = "things_textvqa"


def propose(scene: Scene, task: str, form: str, rng: random.Random) -> list[Question]:
    """All questions of one form that the scene answers, shuffled."""
    questions = [Question(form, text, answer) for text, answer in FORMS[task][form](scene, rng)]
    rng.shuffle(questions)
    return questions


def ask(scene: Scene, tasks: Sequence[str], rng: random.Random, number: int) -> list[Question]:
    """Up to `number` questions, spread over the forms of these tasks and over the answers within each form.

    Their forms are called `task.form`; those of a task that is named twice are asked twice as often.
    """
    queues, turns = {}, [(task, form) for task in tasks for form in FORMS[task]]
    for task, form in dict.fromkeys(turns):
        named = [replace(question, form=f"{task}.{form}") for question in propose(scene, task, form, rng)]
        queues[task, form] = by_answer(named, rng)
    return in_turns(queues, turns, rng, number)
