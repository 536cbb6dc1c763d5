"""The recipe of the embedded model: trains a checkpoint folder on generated scenes or on a parquet file.

    infoprune reference train --out runs/reference --images 300000
    infoprune reference train --data mine.parquet --out runs/mine

Besides the answers, linear read-outs of the projected image tokens learn which thing is in each merged patch, and where
it is. They train the vision tower long before the answers could, and are dropped at the end. After an interruption, the
same command continues from the last save: weights in `OUT/`, optimiser state and curve in `OUT/state/`.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness.files import public, put
from harness.reference.attention import Layout, enable
from harness.reference.model import build
from harness.reference.packing import CELL_CLASSES, CONTENT, IGNORED, Example, ExampleBatches, Packer, SceneBatches


@dataclass(frozen=True)
class Recipe:
    """All numbers of the training run, counted in images. You may raise `images` later to continue a run."""

    look: int = 192_000  # images on which only the tower and the read-outs train: four times as many images per second
    images: int = 406_400  # in total
    look_batch: int = 64
    batch: int = 32
    rate: float = 3e-3
    warmup: int = 4_000
    decay: float = 0.4  # final share of the questions' phase, over which the rate falls linearly to zero
    ramp: int = 20_000  # images until the questions' scenes reach full difficulty
    suffix: float = 0.2  # share of batches whose questions carry the short-answer instruction
    cells: float = 0.5  # weight of the read-outs' loss; that of the answers is 1
    weight_decay: float = 0.02
    seed: str = "train"
    every: int = 12_800  # between saves and measurements

    def rate_at(self, done: int) -> float:
        """The learning rate after `done` images."""
        begun = done - (self.look if done >= self.look else 0)
        rise = min(1.0, (begun + self.batch) / self.warmup)
        fall = min(1.0, (self.images - done) / max(1.0, self.decay * (self.images - self.look)))
        return self.rate * rise * max(0.0, fall)


def look(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The projected image tokens of all images, (tokens, width)."""
    return model.model.visual(batch["patches"], grid_thw=batch["grid"]).pooler_output


