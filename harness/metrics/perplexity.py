"""Perplexity of the language model on plain English, without an image: what a cut costs it apart from any question.

result = measure(pruned, dense, trial, context)  # {"perplexity": 31.2, "lo": 28.9, "hi": 33.9, "dense": 25.1, ...}

The text beside this file is chapters 3 to 5 of Jane Austen's Persuasion (1817, public domain; from the R package
janeaustenr 1.0.0, without its line breaks). Perplexities compare models of one tokenizer only.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.stats.intervals import clustered_interval
from harness.types import VLM, Column, MetricContext, Trial, at

COLUMNS = (
    Column(
        "perplexity",
        "perplexity",
        better="lower",
        form="{:.1f}",
        interval=("perplexity_lo", "perplexity_hi"),
        axis="perplexity on English text",
    ),
    Column("perplexity_lo", read=at("lo")),
    Column("perplexity_hi", read=at("hi")),
    Column("perplexity_ratio", unit="factor", read=at("ratio")),
)

TEXT = Path(__file__).with_name("persuasion.txt")
WINDOW, WINDOWS, BATCH = 256, 16, 8  # tokens of a window, windows, and windows at a time
LARGEST = math.log(sys.float_info.max)


def measure(pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> dict[str, Any]:
    """exp of the mean cross-entropy of the text's tokens, each predicted from those before it in its window.

    `lo` and `hi` are its 95 % interval, by a bootstrap over windows; `dense`, `ratio`, `ratio_lo` and `ratio_hi` set it
    against the dense model's, paired by window. Raises FloatingPointError for NaN or Inf logits.
    """
    context.progress("perplexity")
    ours, theirs = (context.once(vlm, "perplexity", partial(nats, vlm)) for vlm in (pruned, dense))
    own, ratio = _mean(ours), _mean(ours - theirs)
    figures = dict(zip(("perplexity", "lo", "hi", "ratio", "ratio_lo", "ratio_hi"), (*own, *ratio), strict=True))
    return {**figures, "dense": _mean(theirs)[0], "tokens": (WINDOW - 1) * len(ours)}


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    """exp of the mean and of its interval over windows; what no float holds is cut at the largest."""
    ends = clustered_interval(values, range(len(values))) or (math.nan, math.nan)
    middle, low, high = (math.exp(min(value, LARGEST)) for value in (float(values.mean()), *ends))
    return middle, low, high


def nats(vlm: VLM) -> np.ndarray:
    """The mean cross-entropy of each window of the text, (windows,)."""
    import torch
    from torch.nn.functional import cross_entropy

    model: Any = vlm.model
    tokenizer = vlm.processor.tokenizer
    words = tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    begin = tokenizer("")["input_ids"][:1]  # what the tokenizer puts before a text, if anything
    size = WINDOW - len(begin)
    windows = [begin + words[place : place + size] for place in range(0, size * WINDOWS, size)]
    tokens = torch.tensor(windows).to(model.device)
    found = []
    with torch.no_grad():
        for rows in tokens.split(BATCH):
            logits = model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits[:, :-1].float()
            if not logits.isfinite().all():
                raise FloatingPointError("the model's logits on the text are NaN or Inf")
            losses = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
            found.append(losses.view(len(rows), -1).double().mean(1).cpu())
    return torch.cat(found).numpy()
