"""A loaded model behind lmms-eval's interface: any image-text-to-text model with its processor, decoding greedily.

lmms_eval.evaluator.simple_evaluate(model=Adapter(vlm), tasks=[task], ...)
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from transformers import LogitsProcessorList

from harness.families import encode
from harness.machine.memory import out_of_memory, release
from harness.machine.phases import inside
from harness.pictures import UNREADABLE
from harness.tasks import decoding
from harness.tasks.ahead import Ahead
from harness.tasks.truths import LONGEST
from harness.types import VLM, InputError

GREY = (128, 128, 128)
Shown = Literal["own", "blank", "shuffled"]  # the image shown with a question
# What an image encoder may give beside the features that the language model reads. With anything else, say features of
# deeper layers, the features alone are not enough.
UNREAD = {"last_hidden_state", "hidden_states", "attentions"}
AHEAD = 2  # batches to encode while a GPU answers
ROOM = 1 << 30  # bytes of encoded inputs to cache for the next trial
Places = tuple[tuple[str, int], ...]  # task and document of each question of a batch


@dataclass(frozen=True)
class Batch:
    """Model inputs of a batch of questions.

    With shared images, `distinct` holds each image once, and `order` gives the image of each question, or its rows
    where an image has several. Otherwise the inputs hold the images.
    """

    inputs: dict[str, torch.Tensor]
    distinct: dict[str, torch.Tensor] = field(default_factory=dict)
    order: tuple[int, ...] = ()


class Encoded(dict[Any, Batch]):
    """A cache of batches for trials on the same questions, of up to ROOM bytes."""

    size = 0

    def keep(self, key: Any, batch: Batch) -> None:
        size = sum(tensor.nbytes for tensors in (batch.inputs, batch.distinct) for tensor in tensors.values())
        if self.size + size <= ROOM:
            self[key] = batch
            self.size += size


@dataclass(frozen=True)
class Reply:
    """The answers to a batch, whether each passed the length limit, and optional log-probabilities.

    firsts: log-probabilities of the first tokens, (rows, vocabulary), if the adapter's `first` is set.
    """

    answers: list[str]
    overlong: list[bool]
    firsts: torch.Tensor | None


class Adapter(lmms):
    """lmms-eval's interface around a VLM: chat messages in, greedy answers of at most 16 tokens out.

    `images`: blank shows a grey image of the same size, shuffled another image of the task (the same one for all
    questions of an image). `label` distinguishes variants of one model (a plan's hash). `encoded` caches model inputs
    for adapters of the same questions. `image_ids` (per task, by document) puts questions of one image into one batch,
    so that the vision tower runs once per image. `where` names a document of a task in errors. `part` (k, n) answers
    only every n-th batch, from the k-th on. `replies`, keyed by the places of a batch, hold the replies of other
    adapters and of this one.

    Results by (task, document): `overlong`, the answers that passed the length limit, and with `first`, `firsts`, the
    log-probabilities of each answer's first token.
    """

    is_simple = False

    def __init__(
        self,
        vlm: VLM,
        *,
        batch_size: int = 64,
        images: Shown = "own",
        label: str = "",
        encoded: Encoded | None = None,
        image_ids: Mapping[str, Sequence[str]] | None = None,
        where: Callable[[str, int], str] = "task {}: document {}".format,
        first: bool = False,
        part: tuple[int, int] = (0, 1),
        replies: Mapping[Places, Reply] | None = None,
    ) -> None:
        super().__init__()
        self.vlm = vlm
        self.batch_size = batch_size
        self.images: Shown = images
        self.label = label
        self.first = first
        self.part = part
        self.replies = dict(replies or {})
        self.overlong: set[tuple[str, int]] = set()
        self.firsts: dict[tuple[str, int], torch.Tensor] = {}
        self.encoded = Encoded() if encoded is None else encoded
        self.image_ids = image_ids or {}
        self.where = where
        self.partners = {task: partners(ids, task) for task, ids in self.image_ids.items() if images == "shuffled"}
        self.shares = shares(vlm)
        # Cache key of encoded inputs: settings of tokenizer and image processor, without the weights.
        self.preparation = (vlm.name, repr(vlm.processor), vlm.processor.chat_template, images, self.shares)
        tokenizer = vlm.processor.tokenizer
        # A copy to decode with, because another thread may encode with the processor's tokenizer.
        self.tokenizer = copy.deepcopy(tokenizer) if ahead(vlm.model) else tokenizer
        self.ends = decoding.ends(vlm)

    def __repr__(self) -> str:
        images = f", {self.images} images" if self.images != "own" else ""
        return f"Adapter({self.vlm.name}, weights {self.vlm.weights_hash}, {self.label or 'as loaded'}{images})"

    def clean(self) -> None:
        """Keep the model, because the caller still uses it."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise InputError(f"task {requests[0].task_name}: scores likelihoods; choose one that generates answers")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise InputError(f"task {requests[0].task_name}: has several rounds; choose one with single questions")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests. A batch holds prompts of similar length."""
        images = [self._image(request) for request in requests]
        longest: dict[Any, int] = {}
        for image, request in zip(images, requests, strict=True):
            longest[image] = max(longest.get(image, 0), len(request.arguments[0]))
        order = sorted(
            range(len(requests)), key=lambda i: (longest[images[i]], images[i], len(requests[i].arguments[0]), i)
        )
        answers, number = [""] * len(requests), 0

        def prepare(chunk: tuple[int, ...]) -> Batch:
            return self._prepare([requests[i] for i in chunk])

        with Ahead(prepare, ahead(self.vlm.model)) as batches:
            while order:
                size, every = self.batch_size, self.part[1]
                chunk = tuple(order[:size])
                if number % every == self.part[0]:
                    coming = (tuple(order[i : i + size]) for i in range(size * every, len(order), size * every))
                    batch_answers = self._try([requests[i] for i in chunk], partial(batches.take, chunk, coming))
                    if batch_answers is None:  # not in the handler, where the error would still hold the memory
                        self.batch_size = (len(chunk) + 1) // 2
                        release()
                        continue
                    for i, answer in zip(chunk, batch_answers, strict=True):
                        answers[i] = answer
                order, number = order[len(chunk) :], number + 1
        return answers

    def _try(self, requests: Sequence[Instance], prepared: Callable[[], Batch]) -> list[str] | None:
        """The answers to a batch; None if memory is short, but a smaller batch may fit."""
        try:
            return self._answer(requests, prepared)
        except Exception as error:
            if len(requests) == 1 or not out_of_memory(error):
                raise
        return None

    def _image(self, request: Instance) -> tuple[str, str]:
        ids = self.image_ids.get(request.task_name)
        return request.task_name, ids[int(request.doc_id)] if ids else str(request.doc_id)

    def _answer(self, requests: Sequence[Instance], prepared: Callable[[], Batch]) -> list[str]:
        places = _places(requests)
        if places not in self.replies:
            self.replies[places] = self._generate(requests, prepared())
        reply = self.replies[places]
        self.overlong |= {place for place, long in zip(places, reply.overlong, strict=True) if long}
        if reply.firsts is not None:
            self.firsts |= zip(places, reply.firsts, strict=True)
        return reply.answers

    def _prepare(self, requests: Sequence[Instance]) -> Batch:
        """The model inputs of a batch, cached for the next trial on the same questions."""
        key = (self.preparation, _places(requests))
        batch = self.encoded.get(key)
        if batch is None:
            batch = self._encode(requests)
            self.encoded.keep(key, batch)
        return batch

    def _generate(self, requests: Sequence[Instance], batch: Batch) -> Reply:
        model: Any = self.vlm.model
        first = decoding.First()
        added = decoding.added(self.vlm, batch.inputs["attention_mask"])

        def generate() -> torch.Tensor:
            finite = decoding.Finite()
            watching = [finite, *([first] if self.first else []), *added]
            inputs: dict[str, Any] = place(batch.inputs, model)
            if batch.order:
                seen = model.get_image_features(**place(batch.distinct, model))
                inputs["mm_encoder_outputs"] = {"image": repeated(seen, batch.order)}
            how = {"generation_config": decoding.greedy(self.vlm), "logits_processor": LogitsProcessorList(watching)}
            tokens = model.generate(**inputs, **how)
            finite.check()
            return tokens

        with inside("generate"), torch.no_grad(), decoding.without_own_settings(model):
            try:
                tokens = generate()
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}; {broken(model, generate)}") from error
        rows = tokens[:, batch.inputs["input_ids"].shape[1] :].tolist()
        answers = [self._text(row, request.arguments[2]) for row, request in zip(rows, requests, strict=True)]
        return Reply(answers, [not self.ends & set(row) for row in rows], first.scores)

    def _text(self, tokens: list[int], settings: dict[str, Any]) -> str:
        """The answer up to the first end token, the task's token limit, or one of its `until` strings."""
        tokens = tokens[: min(LONGEST, settings.get("max_new_tokens", LONGEST))]
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        until = settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop, 1)[0] if stop else text
        return text.strip()

    def _encode(self, requests: Sequence[Instance]) -> Batch:
        images: list[list[Image.Image]] = []
        texts: list[str] = []
        names = [self.where(*place) for place in _places(requests)]
        for request, name in zip(requests, names, strict=True):
            _, to_messages, _, doc_id, task, split = request.arguments
            docs = self.task_dict[task][split]
            try:
                shown, text = read(to_messages(docs[doc_id]), task)
            except UNREADABLE as error:
                raise InputError(f"{name}: the image cannot be decoded ({error})") from error
            if self.images == "blank":
                shown = [Image.new("RGB", image.size, GREY) for image in shown]
            elif self.images == "shuffled":
                shown, _ = read(to_messages(docs[self.partners[task][doc_id]]), task)
            images.append(shown)
            texts.append(text)
        inputs = encode(self.vlm.processor, images, texts, places=names)
        flat = [image for shown in images for image in shown]
        if not self.shares or any(len(shown) != 1 for shown in images):  # some processors cut one of several otherwise
            return Batch(inputs)
        # Equal pixels decide which images are shared; ids only sort questions of one image together.
        pixels = [(image.mode, image.size, image.tobytes()) for image in flat]
        first = dict(zip(pixels, flat, strict=True))
        places = {content: i for i, content in enumerate(first)}
        inputs.pop("pixel_values")
        order = [places[content] for content in pixels]
        if self.shares == "list":
            return Batch(inputs, pictures(self.vlm, [[image] for image in first.values()]), tuple(order))
        tiles = [pictures(self.vlm, [[image]])["pixel_values"] for image in first.values()]
        rows = torch.arange(sum(map(len, tiles))).split([len(own) for own in tiles])
        return Batch(inputs, {"pixel_values": torch.cat(tiles)}, tuple(torch.cat([rows[i] for i in order]).tolist()))


