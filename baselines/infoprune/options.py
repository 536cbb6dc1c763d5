"""What the paper leaves open, as types of options: what each decides, and what there is to choose from.

`infoprune list methods` shows these lines beside the defaults. Defaults change on an ablation's evidence only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from baselines.infoprune import ffn, heads, spectrum

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
Weigh = Annotated[
    Literal["one", "gradient", "ablation"],
    "weight w_l of a layer: 1, the squared gate gradients of the answer loss, or its rise, in nats, without the layer",
]
