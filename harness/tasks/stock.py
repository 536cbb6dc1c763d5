"""lmms-eval's own way of asking a model: its stock loop at batch 1, here around a model that is loaded already.

    suite.run(Stock(vlm))

The loop is that of its chat adapter for Hugging Face models that take an image processor's inputs as they come (no
JPEG on the way): one question at a time, template, processor, generate, decode. It is what our adapter is held against.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

from lmms_eval.api.model import lmms

from harness.types import VLM

with warnings.catch_warnings():  # importing it silences every warning of the process
    from lmms_eval.models.chat.internvl_hf import InternVLHf


class Stock(InternVLHf):
    """lmms-eval's adapter, its `generate_until` untouched, with a model in memory in place of one that it loads."""

    def __init__(self, vlm: VLM) -> None:
        lmms.__init__(self)
        self._model: Any = vlm.model
        self.processor: Any = vlm.processor
        self._tokenizer = vlm.processor.tokenizer
        self._device: Any = self._model.device
        self.accelerator: Any = SimpleNamespace(is_main_process=True, unwrap_model=lambda model: model)
        self.batch_size_per_gpu, self.use_cache = 1, True
        self._rank, self._world_size = 1, 1  # rank 0 draws a progress bar
        self.min_patches = self.max_patches = self.num_frames = self.fps = None  # InternVL's alone
        self.label = f"{vlm.name}, weights {vlm.weights_hash}"

    def __repr__(self) -> str:
        return f"Stock({self.label})"

    def clean(self) -> None:
        """Keep the model: it belongs to the caller."""
