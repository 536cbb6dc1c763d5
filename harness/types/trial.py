"""A trial as pure data: every setting that affects its result.

    trial = Trial(board="mine", model="mini-qwen2-vl", method="taylor", options={}, scope="vision", ...)
    trial.content()    # plain JSON values, whose hash is the trial's id

The parts are frozen values. A board file uses the same names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from harness.types.kinds import KINDS, Kind, UnitKinds
from harness.types.model import FORBID, GREEDY, Generation, Scope
from harness.types.plan import Align, Currency

MOST = 10**9  # of whatever is counted; far beyond what any trial asks for
Count = Annotated[int, Field(ge=1, le=MOST)]
Size = tuple[Count, Count]  # width and height of an image, in pixels
Mode = Literal["eager", "compile", "graphs"]
# How images become RGB: as a viewer shows them, or as lmms-eval does (16-bit greys clipped, transparency dropped).
ImageConversion = Literal["viewer", "stock"]

_TRAINING = ("first", "samples", "rounds", "loss", "steps", "batch", "rate")
_SETTINGS: dict[str, tuple[str, ...]] = {  # tuning method -> the settings that apply to it
    "none": (),
    "bias": (),
    "refit": ("rounds",),
    "full": _TRAINING,
    "lora": (*_TRAINING, "rank"),
    "projector": _TRAINING,
}


@dataclass(frozen=True)
class Tuning:
    """Recovery after pruning, the same for every method, within one compute budget: `steps` of `batch` questions.

    Losses: `answers` is the cross-entropy of the right answers, `kl` the divergence from the dense model on their
    tokens, `answers+kl+hidden` the sum of both and of the relative squared error of the last hidden states (the mix
    that Huang et al. 2026, arXiv 2604.24380, found best). `projector` trains what joins tower and language model only.
    Raises ValueError for a setting that does not apply to the method.
    """

    method: Literal["none", "full", "lora", "projector", "refit", "bias"] = "none"
    loss: Literal["answers", "kl", "answers+kl+hidden"] = "kl"
    samples: Count = 1024  # training questions of the calibration split
    steps: Count = 300  # optimiser steps over all rounds
    batch: Count = 16
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-4  # the peak learning rate
    rank: Count = 16  # rank of the adapters (lora)
    rounds: Count = 1  # times that ranking, cut and tuning repeat until the budget is met
    first: Literal["none", "bias", "refit"] = "none"  # a recovery without training, before the training
    weights: Literal["same", "int8", "int4"] = "same"  # after all else, the weights of Linears in fewer bits

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    def __post_init__(self) -> None:
        for item in fields(self)[1:]:
            applies = item.name in ("weights", *_SETTINGS[self.method])
            if not applies and getattr(self, item.name) != item.default:
                raise ValueError(f"{item.name} does not apply to method {self.method}")

    @property
    def trains(self) -> bool:
        """Whether weights are learned step by step."""
        return "steps" in _SETTINGS[self.method]

    @property
    def stages(self) -> tuple[Tuning, ...]:
        """The recoveries that follow each other after a cut; none for `none`."""
        first = (
            (Tuning(self.first, rounds=self.rounds if self.first == "refit" else 1),) if self.first != "none" else ()
        )
        return (*first, self) if self.method != "none" else ()

    def content(self) -> dict[str, Any]:
        """All settings, without those of a later version at their defaults, so that trial ids stay the same."""
        newer = {"first": "none", "weights": "same"}
        return {name: value for name, value in asdict(self).items() if name not in newer or value != newer[name]}

    def __str__(self) -> str:
        """A label such as full-kl-300: the method, loss and steps, then settings that differ from the defaults."""
        training = (self.loss, self.steps) if self.trains else ()
        settings = [(item.name, getattr(self, item.name)) for item in fields(self)[2:] if item.name != "steps"]
        differing = [
            f"{name}={value}" if isinstance(value, str) else f"{name}={value:g}"
            for name, value in settings
            if value != getattr(Tuning, name)
        ]
        return " ".join(["-".join(map(str, (self.method, *training))), *differing])


DENSE = "none"  # the method of the dense model
# What followed the cut. Only results of one regime are ranked together. A method by itself is of one of the first four;
# the recovery after the cut adds to it, and so do weights of fewer bits (`refit, int8`).
REGIMES = ("none", "bias", "refit", "trained", "trained, bias", "trained, refit", "tuned")


def regime(own: str, recovery: Tuning) -> str:
    """The regime of a method that by itself is of regime `own`, with this recovery."""
    if recovery.weights != "same":
        return f"{regime(own, replace(recovery, weights='same'))}, {recovery.weights}"
    if recovery.trains:
        return "tuned"
    if own == "trained":
        return own if recovery.method == "none" else f"{own}, {recovery.method}"
    return max(own, recovery.method, key=REGIMES.index)


@dataclass(frozen=True)
class Loading:
    """How a checkpoint is loaded, besides its dtype and device: arguments of `families.load`."""

    revision: str | None = None  # of a hub id: a commit, a tag or a branch
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    device_map: str | None = None  # accelerate's: auto, balanced, balanced_low_0, sequential
    trust_remote_code: bool = False
    random_weights: bool = False  # only config and processor: the geometry, for FLOPs and latency
    generation: Generation = GREEDY

    def content(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        settings = changed(self)
        return settings | ({"generation": changed(self.generation)} if "generation" in settings else {})

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Loading:
        """The inverse of `content`."""
        return cls(**{**content, "generation": Generation(**_tuples(content.get("generation", {})))})


def changed(values: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    return {item.name: value for item in fields(values) if (value := getattr(values, item.name)) != item.default}


@dataclass(frozen=True)
class Questions:
    """Which questions are asked: task names, a split, the number per task (None: all), and how images are converted."""

    tasks: tuple[str, ...]
    split: str = "validation"
    limit: int | None = None
    image_conversion: ImageConversion = "viewer"


@dataclass(frozen=True)
class CalibrationSpec:
    """The calibration questions: this many, drawn evenly from these tasks' calibration split."""

    samples: Count = 128
    tasks: tuple[str, ...] = ()  # empty on a board: the board's tasks
    split: str = "calibration"

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    @property
    def questions(self) -> Questions:
        return Questions(self.tasks, self.split)