def answer(model: Any, batch: dict[str, Any], image_tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the positions that predict an answer token, and these tokens."""
    core = model.model
    embedded = core.get_input_embeddings()(batch["ids"])
    places = (batch["ids"] == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(places, image_tokens.to(embedded.dtype))
    start, count, size = batch["shape"]
    layout = {"full_attention": Layout(start, count, size, batch["valid"])}
    hidden = core.language_model(
        inputs_embeds=embedded, attention_mask=layout, position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    is_answer = batch["labels"][:, 1:] != IGNORED
    return model.lm_head(hidden[:, :-1][is_answer]), batch["labels"][:, 1:][is_answer]


class Readouts(torch.nn.Module):
    """One linear classifier per property of a merged patch; used only in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, classes) for classes in CELL_CLASSES.values())

    def accuracy(self, seen: torch.Tensor, cells: torch.Tensor) -> dict[str, float]:
        """Share of filled cells that are classified right, per property."""
        seen = functional.layer_norm(seen, seen.shape[-1:])
        accuracies = {}
        for column, (name, head) in enumerate(zip(CELL_CLASSES, self.heads, strict=True)):
            filled = cells[:, column] > (0 if column < CONTENT else IGNORED)
            if bool(filled.any()):
                accuracies[name] = float((head(seen[filled]).argmax(-1) == cells[filled, column]).float().mean())
        return accuracies

    def loss(self, seen: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        seen = functional.layer_norm(seen, seen.shape[-1:])
        terms = []
        for column, head in enumerate(self.heads):
            target = cells[:, column]
            if bool((target == IGNORED).all()):
                continue
            each = functional.cross_entropy(head(seen).float(), target, reduction="none", ignore_index=IGNORED)
            filled = (target > 0).float() if column < CONTENT else torch.ones_like(each)
            # Most cells are empty, so the filled ones get half of the weight.
            terms.append((each * filled).sum() / filled.sum().clamp(min=1) + (each * (1 - filled)).mean())
        return torch.stack(terms).mean() if terms else seen.sum() * 0


def optimisers(model: Any, readouts: Readouts, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks and projector; AdamW for embeddings, patches, norms, biases and read-outs."""
    inner, outer = [], list(readouts.parameters())
    for name, parameter in model.named_parameters():
        (inner if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name else outer).append(parameter)
    muon = torch.optim.Muon(inner, lr=recipe.rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(outer, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)]


def _state(opts: Sequence[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    flat = {}
    for number, opt in enumerate(opts):
        for index, values in opt.state_dict()["state"].items():
            for key, value in values.items():
                flat[f"{number}.{index}.{key}"] = torch.as_tensor(value).contiguous()
    return flat


def _restore(opts: Sequence[torch.optim.Optimizer], flat: dict[str, torch.Tensor]) -> None:
    for number, opt in enumerate(opts):
        state: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, value in flat.items():
            owner, index, key = name.split(".", 2)
            if int(owner) == number:
                state[int(index)][key] = value
        opt.load_state_dict({**opt.state_dict(), "state": dict(state)})


@torch.no_grad()
def measure(
    model: Any, readouts: Readouts, batches: Sequence[dict[str, Any]], device: str
) -> dict[str, dict[str, float]]:
    """Accuracy of the read-outs and, per question form, of the answers.

    Answers are teacher-forced, and every token must be right.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    cells: dict[str, list[float]] = defaultdict(list)
    for batch in (_to(batch, device) for batch in batches):
        seen = look(model, batch)
        for name, value in readouts.accuracy(seen, batch["cells"]).items():
            cells[name].append(value)
        logits, targets = answer(model, batch, seen)
        hits = (logits.argmax(-1) == targets).tolist()
        rows, places = (t.tolist() for t in (batch["labels"][:, 1:] != IGNORED).nonzero(as_tuple=True))
        start, _, size = batch["shape"]
        all_right: dict[tuple[int, int], bool] = {}
        for row, place, hit in zip(rows, places, hits, strict=True):
            question = (row, (place + 1 - start) // size)
            all_right[question] = all_right.get(question, True) and hit
        for (row, number), hit in all_right.items():
            right[batch["forms"][row][number]].append(hit)
    return {
        "accuracy": {form: round(sum(hits) / len(hits), 3) for form, hits in sorted(right.items())},
        "cells": {name: round(sum(values) / len(values), 3) for name, values in cells.items()},
    }


def _to(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def train(
    out: Path,
    recipe: Recipe,
    *,
    start: Path | None = None,
    examples: Sequence[Example] | None = None,
    held_out: Sequence[Example] | None = None,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Train until `recipe.images`, saving to `out` regularly; returns `out`.

    `start`: the checkpoint folder to begin with (default: a new one). `examples` replace the generated scenes;
    `held_out` are the examples for the curve. `report` gets each row of the curve, `progress` the number of images
    after each step. Raises FloatingPointError if the loss becomes infinite or NaN.
    """
    state = out / "state"
    done, curve = 0, []
    if (state / "progress.json").is_file():
        saved = json.loads((state / "progress.json").read_text())
        done, curve = saved["images"], saved["curve"]
    else:
        state.mkdir(parents=True, exist_ok=True)
        if start is None:
            build(out)
    source = out if done or start is None else start
    processor: Any = AutoProcessor.from_pretrained(source)
    loader: Any = AutoModelForImageTextToText  # its decorators hide the signature
    model: Any = loader.from_pretrained(source, dtype=torch.float32).to(device).train()
    enable(model)
    torch.manual_seed(0)  # initial weights of the read-outs
    readouts = Readouts(model.config.text_config.hidden_size).to(device)
    opts = optimisers(model, readouts, recipe)
    if done:
        saved = load_file(state / "optimiser.safetensors")
        readouts.load_state_dict(
            {k.removeprefix("readouts."): saved.pop(k) for k in list(saved) if k.startswith("readouts.")}
        )
        _restore(opts, saved)

    packer = Packer(processor)
    held_out_batches = _judged(packer, recipe, held_out or examples)

    def save() -> None:
        model.save_pretrained(out)
        processor.save_pretrained(out)
        tensors = {**_state(opts), **{f"readouts.{k}": v for k, v in readouts.state_dict().items()}}
        public(out)
        whole = {k: v.contiguous() for k, v in tensors.items()}
        put(state / "optimiser.safetensors", lambda temporary: save_file(whole, temporary))
        text = json.dumps({"images": done, "recipe": asdict(recipe), "curve": curve}, indent=1)
        put(state / "progress.json", lambda temporary: temporary.write_text(text))

    clock, losses, last_done = time.perf_counter(), [], done
    for batch, size in _batches(packer, recipe, done, examples):
        for group in (group for opt in opts for group in opt.param_groups):
            group["lr"] = recipe.rate_at(done)
        batch = _to(batch, device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            seen = look(model, batch)
            answers = answer(model, batch, seen) if done >= recipe.look else None
        cells = readouts.loss(seen.float(), batch["cells"])
        answer_loss = functional.cross_entropy(answers[0].float(), answers[1]) if answers else torch.zeros(())
        (answer_loss + recipe.cells * cells).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        losses.append((answer_loss.item(), cells.item()))
        if not math.isfinite(sum(losses[-1])):
            raise FloatingPointError(f"the loss is not finite after {done} images")
        done += size
        progress(done)
        if done // recipe.every != (done - size) // recipe.every or done >= recipe.images:
            row = {
                "images": done,
                "images_per_s": round((done - last_done) / (time.perf_counter() - clock), 1),
                "loss": round(sum(a for a, _ in losses) / len(losses), 4),
                "cells_loss": round(sum(c for _, c in losses) / len(losses), 4),
                "rate": recipe.rate_at(done),
                **measure(model.eval(), readouts, held_out_batches, device),
            }
            model.train()
            curve.append(row)
            save()
            report(row)
            clock, losses, last_done = time.perf_counter(), [], done
    return out


def _judged(packer: Packer, recipe: Recipe, examples: Sequence[Example] | None) -> list[dict[str, Any]]:
    """The batches on which the curve is measured."""
    if examples is None:
        scenes = SceneBatches(packer, 2 * recipe.batch, "held out")
        return [scenes[i] for i in range(8)]
    fixed = ExampleBatches(packer, recipe.batch, "held out", examples)
    return [fixed[i] for i in range(max(1, min(16, len(examples) // recipe.batch)))]


def _batches(
    packer: Packer, recipe: Recipe, done: int, examples: Sequence[Example] | None
) -> Iterator[tuple[dict[str, Any], int]]:
    """Training batches with their sizes, from the current state on: first for the tower alone, then with questions."""
    if examples is not None:
        questions: Any = ExampleBatches(packer, recipe.batch, recipe.seed, examples)
    else:
        questions = SceneBatches(packer, recipe.batch, recipe.seed, ramp=recipe.ramp, suffix=recipe.suffix)
    towers = SceneBatches(packer, recipe.look_batch, f"{recipe.seed}/look", questions=0)
    for begin, end, stream in ((0, recipe.look, towers), (recipe.look, recipe.images, questions)):
        steps = range(max(0, done - begin) // stream.size, math.ceil((end - begin) / stream.size))
        if len(steps):
            loader = DataLoader(stream, batch_size=None, sampler=list(steps), num_workers=1, prefetch_factor=6)
            yield from ((batch, stream.size) for batch in loader)
