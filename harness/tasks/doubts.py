"""What of a question set can be used, but hardly as it was meant: warnings for whoever made the set.

doubts = Doubts()
doubts.words(doc, "mine.parquet: row 0")
doubts.picture(content, "mine.parquet: row 0")    # raises InputError for what is no image
doubts.lines()
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from PIL import Image, ImageChops

from harness import pictures
from harness.tasks.truths import LONGEST, OFFICIAL, normal, texts
from harness.types import InputError

# Text that the tokenizers of some models read as one token, such as <image>, <|image_pad|>, </s> and [INST].
TOKEN = re.compile(r"<\|[^<>|\s]+\|>|</?[A-Za-z][\w-]*>|\[/?INST\]")
RATIO = 200  # of the sides, from which Qwen2-VL's processor refuses an image
SMALLEST = 8  # pixels per side


class Doubts:
    """Collects what is doubtful: a line per kind, with the first row in full and the number of others."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}  # kind -> the first row and what is doubtful there
        self._rows: dict[str, tuple[str, int]] = {}  # kind -> the last such row, and their number
        self._pictures: dict[bytes, dict[str, str]] = {}  # hash of an image's bytes -> what is doubtful by kind
        self._names: dict[bytes, str] = {}  # hash of an image's bytes -> its id
        self._named: dict[str, bytes] = {}  # id of an image -> the hash of its bytes

    def words(self, doc: Mapping[str, Any], where: str) -> None:
        """Look at a row's question and answers."""
        answers, form = texts(doc), normal(doc)
        if token := TOKEN.search(doc["question"]):
            self._add("token", where, f"the question holds {token[0]}; a model to which that is a token refuses it")
        if "answers" in doc and len(answers) < OFFICIAL:
            number = f"{len(answers)} annotators" if len(answers) > 1 else "one annotator"
            self._add(
                "few",
                where,
                f"{number}, where official sets have {OFFICIAL}: the score counts those who agree, so it is not"
                " comparable with theirs",
            )
        for answer in answers:
            if not form(answer).strip():
                self._add(
                    "empty",
                    where,
                    f"the answer {answer!r:.80} is empty to the scorer, which drops articles and punctuation:"
                    " a model that says nothing gets marks",
                )
            elif form(answer) != form(" ".join(answer.split())):
                self._add("spaces", where, f"the answer {answer!r:.80} cannot score: no model's answer has its spaces")
            elif len(answer.split()) > LONGEST:
                self._add(
                    "long",
                    where,
                    f"an answer of {len(answer.split())} words cannot score: models answer in {LONGEST} tokens at most",
                )

    def picture(self, content: bytes | None, where: str, name: str | None = None) -> None:
        """Look at a row's image and its id, if it has one. Raises InputError unless it is a whole image.

        Equal bytes are decoded once.
        """
        if not content:
            raise InputError(
                f"{where}: column 'image' has no bytes; store the encoded image (PNG, JPEG) in image.bytes"
            )
        digest = sha256(content).digest()
        if digest not in self._pictures:
            try:
                self._pictures[digest] = _oddities(pictures.whole(content))
            except pictures.UNREADABLE as error:
                raise InputError(
                    f"{where}: column 'image' cannot be decoded ({error}); store a whole PNG or JPEG"
                ) from error
        for kind, detail in self._pictures[digest].items():
            self._add(kind, where, detail)
        if name is not None:
            if self._named.setdefault(name, digest) != digest:
                self._add("named", where, f"another image has the id '{name}' too; intervals take both for one")
            if self._names.setdefault(digest, name) != name:
                self._add("names", where, f"image '{name}' is also '{self._names[digest]}'; intervals take it for two")

    def _add(self, kind: str, where: str, detail: str) -> None:
        self._lines.setdefault(kind, f"{where}: {detail}")
        last, number = self._rows.get(kind, ("", 0))
        self._rows[kind] = (where, number + (where != last))

    def lines(self) -> list[str]:
        """The lines, in the order of their first rows."""
        more = {kind: number - 1 for kind, (_, number) in self._rows.items()}
        return [line + (f" (and {more[kind]} more)" if more[kind] else "") for kind, line in self._lines.items()]


def _oddities(image: Image.Image) -> dict[str, str]:
    """What is doubtful about a picture, by kind."""
    odd = {}
    width, height = image.size
    if max(width, height) > RATIO * min(width, height):
        odd["ratio"] = f"an image of {width}x{height} pixels: some processors refuse more than {RATIO}:1"
    elif min(width, height) < SMALLEST:
        odd["small"] = f"an image of {width}x{height} pixels: some processors refuse it, and none sees much"
    if pictures.special(image):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of what lmms-eval does
            stock = image.convert("RGB")
        if ImageChops.difference(pictures.as_shown(image), stock).getbbox():
            what = "16 bits" if pictures.deep(image) else "transparent parts"
            odd["shown"] = f"an image with {what}: shown as in a viewer; lmms-eval differs (image_conversion: stock)"
    return odd
