"""Visual tokens dropped the slow way, to compare the mechanism with, and models whose tokens are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from harness import families
from harness.pruning import surgery
from harness.types import VLM, Plan, Ranking, TokenPlan, TokenRule
from tests.support.outputs import Inputs


def cut(
    vlm: VLM, keep: Callable[..., Any], share: float, layer: int = 0, attention: Any = "none", **options: Any
) -> VLM:
    """The model of which this share of the visual tokens goes on."""
    rule = TokenRule(keep, layer, attention, options)
    plan = Plan({}, 0.5, 0.5, tokens=TokenPlan(layer, share, "x", attention, options))
    return surgery.apply(vlm, plan, Ranking({}, tokens=rule))


def every_other(states: Tensor, count: int) -> Tensor:
    """Evenly spaced tokens, the last first."""
    return torch.linspace(0, len(states) - 1, count).long().flip(0)


def visual(vlm: VLM, inputs: Inputs) -> Tensor:
    """Places of the visual tokens of the only row."""
    model: Any = vlm.model
    return (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()


def layers(vlm: VLM) -> list[Any]:
    return [vlm.model.get_submodule(block.path) for block in vlm.blocks if block.component == "language"]


@torch.no_grad()
def literal(vlm: VLM, inputs: Inputs, layer: int, left: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """The last token's logits of the dense model when only these visual tokens of its one row go on from `layer`.

    Each layer is called by hand, on the arguments that it gets in the dense model.
    """
    calls: list[dict[str, Any]] = []
    deep: list[Any] = []
    with ExitStack() as hooks:
        for module in layers(vlm):

            def note(_: Any, args: Any, kwargs: Any) -> None:
                calls.append({"states": args[0] if args else kwargs["hidden_states"], **kwargs})

            hooks.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        language: Any = vlm.model.get_submodule(vlm.blocks[-1].path.rsplit(".", 2)[0])

        def features(_: Any, args: Any, kwargs: Any) -> None:
            deep.extend(kwargs.get("deepstack_visual_embeds") or [])

        hooks.callback(language.register_forward_pre_hook(features, with_kwargs=True).remove)
        vlm.model(**inputs, use_cache=False)
    places = visual(vlm, inputs)
    length = inputs["input_ids"].shape[1]
    gone = set(places.tolist()) - set(places[list(left)].tolist())
    stay = torch.tensor([place for place in range(length) if place not in gone])
    states = calls[layer]["states"].clone()
    if weights is not None:
        states[0, places[list(left)]] = weights @ states[0, places]
    states = states[:, stay]
    for number in range(layer, len(calls)):
        call = calls[number]
        mask = call["attention_mask"]
        if mask is None:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        cos, sin = call["position_embeddings"]
        states = layers(vlm)[number](
            states,
            attention_mask=mask[:, :, stay][..., stay],
            position_embeddings=(cos.expand(1, -1, -1)[:, stay], sin.expand(1, -1, -1)[:, stay]),
            position_ids=None,
            past_key_values=None,
        )
        if number < len(deep):
            full = torch.zeros(1, length, states.shape[-1])
            full[0, places] = deep[number]
            if weights is not None:
                full[0, places[list(left)]] = weights @ deep[number]
            states = states + full[:, stay]
    model: Any = vlm.model
    return model.lm_head(language.norm(states))[:, -1]


def family(vlm: VLM) -> Any:
    return families.family(vlm.family)
