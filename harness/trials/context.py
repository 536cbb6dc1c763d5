"""The services for a metric: inputs and timed stages of the reference input, a cache, and a place for samples.

context = Context(ReferenceInput((448, 448)))
context.stages(vlm, batch=8)["vision"]()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from harness import families
from harness.families import encode
from harness.progress import Progress, silent
from harness.trials.caches import ModelCache
from harness.types import VLM, Component, Extent, ReferenceInput

if TYPE_CHECKING:
    import pyarrow
    import torch

    from harness.machine.limits import Machine

T = TypeVar("T")


class Context:
    """The `MetricContext` of one trial, or of any reference input. The owner of the models passes its `values`."""

    def __init__(
        self,
        reference: ReferenceInput,
        progress: Progress = silent,
        replies: Mapping[Any, Any] | None = None,
        values: ModelCache | None = None,
    ) -> None:
        self.reference = reference
        self.progress = progress
        self.replies: Mapping[Any, Any] = replies or {}
        self.samples: pyarrow.Table | None = None
        self._values = values or ModelCache()

    def inputs(self, vlm: VLM, batch: int = 1, image_size: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
        """The reference input, repeated `batch` times and encoded for this model. `image_size` replaces its size."""
        return self._encoded(vlm, batch, image_size or self.reference.image, next(vlm.model.parameters()).device)

    def extents(self, vlm: VLM) -> Mapping[Component, Extent]:
        """The tokens and (query, key) pairs of the reference input, which a budget in FLOPs is about."""
        inputs = self._encoded(vlm, 1, self.reference.image, "cpu")  # a model without weights has no device
        return families.family(vlm.family).extents(vlm.model, inputs)

    def _encoded(self, vlm: VLM, batch: int, size: tuple[int, int], device: Any) -> dict[str, torch.Tensor]:
        image = Image.new("RGB", size, (128, 128, 128))
        return encode(vlm.processor, [[image]] * batch, [self.reference.text] * batch, device=device)

    def stages(
        self, vlm: VLM, batch: int = 1, image_size: tuple[int, int] | None = None
    ) -> dict[str, Callable[[], Any]]:
        """The timed stages (vision, language, all, decode) of this model on the reference input."""
        return families.family(vlm.family).stages(vlm.model, self.inputs(vlm, batch, image_size))

    def machine(self, vlm: VLM) -> Machine:
        """Measured rates of this model's device in its dtype."""
        from harness.machine.limits import machine

        weight = next(vlm.model.parameters())
        return machine(str(weight.device), str(weight.dtype).removeprefix("torch."))

    def once(self, vlm: VLM, key: Any, make: Callable[[], T]) -> T:
        """The result of `make`, cached under `key` while the model lives, for other metrics and trials too."""
        return self._values.get(vlm, key, make)

    def attach_samples(self, table: pyarrow.Table) -> None:
        """Store these answers beside the record."""
        self.samples = table
