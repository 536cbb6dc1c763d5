"""The embedded model: a small trained Qwen2-VL checkpoint, its question sets, and the recipe that made both."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"  # a plain transformers checkpoint folder
DATA = FOLDER / "data"  # <task>/<split>.parquet