def _places(requests: Sequence[Instance]) -> Places:
    return tuple((request.task_name, int(request.doc_id)) for request in requests)


def ahead(model: Any) -> int:
    """The number of batches to encode while the model answers: 0 if the model itself needs the CPU."""
    return AHEAD if model.device.type == "cuda" else 0


def broken(model: torch.nn.Module, run: Callable[[], object]) -> str:
    """Run `run` again, and describe the first module whose output is not finite, if any."""
    broken_names: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple | list) else (output,)
            finite = all(p.isfinite().all() for p in parts if isinstance(p, torch.Tensor) and p.is_floating_point())
            if not finite and not broken_names:
                broken_names.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        run()
    except FloatingPointError:
        pass  # the same error as in the first run
    finally:
        for hook in hooks:
            hook.remove()
    return (
        f"the first layer with such an output is {broken_names[0]}"
        if broken_names
        else "every layer's output is finite"
    )


def partners(image_ids: Sequence[str], task: str = "") -> list[int]:
    """For each document, the index of a document with another image: the same one for all questions of an image.

    The images form a random circle, and each image is replaced by the next one, so none stays. The same ids give the
    same circle on every machine. Raises InputError for fewer than two images.
    """
    order = sorted(set(image_ids))
    if len(order) < 2:
        raise InputError(f"task {task}: has one image only; a shuffle needs at least two")
    random.Random(0).shuffle(order)
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [image_ids.index(following[image]) for image in image_ids]


