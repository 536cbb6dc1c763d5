"""Figures that papers report for their own methods (`reported.yaml`). Pages show them beside measured rows, marked.

python -c "from harness.report.reported import figures; print(figures({'infoprune'}))"
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

MARK = "reported, not measured"
HEADS = ("method", "FLOPs reduction", "speedup", "source")


@dataclass(frozen=True)
class Figure:
    """A paper's own figures for its method, as factors against its dense model."""

    method: str
    flops_reduction: float
    latency_speedup: float
    note: str
    source: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The figure as a row under HEADS."""
        factors = (f"{factor:g}×" for factor in (self.flops_reduction, self.latency_speedup))
        return (self.method, *factors, f"{self.source} ({self.note})")


def figures(methods: Collection[str]) -> list[Figure]:
    """The reported figures of these methods."""
    return [figure for figure in _all() if figure.method in methods]


@cache
def _all() -> tuple[Figure, ...]:
    text = Path(__file__).with_name("reported.yaml").read_text(encoding="utf-8")
    return tuple(Figure(**entry) for entry in yaml.safe_load(text))
