"""The recipe of the pretrained model: the projector's first lesson, then projector and adapters together on questions.

    train(Path("runs/pretrained"), Recipe(), model=model, processor=processor, painter=Painter(emoji_font()))

The tower and the language model's own weights stay as published (bfloat16); what is learned is kept in float32, with a
running average of it, which is what ships. Stopped at any time, even by SIGKILL, the same command goes on from the last
save: `OUT/state.safetensors` holds everything and is replaced in one move. `OUT/curve.jsonl` is the curve,
`OUT/adapters.safetensors` the average in bfloat16.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from harness.files import put
from harness.reference.pretrained.adapters import PROJECTOR, Learned
from harness.reference.pretrained.batches import IGNORED, Mix, Packer, SceneBatches
from harness.reference.pretrained.language import Language
from harness.reference.pretrained.render import Painter
from harness.reference.pretrained.warmup import Concepts, cells_loss, features, project, teach


@dataclass(frozen=True)
class Recipe:
    """Every number of the training run, counted in images. `images` may be raised later: the run goes on."""

    scenes: int = 8_000  # of the projector's first lesson
    epochs: int = 12
    lesson_rate: float = 1e-3
    images: int = 96_000
    before: int = 0  # images that the adapters it begins from have seen: this run's scenes are others
    batch: int = 8
    questions: int = 8  # an image
    writing: float = 0.25  # share of images with writing; things_textvqa and things_gqa reach their bars long before
    looks: int = 2  # turns of the forms of things_vqav2, on the others, to one of those of things_gqa
    rate: float = 5e-4  # of the adapters
    projector_rate: float = 1e-4  # four times as much undid the first lesson within a thousand images
    cells: float = 0.5  # weight of the first lesson's loss beside the answers
    warmup: int = 800
    decay: float = 0.25  # share of the run over which the rates fall linearly to zero, at its end
    average: float = 0.995  # decay of the running average, a step
    seed: str = "train"
    every: int = 800  # images between saves and measurements
    judged: int = 64  # held-out images that the curve is measured on

    @property
    def mix(self) -> Mix:
        """What the training images are asked; the curve is measured on an even mix."""
        return Mix(self.writing, ("things_vqav2",) * self.looks + ("things_gqa",))

    def share_at(self, done: int) -> float:
        """The rates' share of their highest value after this many images."""
        rise = min(1.0, (done + self.batch) / max(1, self.warmup))
        return rise * max(0.0, min(1.0, (self.images - done) / max(1.0, self.decay * self.images)))


