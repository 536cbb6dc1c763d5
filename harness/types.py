"""The values that every other module passes around: plain, frozen, importing nothing of ours and no torch.

The path of a trial in these words: a `VLM` has `Block`s, a block has `Units` of two kinds, a method turns
them into a `Ranking`, the solver turns a ranking and a `Budget` into a `Plan`, and a `Trial` ends as a `Record`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from PIL import Image

Component = Literal["vision", "language"]
Scope = Literal["vision", "language", "all"]
Kind = Literal["heads", "ffn"]
UnitKinds = Literal["both", "heads", "ffn"]

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

    def macs(self, extent: Extent) -> int:
        """Multiply-adds of one unit for one reference input."""
        return extent.tokens * self.token_macs + extent.pairs * self.pair_macs


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
class Option:
    """One way to run a block's FFN: its cost, its loss (same currency as Additive), and how to make it when chosen."""

    label: str  # "dense", or what is kept: "rank 12/9"
    token_macs: int  # multiply-adds per token of the whole FFN
    loss: float
    make: Callable[[], Mapping[str, LowRank]] | None = None  # module path -> factors; None leaves the block as it is


@dataclass(frozen=True)
class Options:
    """Cost and loss points for one block, dense included (loss 0, make None); factors are made when applied."""

    points: tuple[Option, ...]


Score = Additive | Ordinal | Options


@dataclass(frozen=True)
class Ranking:
    """A method's whole answer: a score per (block name, kind); `log` (curves, spectra) goes into the record as JSON."""

    scores: Mapping[tuple[str, Kind], Score]
    log: Mapping[str, Any] = field(default_factory=dict)


# --- what the harness makes of it -------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """The fraction `keep` of the FLOPs of these unit kinds in this scope that may remain."""

    scope: Scope
    keep: float
    units: UnitKinds = "both"


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

    def to_json(self) -> dict[str, Any]:
        blocks: dict[str, dict[str, Any]] = {}
        for (block, kind), part in self.parts.items():
            value = list(part.indices) if isinstance(part, Keep) else {"option": part.position, "label": part.label}
            blocks.setdefault(block, {})[kind] = value
        return {"requested": self.requested, "achieved": self.achieved, "blocks": blocks}


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
    tuning: str = "none"

    @property
    def variant(self) -> str:
        """Options that differ from the method's defaults, as a short label; empty for the plain method."""
        return ",".join(f"{key}={value}" for key, value in sorted(self.options.items()))
