"""The choices that the paper leaves open, as types of options with their meaning and values.

`infoprune list methods` shows these lines next to the defaults. Defaults change only with evidence from an ablation.
"""

from __future__ import annotations

from typing import Annotated

from baselines.infoprune import ffn, gates, heads, spectrum

Alpha = Annotated[float, "weight of the eRank ratio in J (arXiv 2511.19518, theorem 1; its size is open)"]
Beta = Annotated[float, "weight of the KS distance in J (theorem 2; its size is open)"]
Distribution = Annotated[
    spectrum.Distribution,
    "of singular values in eRank: s / sum s (Roy & Vetterli 2007), or s^2 / sum s^2 (Diff-eRank); open",
]
KsOver = Annotated[spectrum.Over, "what the KS distance runs over: the cumulative spectrum, or its values; open"]
K = Annotated[float | int, "singular values compared: the fewest with this share of the energy, or so many; open"]
Output = Annotated[heads.Output, "whose spectrum: the layer's output, or the heads' contributions side by side; open"]
Search = Annotated[heads.Search, "heads leave one by one, each time the cheapest, or are scored each on its own; open"]
FfnArm = Annotated[ffn.Arm, "what becomes of an FFN (Algorithm 2; the object is W1 x W2, the form is open)"]
Whiten = Annotated[bool, "FFN directions by the energy of outputs on calibration data (SVD-LLM, 2403.07378); open"]
Gate = Annotated[gates.Relaxation, "a gate's relaxation: hard-concrete (Louizos 2018), or sigmoid; open"]
Task = Annotated[gates.Task, "task loss: KL to the dense model, or cross-entropy, on answers; open"]
Information = Annotated[float, "weight of J, averaged over layers, beside the task loss (its size is open)"]
Steps = Annotated[int, "training steps, a mini-batch of the calibration set each (`a few hundred`)"]
Rate = Annotated[float, "Adam's learning rate of the gates' ln a; open"]
