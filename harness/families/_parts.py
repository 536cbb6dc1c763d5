"""What families share: modules read as units, and what is timed of any of them.

    Block(name, path, "language", 0, attention(f"{path}.self_attn", layer.self_attn, "o_proj"), gated_mlp(...))

Sizes are read from the modules, so that a pruned model is described as well as a dense one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import DynamicCache

from harness.types import Block, Component, Extent, InputError, Rows, Units


def block(component: Component, index: int, path: str, heads: Units, ffn: Units) -> Block:
    return Block(f"{component}.{index}", path, component, index, heads, ffn)


def decoder(model: Any, path: str) -> list[Block]:
    """The language model's blocks: Llama-like layers (grouped queries, gated MLP) at `path`."""
    return [
        block(
            "language",
            i,
            at,
            attention(f"{at}.self_attn", layer.self_attn, "o_proj"),
            gated_mlp(f"{at}.mlp", layer.mlp),
        )
        for i, at, layer in layers(model, path)
    ]


def encoder(model: Any, path: str, read: int | list[int] = -1) -> list[Block]:
    """The vision tower's blocks: CLIP-like layers (q, k and v apart, a plain MLP) at `path`, those that are read."""
    return [
        block(
            "vision",
            i,
            at,
            attention(f"{at}.self_attn", layer.self_attn, "out_proj"),
            mlp(f"{at}.mlp", layer.mlp, "fc1", "fc2", "activation_fn"),
        )
        for i, at, layer in layers(model, path, read)
    ]


def layers(model: Any, path: str, read: int | list[int] = -1) -> list[tuple[int, str, Any]]:
    """Index, path and module of the layers at `path`, up to the last whose output is read.

    `read` counts hidden states as transformers' `vision_feature_layer` does: 0 is the embedding, -1 the last layer's
    output. Later layers run, but nothing depends on them. Raises InputError where there are none.
    """
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name, ())
    if not len(found):
        raise InputError(f"model: no layers at {path}; its Linear layers: {linears(model)}")
    last = max(i % (len(found) + 1) for i in ([read] if isinstance(read, int) else read))
    return [(i, f"{path}.{i}", layer) for i, layer in enumerate(found) if i < last]