def pictures(vlm: VLM, images: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
    """The inputs of the model's vision part for these images."""
    inputs = encode(vlm.processor, images, [""] * len(images))
    model: Any = vlm.model
    return {name: inputs[name] for name in inspect.signature(model.get_image_features).parameters if name in inputs}


def shares(vlm: VLM) -> Literal["", "list", "rows"]:
    """Whether several questions can share the features of one image, and how these come: tested on two images.

    This needs a newer transformers, and a model that reads just one tensor per image, in a list, or one per row of
    pixels (a tile), as rows of one tensor. A choice of visual tokens that reads the tower's attention needs the pixels.
    """
    model: Any = vlm.model
    if getattr(getattr(model, "token_cut", None), "attention", "") == "vision":
        return ""
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        return ""
    inputs = pictures(vlm, [[Image.new("RGB", (64, 64), GREY)]] * 2)
    if "pixel_values" not in inputs:
        return ""
    with torch.no_grad():
        seen = model.get_image_features(**place(inputs, model))
    if not set(seen) <= {"pooler_output", *UNREAD}:
        return ""
    features = seen.pooler_output
    if isinstance(features, torch.Tensor):
        return "rows" if set(inputs) == {"pixel_values"} and len(features) == len(inputs["pixel_values"]) else ""
    return "list" if len(features) == 2 else ""


def repeated(seen: Any, order: Sequence[int]) -> Any:
    """The output of an image encoder with the features of these images, in this order."""
    features = seen.pooler_output
    listed = not isinstance(features, torch.Tensor)
    seen.pooler_output = tuple(features[i] for i in order) if listed else features[list(order)]
    return seen


def place(inputs: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The inputs on the model's device, with floating-point tensors in its dtype."""
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }


def read(messages: list[dict[str, Any]], task: str) -> tuple[list[Image.Image], str]:
    """The images and the text of lmms-eval's chat messages. Raises InputError for other media."""
    parts = [part for message in messages for part in message["content"]]
    media = {part["type"] for part in parts} - {"image", "text"}
    if media:
        raise InputError(f"task {task}: asks about {', '.join(sorted(media))}; choose a task with only images and text")
    images = [part["url"] for part in parts if part["type"] == "image"]
    return images, "".join(part["text"] for part in parts if part["type"] == "text")
