"""What the family files share: attention and MLP modules described as units, token counts, and the calls to time.

    Block(name, path, "language", 0, attention(f"{path}.self_attn", layer.self_attn, "o_proj"), gated_mlp(...))

Sizes are read from the modules, so a pruned model is described like a dense one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

import torch
from transformers import DynamicCache

from harness.families._pruned import LowRankLinear
from harness.types import Block, Component, Extent, InputError, Rows, Units


def block(component: Component, index: int, path: str, heads: Units, ffn: Units, fixed: str = "") -> Block:
    """One block, named after its component and index. `fixed`: why it cannot go as a whole, if it cannot."""
    return Block(f"{component}.{index}", path, component, index, heads, ffn, fixed)


def decoder(model: Any, path: str, fixed: Mapping[int, str] = MappingProxyType({})) -> list[Block]:
    """The blocks of a language model with Llama-like layers (grouped queries, gated MLP) at `path`.

    `fixed`: why blocks cannot go as a whole, by index.
    """
    return [
        block(
            "language",
            i,
            at,
            attention(f"{at}.self_attn", layer.self_attn, "o_proj"),
            gated_mlp(f"{at}.mlp", layer.mlp),
            fixed.get(i, ""),
        )
        for i, at, layer in layers(model, path)
    ]


def encoder(model: Any, path: str, read: int | list[int] = -1) -> list[Block]:
    """The blocks of a vision tower with CLIP-like layers (separate q, k and v, a plain MLP) at `path`.

    `read`: as in `layers`.
    """
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
    """Index, path and module of each layer at `path`, up to the last layer whose output is read.

    `read` counts hidden states like transformers' `vision_feature_layer`: 0 is the embedding, -1 the output of the last
    layer. Later layers run, but nothing uses their output. Raises InputError if `path` has no layers.
    """
    modules: Any = model
    for name in path.split("."):
        modules = getattr(modules, name, ())
    if not len(modules):
        raise InputError(f"model: no layers at {path}; the model has these Linear layers: {linears(model)}")
    last = max(i % (len(modules) + 1) for i in ([read] if isinstance(read, int) else read))
    return [(i, f"{path}.{i}", layer) for i, layer in enumerate(modules) if i < last]


PROJECTORS = ("merger", "deepstack_merger_list", "multi_modal_projector", "connector")  # the names in transformers


def projector(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules between tower and language model. Raises InputError if the model has none of the known names."""
    parts = [module for path, module in model.named_modules() if path.rpartition(".")[2] in PROJECTORS]
    if not parts:
        raise InputError(f"model: no projector; known are modules called {', '.join(PROJECTORS)}")
    return parts


def linears(model: torch.nn.Module) -> str:
    """The paths and sizes of a model's Linear layers as text, with numbered blocks grouped."""
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
    """Heads of an attention module with separate q, k and v; with grouped queries, groups that share a key and value.

    `widths` name attributes of the module that hold the width of all heads together. Raises InputError if the module
    lacks a Linear, or if a norm runs over all heads together, because then no single head can be removed.
    """
    q, k, v, out = (_linear(path, module, name) for name in ("q_proj", "k_proj", "v_proj", consumer))
    width: int = module.head_dim
    queries: int = getattr(module, "num_key_value_groups", 1)
    for name in ("q_norm", "k_norm"):
        weight = getattr(getattr(module, name, None), "weight", None)
        if weight is not None and weight.numel() != width:
            raise InputError(f"model: {path}.{name} normalises all heads together, so single heads cannot be removed")
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
        factored=_factored(q, k, v, out),
    )


def fused_attention(path: str, module: Any) -> Units:
    """Heads of an attention module with one Linear `qkv` for q, k and v, and the output Linear `proj`."""
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
        factored=_factored(qkv, out),
    )


def mlp(path: str, module: Any, up: str, down: str, activation: str) -> Units:
    """Channels of a plain two-layer MLP; `up` and `down` name its Linears."""
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
        factored=_factored(first, second),
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
        factored=_factored(gate, up, down),
    )


def _width(path: str, module: Any) -> tuple[tuple[str, str, int], ...]:
    return ((path, "intermediate_size", 1),) if hasattr(module, "intermediate_size") else ()


