"""The attention that tokens receive in one module of a model, for methods that choose visual tokens by it.

    watch = Watch(model, "model.language_model.layers.1.self_attn", "text")

The module keeps its attention; beside it, the softmax of the queries that count is computed once more. InfoPrune-Bench
copies this file into a checkpoint with fewer tokens. It needs only torch and transformers.
"""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import get_vision_window_index

NAME = "watched"


def has_class_token(model: Any) -> bool:
    """Whether the tower has a class token, whose attention is read instead of all patches'."""
    return any(name.endswith(("class_embedding", "cls_token")) for name, _ in model.named_parameters())


class Watch:
    """Lets the attention at `path` note what its tokens receive: of the last token (text), or in the tower (vision)."""

    def __init__(self, model: Any, path: str, attention: str) -> None:
        module = model.get_submodule(path)
        base = getattr(module, "watched_as", module.config._attn_implementation)
        module.config = copy.copy(module.config)
        module.config._attn_implementation = NAME
        module.received, module.watched_as = None, base
        module.watched_rows = {"text": "last", "vision": "first" if has_class_token(model) else "all"}[attention]
        self.module, self.attention = module, attention
        self._core: Any = None
        self._inputs: dict[str, Any] = {}

    def start(self, core: Any, inputs: dict[str, Any]) -> None:
        """Before a pass of the whole model with these inputs."""
        self.module.received = []
        names = ("image_grid_thw", "image_sizes", "batch_num_images")
        self._core, self._inputs = core, {name: inputs[name] for name in names if inputs.get(name) is not None}

    def stop(self) -> None:
        """Note nothing until the next start."""
        self.module.received = None
        self._core, self._inputs = None, {}

    def of_text(self) -> torch.Tensor:
        """What the tokens of the prompts receive, (batch, length)."""
        return self.module.received[0]

    def of_images(self, visual: torch.Tensor) -> torch.Tensor:
        """What the visual tokens receive in the tower, zeros elsewhere: (batch, length). `visual` marks them.

        A token made from several patches has their mean. Zeros everywhere if no image was encoded, as when the language
        model is timed by itself.
        """
        received, full = self.module.received, torch.zeros(visual.shape, device=visual.device)
        if not received and self._core is None:
            return full
        if not received and visual.any():
            raise ValueError("tokens: the tower's attention is read, so images must come as pixels, not as features")
        tokens = self._of_groups(received, int(visual.sum())) if "image_grid_thw" in self._inputs else None
        if tokens is None:
            tokens = self._of_tiles(torch.cat(received), int(visual.sum()))
        return full.masked_scatter(visual, tokens.float())

    def _of_groups(self, received: list[torch.Tensor], count: int) -> torch.Tensor:
        """Of images of any size, whose patches lie in groups, one group a token."""
        tokens = torch.cat([part.flatten() for part in received]).view(count, -1).mean(1)
        tower = self._core.visual
        if hasattr(tower, "window_size"):  # the groups are sorted by window
            sizes = {name: getattr(tower, name) for name in ("spatial_merge_size", "window_size", "patch_size")}
            order, _ = get_vision_window_index(self._inputs["image_grid_thw"], **sizes)
            tokens = tokens[order.to(tokens.device).argsort()]
        return tokens

    def _of_tiles(self, tiles: torch.Tensor, count: int) -> torch.Tensor:
        """Of square tiles, (tiles, patches), whose patches are joined in squares or packed without their margins."""
        if self.module.watched_rows == "first" and tiles.numel() != count:
            tiles = tiles[:, 1:]
        if hasattr(self._core, "pack_image_features"):
            return self._packed(tiles)
        side, step = math.isqrt(tiles.shape[1]), math.isqrt(tiles.numel() // count)
        if step > 1:
            tiles = nn.functional.avg_pool2d(tiles.view(-1, 1, side, side), step)
        return tiles.flatten()

    def _packed(self, tiles: torch.Tensor) -> torch.Tensor:
        """As LLaVA-OneVision packs the features of tiles; the ends of lines receive nothing."""
        config, sizes = self._core.config, self._inputs["image_sizes"]
        numbers = self._inputs.get("batch_num_images", torch.ones(len(sizes), dtype=torch.long)).tolist()
        count = sys.modules[type(self._core).__module__].image_size_to_num_patches  # pyright: ignore
        split = [
            count(size, config.image_grid_pinpoints, config.vision_config.image_size) if number == 1 else 1
            for size, number in zip(sizes, (n for n in numbers for _ in range(n)), strict=True)
        ]
        line, aspect = tiles.new_zeros(1), config.vision_aspect_ratio
        packed, _ = self._core.pack_image_features(
            tiles[..., None].split(split), sizes, image_newline=line, vision_aspect_ratio=aspect
        )
        return torch.cat(packed).flatten()


def watched(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any
) -> tuple[torch.Tensor, Any]:
    """The module's own attention; where asked, it also notes what keys receive, averaged over heads: (batch, keys)."""
    base = ALL_ATTENTION_FUNCTIONS.get_interface(module.watched_as, _eager)
    if module.received is not None:
        rows = {"last": slice(-1, None), "first": slice(0, 1), "all": slice(None)}[module.watched_rows]
        mask = attention_mask
        if mask is not None:
            mask = mask[:, None, None].bool() if mask.ndim == 2 else mask[:, :, rows]
        weights = _weights(query[:, :, rows], key, mask, settings.get("scaling"))
        module.received.append(weights.mean((1, 2)))
    return base(module, query, key, value, attention_mask, **settings)


def _weights(query: torch.Tensor, key: torch.Tensor, mask: Any, scaling: float | None) -> torch.Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        mask = mask[..., : key.shape[-2]]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    return scores.float().softmax(-1)


def _eager(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = _weights(query, key, attention_mask, settings.get("scaling")).to(query.dtype)
    values = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    return (weights @ values).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, watched)