@dataclass(frozen=True)
class LatencySpec:
    """What is timed, and how often. More image sizes and modes are timed after the reference input in eager mode.

    Modes: `compile` is torch.compile of each stage, `graphs` the same with CUDA graphs (skipped without a GPU).
    """

    batches: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 8)
    repeats: Annotated[int, Field(ge=3, le=MOST)] = 20
    images: tuple[Size, ...] = ()
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("eager",)

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    def content(self) -> dict[str, Any]:
        """Batches, repeats, and other settings at non-default values, so that new settings keep old trial ids."""
        return {"batches": self.batches, "repeats": self.repeats} | changed(self)


@dataclass(frozen=True)
class Chooser:
    """The method that chooses visual tokens for one that ranks other kinds, and its options."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    def __str__(self) -> str:
        return " ".join([self.method, *(f"{key}={value}" for key, value in sorted(self.options.items()))])


@dataclass(frozen=True)
class ReferenceInput:
    """The input of FLOP counts and timings."""

    image: Size = (448, 448)
    text: str = "What is in the picture?"

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID


@dataclass(frozen=True)
class Trial:
    """Every setting that affects a result, as data. The hash of these settings is the id of the trial's record."""

    board: str
    model: str
    method: str
    options: Mapping[str, Any]
    scope: Scope
    units: UnitKinds
    budget: float
    seed: int
    questions: Questions
    metrics: tuple[str, ...]
    calibration: CalibrationSpec = CalibrationSpec()
    latency: LatencySpec = LatencySpec()
    reference_input: ReferenceInput = ReferenceInput()
    dtype: str = "float32"
    tuning: Tuning = Tuning()
    control: Literal["none", "random-units"] = "none"
    sequential: bool = False  # each block is ranked after the blocks before it are cut
    shares: Mapping[Kind, float] = field(default_factory=dict)  # the share of the saving that each kind gives; {}: any
    tokens: Chooser | None = None  # who chooses visual tokens; None: the method, if `units` has tokens
    loading: Loading = Loading()
    align: Align = None
    currency: Currency = "flops"
    method_file: str | None = None  # where the method's file is, seen from the current folder; None: it is registered

    @property
    def lookup(self) -> str:
        """What the registry finds the method by: the path of its file, or its name."""
        return self.method_file or self.method

    def content(self) -> dict[str, Any]:
        """The trial as plain data. The record stores it, and its hash is the trial's id.

        The tuning stands there in words, and in full as `recovery`. Newer fields are omitted at their defaults, so that
        trial ids stay the same. The place of the method's file is no part of it: a trial has one id in every folder.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # asdict would copy nested values
        values |= {item.name: getattr(self.questions, item.name) for item in fields(values.pop("questions"))}
        values |= {"calibration": asdict(self.calibration), "latency": self.latency.content()}
        values |= {"reference_input": asdict(self.reference_input), "tuning": str(self.tuning)}
        if self.tuning != Tuning():
            values["recovery"] = self.tuning.content()
        del values["method_file"]
        if self.control == "none":
            del values["control"]
        values["loading"] = self.loading.content()
        values["tokens"] = self.tokens and asdict(self.tokens)
        unused = {"align": None, "currency": "flops", "image_conversion": "viewer", "loading": {}, "sequential": False}
        unused |= {"shares": {}, "tokens": None}
        return {name: value for name, value in values.items() if name not in unused or value != unused[name]}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Trial:
        """The trial with this content; the inverse of `content`. Further keys are ignored."""
        values = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        calibration, latency = dict(content["calibration"]), dict(content["latency"])
        reference = dict(content["reference_input"])
        return cls(
            **{
                **values,
                "questions": Questions(
                    tuple(content["tasks"]),
                    content["split"],
                    content["limit"],
                    content.get("image_conversion", "viewer"),
                ),
                "metrics": tuple(content["metrics"]),
                "calibration": CalibrationSpec(**_tuples(calibration)),
                "latency": LatencySpec(**_tuples(latency)),
                "reference_input": ReferenceInput(**_tuples(reference)),
                "tuning": Tuning(**content.get("recovery", {})),
                "tokens": Chooser(**content["tokens"]) if "tokens" in content else None,
                "loading": Loading.of(content.get("loading", {})),
            }
        )

    @property
    def id(self) -> str:
        """The id of the trial's record. It also joins the trials of two code revisions."""
        return short_hash(self.content())

    @property
    def ranking(self) -> tuple[Any, ...]:
        """Key of the trials that can share one ranking. Not for methods that rank per budget."""
        options = repr(sorted(self.options.items()))
        return (
            self.model,
            self.dtype,
            self.loading,
            self.method,
            options,
            self.calibration,
            self.questions.image_conversion,
            self.seed,
            self.sequential,
            str(self.tokens),
        )

    @property
    def calibration_questions(self) -> Questions:
        """The questions that calibration samples are drawn from, with their images as those of the asked ones."""
        return replace(self.calibration.questions, image_conversion=self.questions.image_conversion)

    @property
    def variant(self) -> str:
        """What of the method's use is not the default, as a short label: options, control, tokens, shares."""
        values = {**self.options, **({"control": self.control} if self.control != "none" else {})}
        parts = [f"{key}={value}" for key, value in sorted(values.items())]
        shares = "+".join(f"{kind}:{self.shares[kind]:g}" for kind in KINDS if kind in self.shares)
        others = {"sequential": self.sequential, f"tokens={self.tokens}": self.tokens, f"shares={shares}": shares}
        return ",".join([*parts, *(label for label, value in others.items() if value)])

    def __str__(self) -> str:
        """Short label in progress lines and failures: method, scope and budget."""
        return f"{self.method} {self.scope} {self.budget:g}"


def short_hash(mapping: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of the mapping's canonical JSON; the order of its keys does not matter."""
    text = json.dumps(dict(mapping), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with each JSON list turned back into a tuple."""

    def restore(value: Any) -> Any:
        return tuple(map(restore, value)) if isinstance(value, list) else value

    return {key: restore(value) for key, value in values.items()}
