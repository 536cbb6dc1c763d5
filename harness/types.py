"""The values that every other module passes around: plain, frozen, importing nothing of ours and no torch.

The path of a trial in these words: a `VLM` has `Block`s, a block has `Units` of two kinds, a method turns
them into a `Ranking`, the solver turns a ranking and a `Budget` into a `Plan`, and a `Trial` ends as a `Record`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

if TYPE_CHECKING:
    import torch
    from PIL import Image

Component = Literal["vision", "language"]
Scope = Literal["vision", "language", "all"]
Kind = Literal["heads", "ffn"]
UnitKinds = Literal["both", "heads", "ffn"]
Currency = Literal["flops", "params", "latency"]  # what a budget is a share of
Align = int | Literal["auto", "off"] | None  # a multiple, the measured one, none; None: the measured one on a GPU only

SCOPES: tuple[Scope, ...] = ("vision", "language", "all")
UNIT_KINDS: tuple[UnitKinds, ...] = ("both", "heads", "ffn")


class InputError(Exception):
    """Input that cannot be used: one line naming the file and key and what would be right. Exit code 2."""

    @classmethod
    def unknown(cls, kind: str, name: object, choices: Iterable[str], where: str = "") -> InputError:
        """For a name that is not among the choices: lists them, and the nearest first if one is near."""
        known = sorted(choices)
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return cls(f"{where}unknown {kind} {str(name)!r}; {hint}choose from: {', '.join(known)}")


# --- the model as pruning sees it -------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Output rows of the Linear `module` that units make: unit i owns rows offset + i*width to offset + (i+1)*width."""

    module: str
    offset: int
    width: int


@dataclass(frozen=True)
class Units:
    """The removable units of one kind in one block: attention heads (or KV groups), or FFN channels.

    `producers` make the units' activations, `consumer` is the Linear that reads them: unit i owns its input columns
    i*width to (i+1)*width. Taking a unit away removes those rows and columns, nothing else; zeroing the
    columns of the consumer's input is the same function at the old size.
    """

    kind: Kind
    count: int
    width: int  # consumer columns per unit
    producers: tuple[Rows, ...]
    consumer: str
    token_macs: int  # multiply-adds per token and unit, in the Linear layers
    pair_macs: int  # multiply-adds per (query, key) pair and unit, in the attention products; 0 for FFN channels
    sizes: tuple[tuple[str, str, int], ...] = ()  # (module, attribute, amount per unit) to rewrite after a cut
    gated: bool = False  # FFN only: two producers, multiplied
    activation: str = ""  # FFN only: the module between producers and consumer
    windowed: bool = False  # heads only: they attend within the windows of an image

    def macs(self, extent: Extent) -> int:
        """Multiply-adds of one unit for one reference input."""
        pairs = extent.window_pairs if self.windowed else extent.pairs
        return extent.tokens * self.token_macs + pairs * self.pair_macs


@dataclass(frozen=True)
class Block:
    """One transformer block: its name (`vision.3`), its module's path, where it stands and its two kinds of units."""

    name: str
    path: str
    component: Component
    index: int
    heads: Units
    ffn: Units

    def units(self, kind: Kind) -> Units:
        return self.heads if kind == "heads" else self.ffn


@dataclass(frozen=True)
class Extent:
    """How much one reference input asks of a component: tokens, and (query, key) pairs of its attention."""

    tokens: int
    pairs: int
    window_pairs: int = 0  # of those blocks that attend within windows


@dataclass(frozen=True)
class VLM:
    """A loaded vision-language model: the transformers model and processor, and its blocks."""

    name: str
    family: str  # transformers' model type, the name of the file in families/
    model: torch.nn.Module
    processor: Any
    blocks: tuple[Block, ...]
    weights_hash: str

    def block(self, name: str) -> Block:
        return next(block for block in self.blocks if block.name == name)

    def select(self, scope: Scope, units: UnitKinds = "both") -> list[tuple[Block, Kind]]:
        """The (block, kind) pairs that a budget on this scope and these unit kinds is about, in order."""
        kinds: tuple[Kind, ...] = ("heads", "ffn") if units == "both" else (units,)
        return [(b, k) for b in self.blocks if scope in ("all", b.component) for k in kinds]


@dataclass(frozen=True)
class Sample:
    """One question about one image, with the answer a calibration pass may look at."""

    image: Image.Image
    question: str
    answer: str
    question_id: str = ""


# --- what a method says -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Additive:
    """The damage of removing each unit, in one currency over all blocks and kinds; cut what costs least per FLOP."""

    damage: tuple[float, ...]