class Run:
    """The state of a run: what is learned, its average, the optimiser's moments, how far it is, the curve."""

    def __init__(self, learned: Learned, recipe: Recipe) -> None:
        self.learned, self.recipe = learned, recipe
        self.done, self.seconds, self.curve = 0, 0.0, []
        self.average = {name: value.clone() for name, value in learned.tensors.items()}
        groups: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        for name, value in learned.tensors.items():
            groups[name.startswith(PROJECTOR)].append(value.requires_grad_())
        rates = {True: recipe.projector_rate, False: recipe.rate}
        self.optimiser = torch.optim.AdamW(
            [{"params": groups[key], "lr": rates[key], "rate": rates[key]} for key in (True, False)],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )

    def step(self) -> None:
        """One step with the gradients as they are, at the rate of this place in the run."""
        share = self.recipe.share_at(self.done)
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * share
        torch.nn.utils.clip_grad_norm_(list(self.learned.tensors.values()), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        steps = self.done // self.recipe.batch
        keep = min(self.recipe.average, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for name, value in self.average.items():
                value.lerp_(self.learned.tensors[name], 1 - keep)

    def save(self, out: Path) -> None:
        """Write state, curve and averaged adapters to `out`, each whole or not at all."""
        tensors = {}
        for name, value in self.learned.tensors.items():
            tensors[f"learned/{name}"], tensors[f"average/{name}"] = value.detach(), self.average[name]
            for key, moment in self.optimiser.state[value].items():
                tensors[f"{key}/{name}"] = torch.as_tensor(moment)
        about = {"done": self.done, "seconds": self.seconds, "recipe": asdict(self.recipe), "curve": self.curve}
        flat = {name: value.contiguous().cpu() for name, value in tensors.items()}
        put(out / "state.safetensors", lambda file: save_file(flat, file, {"run": json.dumps(about)}))
        lines = "".join(json.dumps(row) + "\n" for row in self.curve)
        put(out / "curve.jsonl", lambda file: file.write_text(lines))
        images = {"images": str(self.recipe.before + self.done)}
        Learned(self.average).save(out / "adapters.safetensors", about=images)

    @classmethod
    def restore(cls, path: Path, recipe: Recipe, device: str) -> Run:
        """The run that `save` wrote."""
        flat = load_file(path, device=device)
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["run"])
        recipe = replace(recipe, before=about["recipe"].get("before", 0))  # whatever it is told to begin from now
        parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, value in flat.items():
            part, _, own = name.partition("/")
            parts[part][own] = value
        run = cls(Learned(parts["learned"]), recipe)
        run.done, run.seconds, run.curve = about["done"], about["seconds"], about["curve"]
        run.average = parts["average"]
        for name, value in run.learned.tensors.items():
            moments = {key: parts[key][name] for key in ("step", "exp_avg", "exp_avg_sq") if name in parts[key]}
            if moments:
                run.optimiser.state[value] = moments
        return run


def loss_and_hits(
    model: Any, language: Language, learned: Learned, batch: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss over all answer tokens; whether each was predicted right; (row, question) of each; the image's tokens."""
    embedded = language.embedding[batch["ids"]]
    seen = project(learned.tensors, features(model, batch["pixels"]))
    places = (batch["ids"] == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(places, seen.to(embedded.dtype))
    hidden = language.forward(embedded, batch["positions"], batch["mask"], learned)
    wanted = batch["labels"][:, 1:] != IGNORED
    targets = batch["labels"][:, 1:][wanted]
    logits = (hidden[:, :-1][wanted] @ language.embedding.T).float()
    rows = wanted.nonzero()[:, 0]
    owner = torch.stack([rows, batch["part"][:, 1:][wanted]], 1)
    return functional.cross_entropy(logits, targets), logits.detach().argmax(-1) == targets, owner, seen


@torch.no_grad()
def measure(
    model: Any, language: Language, learned: Learned, batches: Sequence[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Share of questions answered right (teacher forced, every token), by set, and by form within each set."""
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        _, hits, owner, _ = loss_and_hits(model, language, learned, batch)
        whole: dict[tuple[int, int], bool] = {}
        for hit, (row, number) in zip(hits.tolist(), owner.tolist(), strict=True):
            whole[row, number] = whole.get((row, number), True) and hit
        for (row, number), hit in whole.items():
            right[batch["forms"][row][number - 1]].append(hit)
    forms = {form: round(sum(hits) / len(hits), 3) for form, hits in sorted(right.items())}
    sets: dict[str, list[float]] = defaultdict(list)
    for form, value in forms.items():
        sets[form.partition(".")[0]].append(value)
    return {"accuracy": {name: round(sum(v) / len(v), 3) for name, v in sets.items()}, "forms": forms}


def train(
    out: Path,
    recipe: Recipe,
    *,
    model: Any,
    processor: Any,
    painter: Painter,
    start: Learned | None = None,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> Path:
    """Train until `recipe.images`, saving to `out` as it goes; returns `out`.

    `model` holds the bare parts in bfloat16, `start` what to begin from (default: fresh adapters and the projector's
    first lesson). `report` is called with each row of the curve, `progress` with the images done and what goes on.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = model.to(device).requires_grad_(False)
    language = Language(model, model.dtype)
    concepts = Concepts(language.embedding, processor.tokenizer)
    packer = Packer(processor)
    judged = SceneBatches(packer, painter, recipe.batch, "held out", recipe.questions, training=False)
    held = [_to(judged[i], device, model.dtype) for i in range(max(1, recipe.judged // recipe.batch))]
    if (out / "state.safetensors").is_file():
        run = Run.restore(out / "state.safetensors", recipe, device)
    else:
        learned = start or Learned.of(model)
        learned.tensors = {name: value.to(device) for name, value in learned.tensors.items()}
        if start is None and recipe.scenes:
            lesson = {"scenes": recipe.scenes, "epochs": recipe.epochs, "rate": recipe.lesson_rate}
            share = teach(learned, model, concepts, painter, **lesson, progress=lambda _, text: progress(0, text))
            report({"images": 0, "tokens_right": round(share, 3)})
        run = Run(learned, recipe)
        run.save(out)
    before = run.recipe.before
    seed = f"{recipe.seed}, after {before}" if before else recipe.seed
    stream = SceneBatches(packer, painter, recipe.batch, seed, recipe.questions, recipe.mix)
    clock, losses, lessons, last = time.perf_counter(), [], [], run.done
    while run.done < recipe.images:
        batch = _to(stream[run.done // recipe.batch], device, model.dtype)
        loss, _, _, seen = loss_and_hits(model, language, run.learned, batch)
        lesson = cells_loss(concepts, seen, batch["scenes"])
        (loss + recipe.cells * lesson).backward()
        run.step()
        losses.append(loss.item())
        lessons.append(lesson.item())
        if not math.isfinite(losses[-1] + lessons[-1]):
            raise FloatingPointError(f"the loss is no longer finite after {run.done} images")
        run.done += recipe.batch
        progress(run.done, f"loss {sum(losses[-20:]) / len(losses[-20:]):.3f}")
        if run.done % recipe.every < recipe.batch or run.done >= recipe.images:
            spent = time.perf_counter() - clock
            run.seconds += spent
            row = {
                "images": run.done,
                "images_per_s": round((run.done - last) / spent, 2),
                "loss": round(sum(losses) / len(losses), 4),
                "cells_loss": round(sum(lessons) / len(lessons), 4),
                **measure(model, language, Learned(run.average), held),
            }
            run.curve.append(row)
            run.save(out)
            report(row)
            clock, losses, lessons, last = time.perf_counter(), [], [], run.done
    return out


def _to(batch: dict[str, Any], device: str, dtype: torch.dtype) -> dict[str, Any]:
    moved = {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    return {**moved, "mask": moved["mask"].to(dtype)}
