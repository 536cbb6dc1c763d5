"""The language model's forward pass for training with adapters: the same numbers as transformers', in fewer operations.

    hidden = Language(model).forward(embedded, positions, mask, learned)

On one CPU core the matrix products in bfloat16 take most of the time only if the rest is kept small: q, k, v are one
product, gate and up another, and an adapter adds to a product's output in place. A test holds it against transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from harness.reference.pretrained.adapters import LAYERS, SCALE, Learned

GROUPS = (  # Linears that read the same input, as one product
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


class Language:
    """Frozen weights of the language model, joined by group."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.bfloat16) -> None:
        inner = model.model.language_model
        config = inner.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width, self.eps, self.depth = config.head_dim, config.rms_norm_eps, config.num_hidden_layers
        self.theta, self.dtype = config.rope_parameters["rope_theta"], dtype
        self.embedding = inner.embed_tokens.weight.detach().to(dtype)
        self.norm = inner.norm.weight.detach().to(dtype)
        self.norms, self.weights = [], []
        for layer in inner.layers:
            pair = (layer.input_layernorm, layer.post_attention_layernorm)
            self.norms.append([module.weight.detach().to(dtype) for module in pair])
            self.weights.append(
                [torch.cat([layer.get_submodule(p).weight.detach() for p in group]).to(dtype) for group in GROUPS]
            )

    def adapters(self, learned: Learned) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Per layer and group the joined (A, B): A stacked, B block-diagonal and scaled; gradients reach the parts."""
        layers = []
        for i in range(self.depth):
            joined = []
            for group in GROUPS:
                parts = [
                    (learned.tensors[f"{LAYERS}.{i}.{p}.A"], learned.tensors[f"{LAYERS}.{i}.{p}.B"]) for p in group
                ]
                a = torch.cat([first for first, _ in parts])
                b = torch.block_diag(*(second for _, second in parts)) if len(parts) > 1 else parts[0][1]
                joined.append((a.to(self.dtype), (SCALE * b).to(self.dtype)))
            layers.append(joined)
        return layers

    def forward(
        self, embedded: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, learned: Learned
    ) -> torch.Tensor:
        """Final hidden states (n, length, width); `mask` (n, 1, length, length) is added to the scores."""
        n, length, width = embedded.shape
        cos, sin = self._rotation(positions)
        adapters = self.adapters(learned)
        hidden = embedded.reshape(n * length, width)
        heads = (self.heads, self.groups, self.groups)
        for i in range(self.depth):
            (first, second), weights, added = self.norms[i], self.weights[i], adapters[i]
            inner = _linear(functional.rms_norm(hidden, (width,), first, self.eps), weights[0], added[0])
            q, k, v = inner.view(n, length, -1, self.width).transpose(1, 2).split(heads, 1)
            attended = self._attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v, mask)
            hidden = hidden + _linear(attended.transpose(1, 2).reshape(n * length, -1), weights[1], added[1])
            inner = _linear(functional.rms_norm(hidden, (width,), second, self.eps), weights[2], added[2])
            gate, up = inner.chunk(2, -1)
            hidden = hidden + _linear(functional.silu(gate) * up, weights[3], added[3])
        return functional.rms_norm(hidden, (width,), self.norm, self.eps).view(n, length, width)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Softmax attention by two batched products: on CPU, for such short rows, half the time of the stock kernel."""
        n, _, length, width = q.shape
        q = (q * width**-0.5).reshape(n, self.groups, -1, width)
        scores = (q @ k.transpose(-1, -2)).view(n, self.groups, -1, length, length) + mask[:, :, None]
        return (scores.softmax(-1).view(n, self.groups, -1, length) @ v).view(n, self.heads, length, width)

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, (n, 1, length, head width)."""
        inverse = self.theta ** -(torch.arange(0, self.width, 2).float() / self.width)
        angles = positions[:, None, :, None].float() * inverse.to(positions.device)
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def _linear(x: torch.Tensor, weight: torch.Tensor, adapter: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    a, b = adapter
    return torch.addmm(functional.linear(x, weight), functional.linear(x, a), b.T)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