@dataclass(frozen=True)
class Ordinal:
    """Only an order within the block (larger stays longer); every block and kind loses the same share of its FLOPs."""

    order: tuple[float, ...]


@dataclass(frozen=True)
class LowRank:
    """Two factors that stand in for a Linear: y = up @ (down @ x) + bias. down: (rank, in), up: (out, rank)."""

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Dense:
    """A Linear that stands in for another: y = weight @ x + bias. weight: (out, in), bias: (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


Replacement = LowRank | Dense | None  # None: the input passes as it is (an activation is left out)


@dataclass(frozen=True)
class Option:
    """One way to run a block's FFN: its cost, its loss (same currency as Additive), and how to make it when chosen."""

    label: str  # "dense", or what is kept: "rank 12/9"
    token_macs: int  # multiply-adds per token of the whole FFN
    loss: float
    # Module path -> what stands there; a `make` of None leaves the block as it is.
    make: Callable[[], Mapping[str, Replacement]] | None = None


@dataclass(frozen=True)
class Options:
    """Cost and loss points for one block, dense included (loss 0, make None); factors are made when applied."""

    points: tuple[Option, ...]
    # The same with every rank and width a multiple of a step; None where a method has no such points.
    aligned: Callable[[int], Options] | None = field(default=None, compare=False, repr=False)


def hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the lower convex hull of (cost, loss) points that are given in order of falling cost."""
    chain: list[int] = []
    for i, (x, y) in enumerate(points):
        while len(chain) > 1:
            (x0, y0), (x1, y1) = points[chain[-2]], points[chain[-1]]
            if (y1 - y0) * (x0 - x) < (y - y0) * (x0 - x1):
                break
            chain.pop()
        chain.append(i)
    return chain


Score = Additive | Ordinal | Options


@dataclass(frozen=True)
class Ranking:
    """A method's whole answer: a score per (block name, kind); `log` (curves, spectra) goes into the record as JSON."""

    scores: Mapping[tuple[str, Kind], Score]
    log: Mapping[str, Any] = field(default_factory=dict)


# --- what the harness makes of it -------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """The fraction `keep` of the FLOPs of these unit kinds in this scope, on a reference input, that may remain.

    With `rates` (seconds per multiply-add, by component and kind) the budget is a share of time; `fixed` is the time
    that no cut can save.
    """

    scope: Scope
    keep: float
    units: UnitKinds = "both"
    extents: Mapping[Component, Extent] = field(default_factory=dict)
    align: int = 1  # widths of kept heads and channels are multiples of it
    rates: Mapping[tuple[Component, Kind], float] = field(default_factory=dict)
    fixed: float = 0.0


@dataclass(frozen=True)
class Keep:
    """The units that stay, as sorted indices."""

    indices: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """The option taken from the block's `Options`, by position, with its label for the reader."""

    position: int
    label: str


@dataclass(frozen=True)
class Plan:
    """What stays: per (block name, kind) a Keep or a Choice. What is not named stays whole."""

    parts: Mapping[tuple[str, Kind], Keep | Choice]
    requested: float
    achieved: float
    align: int = 1
    currency: Currency = "flops"

    def to_json(self) -> dict[str, Any]:
        blocks: dict[str, dict[str, Any]] = {}
        for (block, kind), part in self.parts.items():
            value = list(part.indices) if isinstance(part, Keep) else {"option": part.position, "label": part.label}
            blocks.setdefault(block, {})[kind] = value
        made = {"requested": self.requested, "achieved": self.achieved, "blocks": blocks}
        more = {"align": (self.align, 1), "currency": (self.currency, "flops")}
        return made | {name: value for name, (value, unused) in more.items() if value != unused}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Plan:
        """The plan that this JSON is of; the inverse of `to_json`."""
        parts: dict[tuple[str, Kind], Keep | Choice] = {}
        for block, kinds in content["blocks"].items():
            for kind, part in kinds.items():
                chosen = isinstance(part, Mapping)
                parts[block, kind] = Choice(part["option"], part["label"]) if chosen else Keep(tuple(part))
        more = {name: content[name] for name in ("align", "currency") if name in content}
        return cls(parts, content["requested"], content["achieved"], **more)


_Positive = Annotated[int, Field(ge=1)]
_SETTINGS = {  # a tuning's method -> the settings it has a use for
    "none": (),
    "refit": ("samples", "rounds"),
    "full": ("samples", "rounds", "loss", "steps", "batch", "rate"),
    "lora": ("samples", "rounds", "loss", "steps", "batch", "rate", "rank"),
}


