"""lmms-eval's own way to ask a model: its stock loop at batch 1, around an already loaded model.

    suite.run(Stock(vlm))

The loop belongs to its chat adapter for Hugging Face models that take an image processor's inputs without a JPEG step:
one question at a time, template, processor, generate, decode. Our adapter is compared with it.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

from lmms_eval.api.model import lmms

from harness.types import VLM

with warnings.catch_warnings():  # its import silences all warnings of the process
    from lmms_eval.models.chat.internvl_hf import InternVLHf


class Stock(InternVLHf):
    """lmms-eval's adapter with unchanged `generate_until`, around a model in memory instead of one that it loads."""

    def __init__(self, vlm: VLM) -> None:
        lmms.__init__(self)
        self._model: Any = vlm.model
        self.processor: Any = vlm.processor
        self._tokenizer = vlm.processor.tokenizer
        self._device: Any = self._model.device
        self.accelerator: Any = SimpleNamespace(is_main_process=True, unwrap_model=lambda model: model)
        self.batch_size_per_gpu, self.use_cache = 1, True
        self._rank, self._world_size = 1, 1  # rank 0 draws a progress bar
        self.min_patches = self.max_patches = self.num_frames = self.fps = None  # only InternVL uses these
        self.label = f"{vlm.name}, weights {vlm.weights_hash}"

    def __repr__(self) -> str:
        return f"Stock({self.label})"

    def clean(self) -> None:
        """Keep the model, because the caller still uses it."""
