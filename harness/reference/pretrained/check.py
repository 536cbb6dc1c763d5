"""`infoprune reference check --model dinov2-smollm2`: is the pretrained model good, and blind without its images?

for bar in check(registry.model("dinov2-smollm2"), limit=150): print(bar.name, bar.ratio, bar.holds)
"""

from __future__ import annotations

from rich.console import Console

from harness import families, tasks
from harness.bench.bar import Bar
from harness.progress import progress_bar
from harness.types import Questions

GOALS = {"things_vqav2": 0.85, "things_gqa": 0.80, "things_textvqa": 0.70}
BLANK = 0.45


def check(
    model: str,
    *,
    limit: int | None = None,
    split: str = "validation",
    dtype: str = "float32",
    device: str = "cpu",
    console: Console | None = None,
) -> list[Bar]:
    """Accuracy of each set with its images and with gray ones, through the harness's own evaluation."""
    vlm = families.load(model, dtype=dtype, device=device)
    bars = []
    with progress_bar(console) as bar:
        task = bar.add_task("", total=2 * len(GOALS))
        for name, goal in GOALS.items():
            bar.update(task, description=name)
            shown, _ = tasks.evaluate(vlm, Questions((name,), split, limit))
            bars.append(Bar(f"accuracy, {name}", goal, shown["mean"]))
            bar.advance(task)
            bar.update(task, description=f"{name}, image blanked")
            blank, _ = tasks.evaluate(vlm, Questions((name,), split, limit), images="blank")
            bars.append(Bar(f"accuracy with the image blanked, {name}", BLANK, blank["mean"], at_most=True))
            bar.advance(task)
    return bars