def _factored(*linears: Any) -> bool:
    return any(isinstance(linear, LowRankLinear) for linear in linears)


def _linear(path: str, module: Any, name: str) -> Any:
    """A Linear, or the factored module that surgery put in its place."""
    linear = getattr(module, name, None)
    if not hasattr(linear, "in_features"):
        children = ", ".join(f"{key} ({type(child).__name__})" for key, child in module.named_children())
        raise InputError(f"model: {path} ({type(module).__name__}) has no Linear {name!r}; it has {children}")
    return linear


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
    """The calls that are timed and counted separately, each without arguments, on this encoded batch.

    vision: from pixels to projected image tokens. language: prefill of the language model on embeddings. all: prefill
    from pixels to the logits of the first answer token. decode: one further token with the prefilled cache. `prefill`
    and `step` are further arguments of the language model in these two cases (positions, masks). `traced` replaces
    inputs that a tracer cannot follow. `unread` are layers that run although nothing uses their output.
    """
    if hasattr(model, "token_cut"):
        prefill = {**(prefill or {}), "visual": visual(model, inputs)}
    parameters = inspect.signature(model.get_image_features).parameters
    pictures = {name: value for name, value in inputs.items() if name in parameters}
    with torch.no_grad():
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        cache = DynamicCache(config=language.config)
        cache.activate_past_recording()  # so that crop() can also undo a step in a sliding window
        language(inputs_embeds=embedded, past_key_values=cache, use_cache=True, **(prefill or {}))

    def decode() -> Any:
        out = language(inputs_embeds=embedded[:, -1:], past_key_values=cache, use_cache=True, **(step or {}))
        cache.crop(-1)
        return out.last_hidden_state

    def prefill_logits() -> torch.Tensor:
        arguments = {**inputs, **(traced or {})} if tracing() else inputs
        return model(**arguments, use_cache=False, logits_to_keep=1).logits

    encode_images = vision or (lambda: torch.cat(tuple(model.get_image_features(**pictures).pooler_output)))
    return {
        "vision": _with_unread(encode_images, unread),
        "language": lambda: language(inputs_embeds=embedded, use_cache=False, **(prefill or {})).last_hidden_state,
        "all": _with_unread(prefill_logits, unread),
        "decode": decode,
    }


def visual(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which tokens of the prompts are those of images, (rows, length)."""
    return inputs["input_ids"] == model.config.image_token_id


def tracing() -> bool:
    """Whether the call is being traced, as fvcore does to count its multiply-adds."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def _with_unread(call: Callable[[], torch.Tensor], unread: Sequence[torch.nn.Module]) -> Callable[[], torch.Tensor]:
    """The same call; while traced, its result also depends on the `unread` modules.

    A tracer drops every module that no result depends on.
    """

    def call_with_unread() -> torch.Tensor:
        if not unread or not tracing():
            return call()
        outputs: list[Any] = []
        with ExitStack() as hooks:
            for module in unread:
                hooks.callback(module.register_forward_hook(lambda _, __, out: outputs.append(out)).remove)
            return call() + sum(0 * output.sum() for output in outputs)

    return call_with_unread


def places(core: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Positions in time, height and width for Qwen's language models, for prefill and for one decoding step."""
    positions, _ = core.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return {"prefill": {"position_ids": positions}, "step": {"position_ids": positions[..., -1:] + 1}}


def frames(grid: torch.Tensor) -> list[int]:
    """Patches of each frame; `grid` is (images, 3): time, height, width. Patches attend only within their frame."""
    return [int(height * width) for time, height, width in grid.tolist() for _ in range(time)]


def pictures(pixels: torch.Tensor, patch: int, extra: int = 0) -> Extent:
    """Tokens and pairs of an encoder over pixels (tiles, channels, height, width).

    Patches attend only within their tile; `extra`: further tokens per tile, such as a class token.
    """
    tiles, _, height, width = pixels.shape
    tokens = (height // patch) * (width // patch) + extra
    return Extent(tiles * tokens, tiles * tokens * tokens)


def prompt(inputs: Mapping[str, torch.Tensor]) -> Extent:
    """Tokens and pairs of the padded prompts; every row attends over its full length."""
    rows, length = inputs["input_ids"].shape
    return Extent(rows * length, rows * length * length)
