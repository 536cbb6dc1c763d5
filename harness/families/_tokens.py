"""Fewer visual tokens from one layer of the language model on: a hook per layer, and a cache that holds what is kept.

    attach(model, {"layer": 2, "share": 0.25, "language": "model.language_model", ...}, keep)

`keep` says which tokens go on. Everything around the layers still sees all tokens: the cache reports the full length,
and the language model's output has zeros where tokens were dropped. InfoPrune-Bench copies this file into a checkpoint
with fewer tokens. It needs only torch and transformers.
"""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from harness.families._received import AttentionReader


class TokenError(ValueError):
    """The settings do not fit the model."""


def attach(model: Any, settings: dict[str, Any], keep: Any) -> TokenCut:
    """Cut the tokens of `model` in place; `settings` are the fields of `TokenCut`, `keep` the method's function."""
    try:
        cut = TokenCut(keep, **settings)
    except TypeError as error:
        raise TokenError(f"tokens: {error}") from error
    layers = model.get_submodule(cut.language).layers
    if not 0 <= cut.layer < len(layers):
        raise TokenError(f"tokens.layer: {cut.layer} is beyond the {len(layers)} layers of the language model")
    model.token_cut = cut
    model.get_submodule(cut.language.rpartition(".")[0]).register_forward_pre_hook(cut.mark, with_kwargs=True)
    language = model.get_submodule(cut.language)
    language.register_forward_pre_hook(cut.begin, with_kwargs=True)
    language.register_forward_hook(cut.end)
    for index, layer in enumerate(layers):
        if index >= cut.layer:
            layer.register_forward_pre_hook(partial(cut.before, index), with_kwargs=True)
            layer.register_forward_hook(partial(cut.after, index))
    if cut.attention == "text" and cut.layer == 0:
        raise TokenError("tokens.layer: attention of the text is read in the layer before, so not 0")
    if cut.attention != "none":
        path = f"{cut.language}.layers.{cut.layer - 1}.self_attn" if cut.attention == "text" else cut.tower
        cut.watch(AttentionReader(model, path, cut.attention))
    return cut


def kept(count: int, share: float) -> int:
    """The number of visual tokens of a row that go on, of `count`; at least one."""
    return min(count, max(1, math.floor(share * count + 0.5)))


