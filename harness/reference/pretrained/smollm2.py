"""SmolLM2-135M-Instruct out of its GGUF file: weights under transformers' names, sizes, tokenizer.

    weights, sizes, tokenizer = read(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))

GGUF stores the rows of q and k in an order of its own (the halves of a head's rotary pairs interleaved); transformers
wants the halves one after the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.reference.pretrained.wheels import need

# The image's tokens take the names of four special tokens that the model never used, so the embedding keeps its size.
IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
FIRST_UNUSED = 3
PAD, END = "<|endoftext|>", "<|im_end|>"

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "embed_tokens", "output_norm": "norm"}


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], PreTrainedTokenizerFast]:
    """Weights (names below `language_model.`), text_config values and tokenizer.

    Raises InputError if the package gguf is missing.
    """
    need("gguf", f"reading {path.name}")
    import gguf

    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    heads, groups = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    sizes = {
        "model_type": "llama",
        "hidden_size": value("llama.embedding_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": value("llama.rope.dimension_count"),
        "intermediate_size": value("llama.feed_forward_length"),
        "vocab_size": value("llama.vocab_size"),
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": 1e-5,  # the file holds it in float32
        "rope_parameters": {"rope_type": "default", "rope_theta": float(value("llama.rope.freq_base"))},
        "tie_word_embeddings": True,
    }
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        prefix, _, rest = tensor.name.removesuffix(".weight").partition(".")
        if prefix != "blk":
            weights[f"{TOP[prefix]}.weight"] = values
            continue
        number, _, kind = rest.partition(".")
        if kind in ("attn_q", "attn_k"):
            values = halves(values, heads if kind == "attn_q" else groups)
        weights[f"layers.{number}.{LAYER[kind]}.weight"] = values
    return weights, sizes, tokenizer(value("tokenizer.ggml.tokens"), value("tokenizer.ggml.merges"))


def halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of q or k with each head's rotary halves one after the other, from GGUF's interleaved order."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def tokenizer(tokens: list[str], merges: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, digits alone, no prefix space; four unused special tokens become the image's."""
    special = [i for i, token in enumerate(tokens[:32]) if token.startswith("<")]
    names = list(tokens)
    for place, token in enumerate(IMAGE_TOKENS.values(), FIRST_UNUSED):
        names[place] = token
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(names)}, merges=pairs))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([names[i] for i in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        extra_special_tokens=IMAGE_TOKENS,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )
