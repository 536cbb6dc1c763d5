"""`infoprune reference train`: runs the recipe with a progress bar, plots its curve, and reads the user's own data.

run(Path("runs/mine"), images=None, data=Path("mine.parquet"), start=None, device="cpu", console=Console())
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import families, registry, tasks
from harness.files import check_writable
from harness.pictures import opened
from harness.progress import progress_bar
from harness.reference.packing import Example
from harness.reference.train import Recipe, train
from harness.tasks import columns
from harness.tasks.truths import most_common
from harness.types import InputError

EPOCHS = 20  # over a parquet file, unless --images is given


def run(out: Path, *, images: int | None, data: Path | None, start: Path | None, device: str, console: Console) -> Path:
    """Train into `out`, continuing a run that is there; writes the curve to OUT/state/curve.png.

    Raises InputError for unusable data, for a `start` that is no supported checkpoint, and for an `out` that cannot be
    written.
    """
    if start is not None:
        start = Path(registry.model(str(start)))
        if families.load(start).family != "qwen2_vl":
            raise InputError(f"--start {start}: only a qwen2_vl checkpoint can be trained")
    recipe, training, held_out = Recipe(), None, None
    if data is not None:
        training, held_out = split(read(data))
        recipe = dataclasses.replace(
            recipe, look=0, cells=0.0, images=EPOCHS * len(training), every=max(320, len(training))
        )
        recipe = dataclasses.replace(
            recipe, warmup=min(recipe.warmup, recipe.images // 10), rate=1e-3 if start else recipe.rate
        )
    if images is not None:
        recipe = dataclasses.replace(recipe, images=images)
    check_writable(out, "--out")
    with progress_bar(console) as bar:
        task = bar.add_task("starting", total=recipe.images)

        def report(row: dict[str, Any]) -> None:
            mean = sum(row["accuracy"].values()) / len(row["accuracy"])
            text = f"loss {row['loss']:.3f}, accuracy {mean:.3f}, {row['images_per_s']:.0f} images/s"
            bar.update(task, completed=row["images"], description=text)
            console.print(f"{row['images']:>8} images: {text}")

        train(
            out,
            recipe,
            start=start,
            examples=training,
            held_out=held_out,
            device=device,
            report=report,
            progress=lambda done: bar.update(task, completed=done),
        )
    figure(out / "state" / "progress.json", out / "state" / "curve.png")
    return out


def read(path: Path) -> list[Example]:
    """The examples of a parquet file with the official columns: one per image, with each question's most common answer.

    Raises InputError naming file, row and column for data that cannot be used.
    """
    if not path.is_file():
        raise InputError(f"--data {path}: no such file; training reads one parquet file")
    target = "answer" if tasks.check(path)["form"] == "mini_gqa" else "answers"
    grouped: dict[bytes, list[tuple[str, str, str]]] = {}
    for _, row in columns.rows(columns.parquet(path), path, ["image", "question", target]):
        questions = (path.stem, row["question"], most_common(row))
        grouped.setdefault(row["image"]["bytes"], []).append(questions)
    return [Example(opened(content), tuple(questions)) for content, questions in grouped.items()]


def split(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Every tenth image is held out; with fewer than ten images, all are used both for training and for the curve."""
    held = list(examples[::10]) if len(examples) >= 10 else list(examples)
    return [e for i, e in enumerate(examples) if i % 10 or len(examples) < 10], held


def figure(progress: Path, target: Path) -> Path:
    """Plot a run over the images seen: accuracy of the answers per question set, and of the read-outs."""
    from matplotlib.figure import Figure

    saved = json.loads(progress.read_text(encoding="utf-8"))
    curve, recipe = saved["curve"], saved["recipe"]
    thousands = [row["images"] / 1000 for row in curve]
    plot = Figure(figsize=(10, 4), layout="constrained")
    left, right = plot.subplots(1, 2, sharex=True)
    for name in dict.fromkeys(form.split(".")[0] for row in curve for form in row["accuracy"]):
        means = []
        for row in curve:
            accuracies = [value for form, value in row["accuracy"].items() if form.split(".")[0] == name]
            means.append(sum(accuracies) / len(accuracies))
        left.plot(thousands, means, label=name)
    for name in dict.fromkeys(key for row in curve for key in row["cells"]):
        right.plot(thousands, [row["cells"].get(name) for row in curve], label=name)
    for axis, title in ((left, "answers, mean over question forms"), (right, "read-outs of merged patches")):
        axis.axvline(recipe["look"] / 1000, color="0.7", linestyle=":")
        axis.set(title=title, xlabel="images seen (thousands)", ylabel="accuracy on held-out scenes", ylim=(0, 1.02))
        if axis.lines[:-1]:
            axis.legend(fontsize=8)
    plot.savefig(target, dpi=120, metadata={"Software": None})
    return target