class Held(DynamicLayer):
    """A layer of the cache that holds fewer tokens than the model has read.

    slots, valid: (batch, held), the place of each held token in the padded prompt, and whether others may attend to it.
    With a sliding window, it also holds tokens that have left the window; the mask hides them.
    """

    def __init__(self, slots: torch.Tensor, valid: torch.Tensor, length: int) -> None:
        super().__init__()
        self.slots, self.valid, self.length = slots, valid, length
        self.full = bool(valid.all())

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.is_initialized:  # the first tokens are the prompt's, whose slots are known
            new = torch.arange(key_states.shape[-2], device=self.slots.device) + self.length
            self.slots = torch.cat([self.slots, new.expand(len(self.slots), -1)], 1)
            self.valid = torch.cat([self.valid, torch.ones_like(self.slots[:, -len(new) :], dtype=torch.bool)], 1)
            self.length += len(new)
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        return self.length if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if tokens_to_remove:
            self.slots, self.valid = self.slots[:, :tokens_to_remove], self.valid[:, :tokens_to_remove]
            self.length += tokens_to_remove

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self.batch_select_slots(beam_idx.to(self.slots.device))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.batch_select_slots(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.batch_select_slots(torch.arange(len(self.slots)).repeat_interleave(repeats).to(self.slots.device))

    def batch_select_slots(self, rows: torch.Tensor) -> None:
        self.slots, self.valid = self.slots[rows], self.valid[rows]

    def allowed(self, queries: int, window: int | None) -> torch.Tensor | None:
        """Which held and new keys the next `queries` tokens may read, (batch, 1, queries, keys); None: all."""
        if queries == 1 and self.full and window is None:
            return None
        new = torch.arange(queries, device=self.slots.device) + self.length
        keys = torch.cat([self.slots, new.expand(len(self.slots), -1)], 1)[:, None, None]
        real = torch.cat([self.valid, torch.ones_like(keys[:, 0, 0, -queries:], dtype=torch.bool)], 1)[:, None, None]
        places = new[:, None]
        mask = real & (keys <= places)
        return mask if window is None else mask & (keys > places - window)


class TokenCut(nn.Module):
    """What goes on from `layer`: of each row's visual tokens, the `share` that `keep` chooses.

    language: path of the language model. image: id of the image token. attention: what `keep` may see: none, text (what
    the last token attends to in the layer before) or vision (what patches receive in the tower, in the module at
    `tower`). tile: visual tokens of one tile where that is fixed, else 0. options: further arguments of `keep`.
    """

    # Of the pass that runs: which tokens are visual (batch, length), their positions, and what is left of each row, as
    # places (batch, longest) and whether others may attend to it. None: nothing was dropped.
    _visual: Any
    _positions: Any
    _slots: Any
    _valid: Any

    def __init__(
        self,
        keep: Any,
        *,
        layer: int,
        share: float,
        language: str,
        image: int,
        attention: str = "none",
        tower: str = "",
        tile: int = 0,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.keep = keep
        self.layer, self.share, self.language, self.image = layer, share, language, image
        self.attention, self.tower, self.tile, self.options = attention, tower, tile, dict(options or {})
        self.asked = set(inspect.signature(keep).parameters)
        if not 0 < share <= 1:
            raise TokenError(f"tokens.share: {share} is not in (0, 1]")
        # Of the next pass: (batch,), the place of each prompt's last token where answers follow; None: the last token.
        self.ends: Any = None
        self._ends: Any = None
        self._watch: Any = None
        self._marks: Any = None
        self._features: Any = None
        self._clear()

    def settings(self) -> dict[str, Any]:
        """The arguments that make this cut again, as JSON values."""
        names = ("layer", "share", "language", "image", "attention", "tower", "tile", "options")
        return {name: getattr(self, name) for name in names}

    def _clear(self) -> None:
        self._prefill, self._visual, self._positions = False, None, None
        self._length, self._slots, self._valid, self._filled = 0, None, None, False
        self._deep: list[Any] = []
        self._attention: Any = None
        self._alone = False

    def watch(self, watch: Any) -> None:
        """Show `keep` what this watch notes."""
        self._watch = watch

    # --- hooks around the language model --------------------------------------------------------------------

    def mark(self, module: Any, args: Any, kwargs: Any) -> None:
        """Before the whole model: which tokens are visual."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._marks = None if ids is None else ids == self.image
        self._ends, self.ends = self.ends, None
        self._features = (kwargs.get("mm_encoder_outputs") or {}).get("image")

    def begin(self, module: Any, args: Any, kwargs: Any) -> Any:
        """Before the language model. The marks of a direct call come as `visual`, (batch, length)."""
        alone = "visual" in kwargs
        marks, self._marks = kwargs.pop("visual", self._marks), None
        ends, self._ends = self._ends, None
        self._clear()
        self._alone, cache = alone, kwargs.get("past_key_values")
        self._prefill = cache is None or int(cache.get_seq_length()) == 0
        if not self._prefill:
            return args, kwargs
        if self._watch and (self.attention == "text" or self._features is not None):
            self._watch.start(self._features, ends)
        self._features = None
        if marks is None:
            raise ValueError("tokens: which tokens are visual is read from input_ids, so a prompt cannot be embeddings")
        self._visual, self._length = marks, marks.shape[1]
        self._positions = kwargs.get("position_ids")
        deep = kwargs.get("deepstack_visual_embeds")
        if deep is not None:  # features that enter after the cut are added here, to the tokens that are left
            kwargs["deepstack_visual_embeds"] = deep[: self.layer]
            self._deep = list(deep[self.layer :])
        return args, kwargs

    def end(self, module: Any, args: Any, output: Any) -> Any:
        """Behind the language model: its output at the full length, with zeros for tokens that were dropped."""
        if self._slots is not None:
            states = output[0] * self._valid[..., None].to(output[0])
            full = states.new_zeros(len(states), self._length, states.shape[-1])
            full = full.scatter(1, self._wide(states), states)
            if isinstance(output, tuple):
                output = (full, *output[1:])
            else:
                output.last_hidden_state = full
        if self._watch:
            self._watch.stop()
        self._clear()
        return output

    # --- hooks around its layers ------------------------------------------------------------------------------

    def before(self, index: int, module: Any, args: Any, kwargs: Any) -> Any:
        """Before a layer that follows the cut: fewer states, and the mask and positions of these."""
        states = args[0] if args else kwargs.pop("hidden_states")
        mask = kwargs.get("attention_mask")
        if self._prefill:
            if index == self.layer:
                states = self._drop(states, mask)
            if self._slots is not None:
                if kwargs.get("past_key_values") is not None:
                    self._hold(kwargs["past_key_values"], index)
                kwargs["attention_mask"] = self._fewer(module, mask, states)
                kwargs["position_embeddings"] = tuple(self._take(x) for x in kwargs["position_embeddings"])
                kwargs["position_ids"] = None
        else:
            layers = kwargs["past_key_values"].layers
            held = layers[index] if index < len(layers) else None
            if isinstance(held, Held):
                window = getattr(module.self_attn, "sliding_window", None)
                allowed = held.allowed(states.shape[1], window)
                kwargs["attention_mask"] = _as_mask(module, allowed, held.valid, states)
                kwargs["position_ids"] = None
        return (states, *args[1:]), kwargs

    def after(self, index: int, module: Any, args: Any, output: Any) -> Any:
        """After a layer that follows the cut: the image features that enter here."""
        place = index - self.layer
        if place >= len(self._deep):
            return None
        states = output[0] if isinstance(output, tuple) else output
        deep = self._deep[place].to(states)
        visual = self._visual.to(states.device)
        full = deep.new_zeros(*visual.shape, deep.shape[-1]).masked_scatter(visual[..., None], deep)
        states = states + (full if self._slots is None else self._merge(full).gather(1, self._wide(full)))
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def _drop(self, states: torch.Tensor, mask: Any) -> torch.Tensor:
        """The states that go on, (batch, longest, width); sets the slots that they come from."""
        visual = self._visual.to(states.device)
        counts = visual.sum(1).tolist()
        if all(kept(count, self.share) == count for count in counts):
            return states
        real = _real(mask, visual)
        sizes = real.sum(1).tolist()
        alive, self._choices = real & ~visual, []
        for row, count in enumerate(counts):
            if not count:
                continue
            places = visual[row].nonzero().flatten()
            left, weights = self._choose(states, row, places, kept(count, self.share))
            alive = alive.index_put((torch.full_like(left, row), places[left]), torch.ones_like(left, dtype=torch.bool))
            if weights is not None:
                self._choices.append((row, places, left, weights))
        lengths = [
            size - count + (count and kept(count, self.share)) for size, count in zip(sizes, counts, strict=True)
        ]
        longest = max(lengths)
        # The kept tokens of each row in their order, at the right; a shorter row begins with others that nobody reads.
        self._slots = alive.int().argsort(dim=1, stable=True)[:, -longest:]
        self._valid = alive.gather(1, self._slots)
        self._filled = min(lengths) < longest
        merged = self._merge(states)
        return merged.gather(1, self._wide(merged))

    def _choose(self, states: torch.Tensor, row: int, places: torch.Tensor, count: int) -> tuple[Any, Any]:
        """The method's choice: positions among the row's visual tokens, (count,), and weights (count, n) or None."""
        arguments: dict[str, Any] = dict(self.options)
        if "attention" in self.asked:
            arguments["attention"] = self._received(row, places)
        if "grids" in self.asked:
            arguments["grids"] = self._grids(row, places)
        choice = self.keep(states[row, places], count, **arguments)
        left, weights = choice if isinstance(choice, tuple) else (choice, None)
        left = left.to(states.device)
        if left.shape != (count,):
            raise ValueError(f"tokens: the method keeps {tuple(left.shape)} tokens; {count} are asked for")
        order = left.argsort()
        ends = left[order[[0, -1]]].tolist()
        if ends[0] < 0 or ends[1] >= len(places) or not bool((left[order].diff() > 0).all()):
            raise ValueError(f"tokens: the method must keep different positions from 0 to {len(places) - 1}")
        return left[order], None if weights is None else weights.to(states)[order]

    def _merge(self, states: torch.Tensor) -> torch.Tensor:
        """The states, (batch, length, width), where tokens that others are merged into have the weighted sum."""
        for row, *choice in self._choices:
            places, left, weights = (part.to(states.device) for part in choice)
            states = states.index_put((torch.full_like(left, row), places[left]), weights @ states[row, places])
        return states

    def _wide(self, states: torch.Tensor) -> torch.Tensor:
        return self._slots[..., None].expand(-1, -1, states.shape[-1]).to(states.device)

    def _take(self, table: torch.Tensor) -> torch.Tensor:
        """Rows of a table (..., batch or 1, length, width) at the slots that are left."""
        rows, longest = self._slots.shape
        table = table.expand(*table.shape[:-3], rows, *table.shape[-2:])
        index = self._slots[..., None].to(table.device).expand(*table.shape[:-2], longest, table.shape[-1])
        return table.gather(-2, index)

    def _hold(self, cache: Any, index: int) -> None:
        layers = cache.layers
        while len(layers) <= index:
            layers.append(cache.layer_class_to_replicate())
        layers[index] = Held(self._slots, self._valid, self._length)

    def _fewer(self, module: Any, mask: Any, states: torch.Tensor) -> Any:
        """The mask of a prompt, for the tokens that are left."""
        slots, valid = self._slots.to(states.device), self._valid.to(states.device)
        if mask is None:
            if not self._filled:
                return None
            order = torch.arange(slots.shape[1], device=slots.device)
            return _as_mask(module, (order <= order[:, None]) & valid[:, None, None], valid, states)
        if mask.ndim == 2:
            return mask.gather(1, slots) * valid
        rows, longest = slots.shape
        mask = mask.expand(rows, *mask.shape[1:])
        mask = mask.gather(2, slots[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        mask = mask.gather(3, slots[:, None, None].expand(-1, mask.shape[1], longest, -1))
        readable = valid[:, None, None]
        if mask.dtype == torch.bool:
            return mask & readable
        return mask.masked_fill(~readable, torch.finfo(mask.dtype).min)

    # --- what a method may see --------------------------------------------------------------------------------

    def _received(self, row: int, places: torch.Tensor) -> torch.Tensor:
        """What each visual token of a row receives, (n,)."""
        if self._attention is None:
            if self._alone and self.attention == "vision":  # the language model by itself: only its cost counts
                return torch.zeros(len(places), device=places.device)
            self._attention = self._watch.of(self._visual)
        return self._attention[row].to(places.device)[places]

    def _grids(self, row: int, places: torch.Tensor) -> list[tuple[int, int]]:
        """Height and width of the grids that a row's visual tokens form, in their order; (1, n) where unknown."""
        runs = [len(run) for run in places.tensor_split(((places.diff() > 1).nonzero().flatten() + 1).tolist())]
        grids, start = [], 0
        for size in runs:
            grids += self._grid(row, places[start : start + size])
            start += size
        return grids

    def _grid(self, row: int, places: torch.Tensor) -> list[tuple[int, int]]:
        size = len(places)
        if self._positions is not None and self._positions.ndim == 3:  # of time, height and width
            height, width = (int(axis[row, places].unique().numel()) for axis in self._positions[-2:])
            return [(height, width)] * (size // (height * width)) if size % (height * width) == 0 else [(1, size)]
        tile = self.tile if self.tile and size % self.tile == 0 else size
        side = math.isqrt(tile)
        return [(side, side)] * (size // tile) if side * side == tile else [(1, size)]


def _real(mask: Any, visual: torch.Tensor) -> torch.Tensor:
    """Which tokens are no padding: those that may attend to themselves."""
    if mask is None:
        return torch.ones_like(visual)
    if mask.ndim == 2:
        return mask.bool()
    own = mask[:, 0].diagonal(dim1=-2, dim2=-1)
    return (own if own.dtype == torch.bool else own == 0).expand_as(visual)


def _as_mask(module: Any, allowed: Any, valid: torch.Tensor, states: torch.Tensor) -> Any:
    """A mask (batch, 1, queries, keys) of booleans in the form that the layer's attention reads."""
    watch = getattr(module.self_attn, "_watch", None)
    name = watch.base if watch else module.self_attn.config._attn_implementation
    if "flash" in name:
        new = states.shape[1] if allowed is None or allowed.shape[-1] > valid.shape[1] else 0
        return None if bool(valid.all()) else nn.functional.pad(valid, (0, new), value=True)
    if name != "eager" or allowed is None:
        return allowed
    return torch.zeros_like(allowed, dtype=states.dtype).masked_fill(~allowed, torch.finfo(states.dtype).min)
