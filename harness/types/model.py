"""A model as pruning sees it: a `VLM` has `Block`s, a block has `Units` of two kinds; and the samples shown to it."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Rows:
    """Output rows of a Linear that produce units: unit i owns rows offset + i*width to offset + (i+1)*width."""

    module: str
    offset: int
    width: int


@dataclass(frozen=True)
class Units:
    """The removable units of one kind in one block: attention heads (or KV groups), or FFN channels.

    `producers` compute the units' activations. `consumer` is the Linear that reads them; unit i owns its input columns
    i*width to (i+1)*width. Removing a unit removes only these rows and columns. Zeroing the same columns of the
    consumer's input gives the same function at the old size.
    """

    kind: Kind
    count: int
    width: int  # consumer columns per unit
    producers: tuple[Rows, ...]
    consumer: str
    token_macs: int  # multiply-adds per token and unit, in the Linear layers
    pair_macs: int  # multiply-adds per (query, key) pair and unit, in the attention products; 0 for FFN channels
    sizes: tuple[tuple[str, str, int], ...] = ()  # (module, attribute, amount per unit) to rewrite after a cut
    gated: bool = False  # FFN only: two producers, multiplied; the activation follows the first, the gate
    activation: str = ""  # FFN only: the module between producers and consumer
    windowed: bool = False  # heads only: attention within the windows of an image

    def macs(self, extent: Extent) -> int:
        """Multiply-adds of one unit for one reference input."""
        pairs = extent.window_pairs if self.windowed else extent.pairs
        return extent.tokens * self.token_macs + pairs * self.pair_macs


@dataclass(frozen=True)
class Block:
    """One transformer block: its name (`vision.3`), module path, component, index and two kinds of units."""

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
    """The size of one reference input in a component: its tokens, and the (query, key) pairs of its attention."""

    tokens: int
    pairs: int
    window_pairs: int = 0  # (query, key) pairs of blocks with windowed attention


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
        """The (block, kind) pairs that a budget on this scope and these unit kinds covers, in the model's order."""
        kinds: tuple[Kind, ...] = ("heads", "ffn") if units == "both" else (units,)
        return [(block, kind) for block in self.blocks if scope in ("all", block.component) for kind in kinds]


@dataclass(frozen=True)
class Sample:
    """One question about one image, with the answer that calibration may use."""

    image: Image.Image
    question: str
    answer: str
    question_id: str = ""
    place: str = ""  # what identifies it in an error: file, row and ids
