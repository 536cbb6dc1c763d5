"""The budget of a trial, and the plan that meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from harness.types.kinds import BOTH, Kind, UnitKinds
from harness.types.model import Block, Component, Extent, Scope

TOLERANCE = 0.01  # largest relative distance of a plan from its budget, and of measured from stated FLOPs

Currency = Literal["flops", "params", "latency"]  # what a budget is a share of
# A multiple; "auto": the one that suits the device and dtype; "off": none; None: "auto" on a GPU, else "off".
Align = int | Literal["auto", "off"] | None


@dataclass(frozen=True)
class Budget:
    """The share `keep` of the FLOPs of these unit kinds in this scope that may remain, on the reference input.

    With `rates` (seconds per multiply-add, by component and kind) the budget is a share of time; `fixed` is the time
    that no cut can save. `shares` says which share of the saving each kind gives; without it, the solver chooses.
    `fewer` has the extents of blocks that see fewer tokens than the dense model's, by name: their units save less, and
    the budget stays a share of the dense cost.
    """

    scope: Scope
    keep: float
    units: UnitKinds = BOTH
    extents: Mapping[Component, Extent] = field(default_factory=dict)
    align: int = 1  # widths of kept heads and channels are multiples of this
    rates: Mapping[tuple[Component, Kind], float] = field(default_factory=dict)
    fixed: float = 0.0
    shares: Mapping[Kind, float] = field(default_factory=dict)
    fewer: Mapping[str, Extent] = field(default_factory=dict)

    def extent(self, block: Block) -> Extent:
        """The tokens and pairs that this block sees."""
        return self.fewer.get(block.name) or self.extents[block.component]


@dataclass(frozen=True)
class Keep:
    """The kept units, as sorted indices; none, where a whole block goes."""

    indices: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """The chosen option of the block's `Options`: its position, and its label for people."""

    position: int
    label: str


@dataclass(frozen=True)
class TokenPlan:
    """The share of each row's visual tokens that goes on from a layer of the language model on, and who chooses them.

    attention and options: as in `TokenRule`.
    """

    layer: int
    share: float
    method: str
    attention: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The kept part of a model: a Keep or a Choice per (block name, kind). A part that has neither stays whole.

    `widths`: how many units the model has that the plan is of, for all blocks that it may cut; {} if nobody wrote it
    down, as before plans had widths.
    """

    parts: Mapping[tuple[str, Kind], Keep | Choice]
    requested: float
    achieved: float
    align: int = 1
    currency: Currency = "flops"
    widths: Mapping[tuple[str, Kind], int] = field(default_factory=dict)
    tokens: TokenPlan | None = None
    coarse: bool = False  # whole layers alone do not land within 1 % of the request: the nearest plan below it

    @property
    def gone(self) -> set[str]:
        """The names of the blocks that go as a whole."""
        return {name for (name, kind), part in self.parts.items() if kind == "layers" and part == Keep(())}

    def to_json(self) -> dict[str, Any]:
        """The plan as a record holds it; `Plan.of` reads it back."""
        blocks: dict[str, dict[str, Any]] = {}
        for (block, kind), part in self.parts.items():
            value = list(part.indices) if isinstance(part, Keep) else {"option": part.position, "label": part.label}
            blocks.setdefault(block, {})[kind] = value
        content = {"requested": self.requested, "achieved": self.achieved, "blocks": blocks}
        widths: dict[str, dict[str, int]] = {}
        for (block, kind), count in self.widths.items():
            widths.setdefault(block, {})[kind] = count
        optional: dict[str, tuple[Any, Any]] = {
            "align": (self.align, 1),
            "currency": (self.currency, "flops"),
            "widths": (widths, {}),
            "tokens": (None if self.tokens is None else asdict(self.tokens), None),
            "coarse": (self.coarse, False),
        }
        return content | {name: value for name, (value, default) in optional.items() if value != default}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Plan:
        """The plan with this JSON; the inverse of `to_json`."""
        parts: dict[tuple[str, Kind], Keep | Choice] = {}
        for block, kinds in content["blocks"].items():
            for kind, part in kinds.items():
                is_choice = isinstance(part, Mapping)
                parts[block, kind] = Choice(part["option"], part["label"]) if is_choice else Keep(tuple(part))
        widths: dict[tuple[str, Kind], int] = {
            (block, kind): count for block, kinds in content.get("widths", {}).items() for kind, count in kinds.items()
        }
        optional = {name: content[name] for name in ("align", "currency", "coarse") if name in content}
        if "tokens" in content:
            optional["tokens"] = TokenPlan(**content["tokens"])
        return cls(parts, content["requested"], content["achieved"], **optional, widths=widths)


def differs(stated: float, measured: float) -> bool:
    """Whether two shares of FLOPs differ by more than the tolerance."""
    return abs(measured - stated) > TOLERANCE * stated
