"""DINOv2-small out of an ONNX file: weights under the names of InternVL's vision tower, at another image size.

    weights, sizes = read(Path("vit_s_focus.onnx"), side=168)

The weight of each Linear has no name in the file: it is the second input of the MatMul node that uses it, transposed.
Learned positions are for 37 x 37 patches; they are interpolated once, here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from harness.reference.pretrained.wheels import need

PATCH, WIDTH, DEPTH, HEADS, FFN = 14, 384, 12, 6, 1536

LINEARS = {  # node name in the file -> module name, below a layer
    "attention/attention/query": "attention.q_proj",
    "attention/attention/key": "attention.k_proj",
    "attention/attention/value": "attention.v_proj",
    "attention/output/dense": "attention.projection_layer",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
NAMED = {  # the rest of a layer
    "norm1.weight": "layernorm_before.weight",
    "norm1.bias": "layernorm_before.bias",
    "norm2.weight": "layernorm_after.weight",
    "norm2.bias": "layernorm_after.bias",
    "layer_scale1.lambda1": "lambda_1",
    "layer_scale2.lambda1": "lambda_2",
}
SAME = (
    "embeddings.cls_token",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.projection.bias",
    "layernorm.weight",
    "layernorm.bias",
)


def read(path: Path, side: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights (names below `vision_tower.`) and vision_config values for images of `side` x `side` pixels.

    Raises InputError if the package onnx is missing.
    """
    need("onnx", f"reading {path.name}")
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(numpy_helper.to_array(arrays[name]), dtype=np.float32))

    matrices = {node.name: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    shapes = {tuple(t.dims): name for name, t in arrays.items() if not name.startswith(("backbone.", "decoder."))}
    positions = tensor(shapes[1, 37 * 37, WIDTH])
    weights = {
        "embeddings.position_embeddings": torch.cat([tensor(shapes[1, 1, WIDTH]), resized(positions, side)], 1),
        **{name: tensor(f"backbone.{name}") for name in SAME},
    }
    for i in range(DEPTH):
        old, new = f"backbone.encoder.layer.{i}", f"encoder.layer.{i}"
        for source, target in LINEARS.items():
            matrix = matrices[f"/backbone/encoder/layer.{i}/{source}/MatMul"]
            weights[f"{new}.{target}.weight"] = tensor(matrix).T.contiguous()
            weights[f"{new}.{target}.bias"] = tensor(f"{old}.{source.replace('/', '.')}.bias")
        for source, target in NAMED.items():
            weights[f"{new}.{target}"] = tensor(f"{old}.{source}")
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "image_size": [side, side],
        "patch_size": [PATCH, PATCH],
        "attention_bias": True,
        "use_qk_norm": False,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": False,
    }
    return weights, sizes


def resized(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Positions (1, patches, width) of a square grid, interpolated to the grid of an image of `side` pixels.

    As DINOv2's own code does it: bicubic, no antialiasing. In float64, so that every machine gets the same result.
    """
    grid = round(positions.shape[1] ** 0.5)
    square = positions.double().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    count = side // PATCH
    square = functional.interpolate(square, size=(count, count), mode="bicubic")
    return square.permute(0, 2, 3, 1).flatten(1, 2).float()