def linears(model: torch.nn.Module) -> str:
    """The Linear layers of a model as text, those of numbered blocks together."""
    blocks: dict[str, tuple[set[str], dict[str, str]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            stem, number, leaf = re.fullmatch(r"(.*?)(?:\.(\d+)\.(.*))?", path).groups()  # type: ignore[union-attr]
            numbers, names = blocks.setdefault(stem, (set(), {}))
            numbers.add(number)
            names.setdefault(leaf, f"{leaf} {module.in_features}>{module.out_features}")
    return "; ".join(
        f"{stem}.0-{len(numbers) - 1}: {', '.join(names.values())}"
        for stem, (numbers, names) in blocks.items()
        if None not in names
    )


def attention(path: str, module: Any, consumer: str, *widths: str) -> Units:
    """Heads, or groups of query heads that share a key and a value, of an attention with q, k and v apart.

    `widths` name attributes of the module that hold the width of all heads together. Raises InputError where the
    module is of another kind, or a norm runs over all heads at once, so that no head can leave alone.
    """
    q, k, _, out = (_linear(path, module, name) for name in ("q_proj", "k_proj", "v_proj", consumer))
    width: int = module.head_dim
    queries: int = getattr(module, "num_key_value_groups", 1)
    for name in ("q_norm", "k_norm"):
        weight = getattr(getattr(module, name, None), "weight", None)
        if weight is not None and weight.numel() != width:
            raise InputError(f"model: {path}.{name} normalises all heads together; its heads cannot be pruned apart")
    counts = {"num_heads": queries, "num_key_value_heads": 1} | dict.fromkeys(widths, queries * width)
    return Units(
        kind="heads",
        count=k.out_features // width,
        width=queries * width,
        producers=(
            Rows(f"{path}.q_proj", 0, queries * width),
            Rows(f"{path}.k_proj", 0, width),
            Rows(f"{path}.v_proj", 0, width),
        ),
        consumer=f"{path}.{consumer}",
        token_macs=width * ((queries + 2) * q.in_features + queries * out.out_features),
        pair_macs=2 * queries * width,
        sizes=tuple((path, name, amount) for name, amount in counts.items() if hasattr(module, name)),
    )


def fused_attention(path: str, module: Any) -> Units:
    """Heads of an attention whose q, k and v are one Linear, `qkv`, and whose output is `proj`."""
    qkv, out = _linear(path, module, "qkv"), _linear(path, module, "proj")
    count, width = module.num_heads, module.head_dim
    return Units(
        kind="heads",
        count=count,
        width=width,
        producers=tuple(Rows(f"{path}.qkv", part * count * width, width) for part in range(3)),
        consumer=f"{path}.proj",
        token_macs=width * (3 * qkv.in_features + out.out_features),
        pair_macs=2 * width,
        sizes=((path, "num_heads", 1),),
    )


def mlp(path: str, module: Any, up: str, down: str, activation: str) -> Units:
    """Channels of a plain two-layer MLP."""
    first, second = _linear(path, module, up), _linear(path, module, down)
    return Units(
        kind="ffn",
        count=second.in_features,
        width=1,
        producers=(Rows(f"{path}.{up}", 0, 1),),
        consumer=f"{path}.{down}",
        token_macs=first.in_features + second.out_features,
        pair_macs=0,
        activation=f"{path}.{activation}",
        sizes=_width(path, module),
    )


def gated_mlp(path: str, module: Any) -> Units:
    """Channels of a gated MLP: down(act(gate(x)) * up(x))."""
    gate, up, down = (_linear(path, module, name) for name in ("gate_proj", "up_proj", "down_proj"))
    return Units(
        kind="ffn",
        count=down.in_features,
        width=1,
        producers=(Rows(f"{path}.gate_proj", 0, 1), Rows(f"{path}.up_proj", 0, 1)),
        consumer=f"{path}.down_proj",
        token_macs=gate.in_features + up.in_features + down.out_features,
        pair_macs=0,
        gated=True,
        activation=f"{path}.act_fn",
        sizes=_width(path, module),
    )


def _width(path: str, module: Any) -> tuple[tuple[str, str, int], ...]:
    return ((path, "intermediate_size", 1),) if hasattr(module, "intermediate_size") else ()


def _linear(path: str, module: Any, name: str) -> Any:
    """A Linear, or what surgery put in its place."""
    found = getattr(module, name, None)
    if not hasattr(found, "in_features"):
        there = ", ".join(f"{key} ({type(child).__name__})" for key, child in module.named_children())
        raise InputError(f"model: {path} ({type(module).__name__}) has no Linear {name!r}; it has {there}")
    return found


def stages(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    language: Any,
    *,
    vision: Callable[[], torch.Tensor] | None = None,
    prefill: Mapping[str, Any] | None = None,
    step: Mapping[str, Any] | None = None,
    traced: Mapping[str, Any] | None = None,
    unread: Sequence[torch.nn.Module] = (),
) -> dict[str, Callable[[], Any]]:
    """What is timed and counted apart, each a call without arguments on this encoded batch.

    vision: pixels to projected image tokens. language: prefill of the language model on embeddings. all: prefill from
    pixels to the first answer token's logits. decode: one further token on the prefilled cache. `prefill` and `step`
    are what else the language model is given in these two (positions, masks), `traced` are inputs in place of those
    that a tracer cannot follow, and `unread` are layers that run though nothing reads them.
    """
    asked = inspect.signature(model.get_image_features).parameters
    pictures = {name: value for name, value in inputs.items() if name in asked}
    with torch.no_grad():
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        cache = DynamicCache(config=language.config)
        cache.activate_past_recording()  # so that a sliding window, too, can forget a step again
        language(inputs_embeds=embedded, past_key_values=cache, use_cache=True, **(prefill or {}))

    def decode() -> Any:
        out = language(inputs_embeds=embedded[:, -1:], past_key_values=cache, use_cache=True, **(step or {}))
        cache.crop(-1)
        return out.last_hidden_state

    def whole() -> torch.Tensor:
        given = {**inputs, **(traced or {})} if tracing() else inputs
        return model(**given, use_cache=False, logits_to_keep=1).logits

    seen = vision or (lambda: torch.cat(tuple(model.get_image_features(**pictures).pooler_output)))
    return {
        "vision": _kept(seen, unread),
        "language": lambda: language(inputs_embeds=embedded, use_cache=False, **(prefill or {})).last_hidden_state,
        "all": _kept(whole, unread),
        "decode": decode,
    }


def tracing() -> bool:
    """Whether a call is being recorded, as fvcore does to count it."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def _kept(call: Callable[[], torch.Tensor], unread: Sequence[torch.nn.Module]) -> Callable[[], torch.Tensor]:
    """The same call; when traced, its result depends on these modules too: a tracer drops what no result depends on."""

    def kept() -> torch.Tensor:
        if not unread or not tracing():
            return call()
        outputs: list[Any] = []
        with ExitStack() as hooks:
            for module in unread:
                hooks.callback(module.register_forward_hook(lambda _, __, out: outputs.append(out)).remove)
            return call() + sum(0 * output.sum() for output in outputs)

    return kept


def places(core: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Positions in time, height and width, as Qwen's language models are given them in prefill and in one step."""
    positions, _ = core.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return {"prefill": {"position_ids": positions}, "step": {"position_ids": positions[..., -1:] + 1}}


def frames(grid: torch.Tensor) -> list[int]:
    """Patches of each frame, (images, 3) in time, height and width: patches attend within their frame."""
    return [int(height * width) for time, height, width in grid.tolist() for _ in range(time)]


def pictures(pixels: torch.Tensor, patch: int, extra: int = 0) -> Extent:
    """Tokens and pairs of an encoder over pixels (tiles, channels, height, width): patches attend within their tile."""
    tiles, _, height, width = pixels.shape
    tokens = (height // patch) * (width // patch) + extra
    return Extent(tiles * tokens, tiles * tokens * tokens)


def prompt(inputs: Mapping[str, torch.Tensor]) -> Extent:
    """Tokens and pairs of the padded prompts: every row attends to its whole length."""
    rows, length = inputs["input_ids"].shape
    return Extent(rows * length, rows * length * length)
