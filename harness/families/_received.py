"""The attention that tokens receive in one module of a model, for methods that choose visual tokens by it.

    watch = AttentionReader(model, "model.language_model.layers.1.self_attn", "text")

The module keeps its attention; beside it, the softmax of the queries that count is computed once more. InfoPrune-Bench
copies this file into a checkpoint with fewer tokens. It needs only torch and transformers.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
from functools import partial
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


class AttentionReader:
    """Lets the attention of a module note what its tokens receive.

    attention: `text`, of the last token of the prompt in the layer at `path`, or `vision`, in the tower's module at
    `path`; then the features of images carry what their tokens receive, wherever they are encoded.
    """

    def __init__(self, model: Any, path: str, attention: str) -> None:
        module = model.get_submodule(path)
        self.attention, self.base = attention, module.config._attn_implementation
        self.classed = attention == "vision" and has_class_token(model)
        self.queries = slice(-1, None) if attention == "text" else slice(0, 1) if self.classed else slice(None)
        self.ends: Any = None  # (batch,), where each prompt ends that an answer follows; None: at the right
        self.received: Any = None  # a list while it notes
        self._of_images: Any = None
        module.config, module._watch = copy.copy(module.config), self
        module.config._attn_implementation = NAME
        if attention == "vision":
            core, plain = model.base_model, model.base_model.get_image_features
            self._signature = inspect.signature(plain)
            encode: Any = partial(self._encode, core, plain)
            encode.__signature__ = self._signature  # callers pass what it names
            core.get_image_features = encode

    def start(self, features: Any, ends: Any) -> None:
        """Before a prompt is read. features: those of images that were encoded before, or None. ends: see `ends`."""
        if self.attention == "text":
            self.received, self.ends = [], ends
        self._of_images = getattr(features, "received", None)

    def stop(self) -> None:
        """Note nothing until the next start."""
        self.received, self._of_images, self.ends = None, None, None

    def of(self, visual: torch.Tensor) -> torch.Tensor:
        """What the visual tokens receive, (batch, length), where `visual` marks them."""
        if self.attention == "text":
            return self.received[0]
        if self._of_images is None:
            raise ValueError("tokens: this choice reads the tower's attention, so it needs the images and not features")
        return torch.zeros(visual.shape, device=visual.device).masked_scatter(visual, self._of_images.to(visual.device))

    def _encode(self, core: Any, plain: Any, *args: Any, **kwargs: Any) -> Any:
        """The features of images, with what their tokens receive in the tower: the mean of a token's patches."""
        self.received = []
        features = plain(*args, **kwargs)
        received, self.received = self.received, None
        inputs = self._signature.bind(*args, **kwargs).arguments
        parts = features.pooler_output
        count = sum(part.numel() // part.shape[-1] for part in parts)
        if inputs.get("image_grid_thw") is not None:
            tokens = _of_groups(core.visual, received, count, inputs["image_grid_thw"])
        else:
            tiles = torch.cat(received)
            if self.classed and tiles.numel() != count:
                tiles = tiles[:, 1:]
            packs = hasattr(core, "pack_image_features")
            tokens = _packed(core, tiles, inputs) if packs else _of_squares(tiles, count)
        features.received = self._of_images = tokens.float()
        return features


def _of_groups(tower: Any, received: list[torch.Tensor], count: int, grids: torch.Tensor) -> torch.Tensor:
    """Of images of any size, whose patches lie in groups, one group a token."""
    tokens = torch.cat([part.flatten() for part in received]).view(count, -1).mean(1)
    if hasattr(tower, "window_size"):  # the groups are sorted by window
        sizes = {name: getattr(tower, name) for name in ("spatial_merge_size", "window_size", "patch_size")}
        order, _ = get_vision_window_index(grids, **sizes)
        tokens = tokens[order.to(tokens.device).argsort()]
    return tokens


def _of_squares(tiles: torch.Tensor, count: int) -> torch.Tensor:
    """Of square tiles, (tiles, patches), whose patches are joined in squares."""
    side, step = math.isqrt(tiles.shape[1]), math.isqrt(tiles.numel() // count)
    if step > 1:
        tiles = nn.functional.avg_pool2d(tiles.view(-1, 1, side, side), step)
    return tiles.flatten()


def _packed(core: Any, tiles: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Of tiles whose features LLaVA-OneVision packs without margins; the ends of lines receive nothing."""
    config, sizes = core.config, inputs["image_sizes"]
    numbers = inputs.get("batch_num_images")
    numbers = [1] * len(sizes) if numbers is None else numbers.tolist()
    count = vars(sys.modules[type(core).__module__])["image_size_to_num_patches"]
    split = [
        count(size, config.image_grid_pinpoints, config.vision_config.image_size) if number == 1 else 1
        for size, number in zip(sizes, (n for n in numbers for _ in range(n)), strict=True)
    ]
    line, aspect = tiles.new_zeros(1), config.vision_aspect_ratio
    packed, _ = core.pack_image_features(
        tiles[..., None].split(split), sizes, image_newline=line, vision_aspect_ratio=aspect
    )
    return torch.cat(packed).flatten()


def watched(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any
) -> tuple[torch.Tensor, Any]:
    """The module's own attention; where asked, it also notes what keys receive, averaged over heads: (batch, keys)."""
    watch = module._watch
    base = ALL_ATTENTION_FUNCTIONS.get_interface(watch.base, _eager)
    if watch.received is not None:
        mask = attention_mask
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None].bool()
        if watch.ends is None:
            asked = query[:, :, watch.queries], key, None if mask is None else mask[:, :, watch.queries]
        else:
            asked = _at(watch.ends.to(query.device), query, key, mask)
        weights = _weights(*asked, settings.get("scaling"))
        watch.received.append(weights.mean((1, 2)))
    return base(module, query, key, value, attention_mask, **settings)


def _at(places: torch.Tensor, query: torch.Tensor, key: torch.Tensor, mask: Any) -> tuple[Any, Any, Any]:
    """The query at one place of each row, (batch,), all keys, and a mask that also hides the keys after this place."""
    rows = torch.arange(len(places), device=places.device)
    ahead = (torch.arange(key.shape[-2], device=places.device) > places[:, None])[:, None, None]
    if mask is None:
        mask = ~ahead
    else:
        mask = mask.expand(len(rows), -1, -1, -1)
        mask = mask if mask.shape[2] == 1 else mask[rows, :, places][:, :, None]
        mask = mask[..., : key.shape[-2]]
        mask = mask & ~ahead if mask.dtype == torch.bool else mask.masked_fill(ahead, torch.finfo(mask.dtype).min)
    return query[rows, :, places][:, :, None], key, mask


def _for_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values, (batch, groups, keys, width), once per head; while a trace runs, sizes are tensors of the CPU."""
    batch, groups, keys, width = states.shape
    return states[:, :, None].expand(batch, groups, heads // groups, keys, width).reshape(batch, heads, keys, width)


def _weights(query: torch.Tensor, key: torch.Tensor, mask: Any, scaling: float | None) -> torch.Tensor:
    key = _for_heads(key, query.shape[1])
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        mask = mask[..., : key.shape[-2]]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    return scores.float().softmax(-1)


def _eager(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = _weights(query, key, attention_mask, settings.get("scaling")).to(query.dtype)
    return (weights @ _for_heads(value, query.shape[1])).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, watched)
