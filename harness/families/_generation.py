"""What a checkpoint says of decoding: its end-of-turn tokens are taken, everything else is left out and named.

Evaluation decodes greedily, whatever generation_config.json says. So transformers never reads that file here: no key of
it can change answers or end a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from harness.types import Generation, InputError

FILE = "generation_config.json"
TAKEN = ("eos_token_id", "pad_token_id", "bos_token_id")


def tokens(content: Mapping[str, Any] | None, config: Any) -> Any:
    """A transformers GenerationConfig with the ids of special tokens only: the file's, or without one the config's."""
    from transformers import GenerationConfig

    stated = GenerationConfig.from_model_config(config).to_dict() if content is None else content
    return GenerationConfig(**{name: stated.get(name) for name in TAKEN})


def left_out(content: Mapping[str, Any] | None) -> list[str]:
    """A line on the keys of the file that would change how answers are decoded; none if there is no such key."""
    from transformers import GenerationConfig

    neutral = GenerationConfig._get_default_generation_params()
    changed = {
        key: value
        for key, value in (content or {}).items()
        if not key.startswith(("_", "transformers_version"))
        and key not in TAKEN
        and value is not None
        and value != neutral.get(key, False)
    }
    if not changed:
        return []
    named = ", ".join(f"{key}={json.dumps(value)}"[:80] for key, value in sorted(changed.items()))
    known = ", ".join(item.name for item in fields(Generation))
    return [f"{FILE}: not used, as answers are greedy: {named}; a board's key `generation` may set {known}"]


def check(generation: Generation, rows: int) -> None:
    """Raise InputError for a token that a model with so many rows of embeddings does not have."""
    for key, ids in (
        ("suppress_tokens", generation.suppress_tokens),
        ("bad_words_ids", sum(generation.bad_words_ids, ())),
    ):
        if beyond := [token for token in ids if token >= rows]:
            raise InputError(f"generation.{key}: {beyond[0]} is no token of the model, whose ids are 0 to {rows - 1}")
