"""A model as pruning sees it: a `VLM` has `Block`s, a block has `Units` of some kinds; and the samples shown to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from harness.types.kinds import BOTH, WIDTHS, Kind, UnitKinds, kinds

if TYPE_CHECKING:
    import torch
    from PIL import Image


Component = Literal["vision", "language"]
Scope = Literal["vision", "language", "all"]
SCOPES: tuple[Scope, ...] = ("vision", "language", "all")


@dataclass(frozen=True)
class Rows:
    """Output rows of a Linear that produce units: unit i owns rows offset + i*width to offset + (i+1)*width."""

    module: str
    offset: int
    width: int


@dataclass(frozen=True)
class Units:
    """The removable units of one kind in one block: attention heads (or KV groups), FFN channels, or the whole block.

    A whole block is one unit; its `consumer` is the block, and it has no producers. For the others,
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
    factored: bool = field(default=False, compare=False)  # a Linear stands as two factors: it cannot be cut or ranked

    def macs(self, extent: Extent) -> int:
        """Multiply-adds of one unit for one reference input."""
        pairs = extent.window_pairs if self.windowed else extent.pairs
        return extent.tokens * self.token_macs + pairs * self.pair_macs


@dataclass(frozen=True)
class Block:
    """One transformer block: its name (`vision.3`), module path, component, index and units.

    A block keeps its name when blocks before it go; its path and index then change. `fixed` says why the whole block
    cannot go; it is empty for a block that can.
    """

    name: str
    path: str
    component: Component
    index: int
    heads: Units
    ffn: Units
    fixed: str = ""

    @property
    def layer(self) -> Units:
        """The whole block as one unit: all of its heads and channels."""
        heads, ffn = self.heads, self.ffn
        return Units(
            kind="layers",
            count=1,
            width=1,
            producers=(),
            consumer=self.path,
            token_macs=heads.count * heads.token_macs + ffn.count * ffn.token_macs,
            pair_macs=heads.count * heads.pair_macs,
            windowed=heads.windowed,
        )

    def units(self, kind: Kind) -> Units:  # raises KeyError for a kind that no block has
        return {"heads": self.heads, "ffn": self.ffn, "layers": self.layer}[kind]


@dataclass(frozen=True)
class Extent:
    """The size of one reference input in a component: its tokens, and the (query, key) pairs of its attention."""

    tokens: int
    pairs: int
    window_pairs: int = 0  # (query, key) pairs of blocks with windowed attention


FORBID = {"extra": "forbid"}  # an unknown key of a board file is an error
Token = Annotated[int, Field(ge=0)]  # a token's id


@dataclass(frozen=True)
class Generation:
    """What a board adds to greedy decoding, for a checkpoint that needs it; transformers' names and meanings.

    Nothing else changes answers: what a checkpoint's generation_config.json says of decoding is left out.
    """

    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0
    suppress_tokens: tuple[Token, ...] = ()
    bad_words_ids: tuple[Annotated[tuple[Token, ...], Field(min_length=1)], ...] = ()

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID


GREEDY = Generation()  # with nothing added


@dataclass(frozen=True)
class VLM:
    """A loaded vision-language model: the transformers model and processor, and its blocks."""

    name: str
    family: str  # transformers' model type, the name of the file in families/
    model: torch.nn.Module
    processor: Any
    blocks: tuple[Block, ...]
    weights_hash: str
    generation: Generation = GREEDY
    generation_file: Mapping[str, Any] | None = None  # the checkpoint's generation_config.json, if it has one
    notes: tuple[str, ...] = ()  # what of the checkpoint was left out or filled in, a line each

    def block(self, name: str) -> Block:
        return next(block for block in self.blocks if block.name == name)

    def select(self, scope: Scope, units: UnitKinds = BOTH) -> list[tuple[Block, Kind]]:
        """The (block, kind) pairs that a budget on this scope and these unit kinds covers, in the model's order."""
        of_blocks: list[Kind] = [kind for kind in kinds(units) if kind != "tokens"]  # no block has tokens
        return [(block, kind) for block in self.blocks if scope in ("all", block.component) for kind in of_blocks]

    def counted(self, scope: Scope, units: UnitKinds = BOTH) -> list[tuple[Block, Kind]]:
        """The heads and channels whose cost a budget on this scope and these unit kinds is a share of.

        A whole layer costs what all of its heads and channels cost, and fewer tokens make all of them cheaper.
        """
        return self.select(scope, units if set(kinds(units)) <= set(WIDTHS) else BOTH)


@dataclass(frozen=True)
class Sample:
    """One question about one image, with the answer that calibration may use."""

    image: Image.Image
    question: str
    answer: str
    question_id: str = ""
    place: str = ""  # what identifies it in an error: file, row and ids