@dataclass(frozen=True)
class Tuning:
    """Recovery after pruning, the same for every method, within one compute budget: `steps` of `batch` questions.

    Raises ValueError for a setting that its method has no use for.
    """

    method: Literal["none", "full", "lora", "refit"] = "none"
    loss: Literal["answers", "kl"] = "kl"  # cross-entropy of the answers, or KL from the dense model on their tokens
    samples: _Positive = 1024  # questions of the calibration split that it learns from
    steps: _Positive = 300  # of the optimiser, over all rounds
    batch: _Positive = 16
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-4  # the learning rate at its highest
    rank: _Positive = 16  # of the adapters (lora)
    rounds: _Positive = 1  # of rank, cut, tune, on the way to the budget

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - a board file's unknown key is an error

    def __post_init__(self) -> None:
        for item in fields(self)[1:]:
            if item.name not in _SETTINGS[self.method] and getattr(self, item.name) != item.default:
                raise ValueError(f"{item.name} does not apply to method {self.method}")

    def __str__(self) -> str:
        """none, refit, full-kl-300: the method, what it learns from and for how long; then what is not the default."""
        learns = (self.loss, self.steps) if "steps" in _SETTINGS[self.method] else ()
        more = [(f.name, getattr(self, f.name)) for f in fields(self)[2:] if f.name != "steps"]
        changed = [f"{name}={value:g}" for name, value in more if value != getattr(Tuning, name)]
        return " ".join(["-".join(map(str, (self.method, *learns))), *changed])


@dataclass(frozen=True)
class Loading:
    """How a checkpoint becomes a model, beside its dtype and device: the arguments of `families.load`."""

    revision: str | None = None  # of a hub id: a commit, a tag or a branch
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    device_map: str | None = None  # accelerate's: auto, balanced, balanced_low_0, sequential
    trust_remote_code: bool = False
    random_weights: bool = False  # config and processor only: the geometry, for FLOPs and latency

    def content(self) -> dict[str, Any]:
        """What is not the default."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) != item.default}


@dataclass(frozen=True)
class Trial:
    """Everything that decides a result, as data: hashed to the id under which its record is stored."""

    board: str
    model: str
    method: str
    options: Mapping[str, Any]
    scope: Scope
    units: UnitKinds
    budget: float
    seed: int
    tasks: tuple[str, ...]
    split: str
    limit: int | None
    metrics: tuple[str, ...]
    calibration: Mapping[str, Any]  # {"samples": 128, "tasks": [...]}
    latency: Mapping[str, Any]  # {"batches": [1, 8], "repeats": 20}
    reference_input: Mapping[str, Any]  # {"image": [96, 96], "text": "..."}
    dtype: str = "float32"
    tuning: Tuning = Tuning()
    control: Literal["none", "random-units"] = "none"
    loading: Loading = Loading()
    align: Align = None
    currency: Currency = "flops"

    def content(self) -> dict[str, Any]:
        """The trial as plain data: what its id is made of, and what its record holds of it.

        The tuning stands there in words, and in full as `recovery`; what there was not always is left out where unused.
        """
        found = {item.name: getattr(self, item.name) for item in fields(self)}  # as asdict, which copies in depth
        found["tuning"] = str(self.tuning)
        if self.tuning != Tuning():
            found["recovery"] = asdict(self)["tuning"]
        if self.control == "none":
            del found["control"]
        found["loading"] = self.loading.content()
        unused = {"align": None, "currency": "flops", "loading": {}}
        return {name: value for name, value in found.items() if name not in unused or value != unused[name]}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Trial:
        """The trial with this content, or of a record that holds more; the inverse of `content`."""
        given = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        given |= {name: tuple(given[name]) for name in ("tasks", "metrics")}
        tuning, loading = Tuning(**content.get("recovery", {})), Loading(**content.get("loading", {}))
        return cls(**{**given, "tuning": tuning, "loading": loading})

    @property
    def ranking(self) -> tuple[str, ...]:
        """What trials have in common that one ranking serves (but of a method that ranks for each budget anew)."""
        options, drawn = sorted(self.options.items()), sorted(self.calibration.items())
        return (self.model, self.dtype, self.method, repr(options), repr(drawn), str(self.seed))

    @property
    def variant(self) -> str:
        """Options that differ from the method's defaults, and a control, as a short label; empty if there are none."""
        control = {"control": self.control} if self.control != "none" else {}
        return ",".join(f"{key}={value}" for key, value in sorted({**self.options, **control}.items()))
