"""The recipe of the embedded model: trains a checkpoint folder on generated scenes, or on anybody's parquet file.

    infoprune reference train --out runs/reference --images 300000
    infoprune reference train --data mine.parquet --out runs/mine

Beside the answers, linear read-outs on the projected image tokens are asked what stands in each merged patch and where
it is; they teach the tower to see long before the answers could, and are thrown away. Stopped at any time, the same
command goes on from the last save: weights in `OUT/`, optimiser state and curve in `OUT/state/`.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness.reference.attention import Layout, enable
from harness.reference.model import build
from harness.reference.packing import CELL_CLASSES, IGNORED, Example, ExampleBatches, Packer, SceneBatches


@dataclass(frozen=True)
class Recipe:
    """Every number of the training run. `images` may be raised later: the run goes on."""

    images: int = 300_000
    batch: int = 32
    rate: float = 2e-3
    warmup: int = 3_200  # images
    decay: float = 0.35  # share of the run over which the rate falls linearly to zero, at its end
    ramp: int = 20_000  # images over which scenes grow to full difficulty
    suffix: float = 0.25  # share of images whose questions carry the short-answer instruction
    cells: float = 0.5  # weight of the read-outs
    weight_decay: float = 0.02
    seed: str = "train"
    every: int = 6_400  # images between saves and measurements

    def rate_at(self, images: int) -> float:
        rise = min(1.0, (images + self.batch) / self.warmup)
        fall = min(1.0, (self.images - images) / max(1.0, self.decay * self.images))
        return self.rate * rise * max(0.0, fall)


def forward(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits at the places that predict an answer token, those tokens, and the projected image tokens."""
    core = model.model
    seen = core.visual(batch["patches"], grid_thw=batch["grid"]).pooler_output
    embedded = core.get_input_embeddings()(batch["ids"])
    places = (batch["ids"] == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(places, seen.to(embedded.dtype))
    layout = {"full_attention": Layout(*batch["shape"], batch["valid"])}
    hidden = core.language_model(
        inputs_embeds=embedded, attention_mask=layout, position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    wanted = batch["labels"][:, 1:] != IGNORED
    return model.lm_head(hidden[:, :-1][wanted]), batch["labels"][:, 1:][wanted], seen


class Readouts(torch.nn.Module):
    """One linear classifier per question about a merged patch; only used while training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, classes) for classes in CELL_CLASSES.values())

    def loss(self, seen: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        seen = functional.layer_norm(seen, seen.shape[-1:])
        terms = []
        for column, head in enumerate(self.heads):
            target = cells[:, column]
            if bool((target == IGNORED).all()):
                continue
            each = functional.cross_entropy(head(seen).float(), target, reduction="none", ignore_index=IGNORED)
            filled = (target > 0).float() if column < 6 else torch.ones_like(each)
            # Most cells are empty: let the filled ones carry half of the weight.
            terms.append((each * filled).sum() / filled.sum().clamp(min=1) + (each * (1 - filled)).mean())
        return torch.stack(terms).mean() if terms else seen.sum() * 0


def optimisers(model: Any, readouts: Readouts, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks and projector, AdamW for embeddings, patches, norms, biases and read-outs."""
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
def measure(model: Any, batches: Sequence[dict[str, Any]], device: str) -> dict[str, float]:
    """Exact-match accuracy per question form, teacher forced: right when every token of the answer would be chosen."""
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        logits, targets, _ = forward(model, _to(batch, device))
        hits = (logits.argmax(-1) == targets).tolist()
        wanted = batch["labels"][:, 1:] != IGNORED
        rows, places = (t.tolist() for t in (batch["labels"][:, 1:] != IGNORED).nonzero(as_tuple=True))
        start, _, size = batch["shape"]
        whole: dict[tuple[int, int], bool] = {}
        for row, place, hit in zip(rows, places, hits, strict=True):
            question = (row, (place + 1 - start) // size)
            whole[question] = whole.get(question, True) and hit
        for (row, number), hit in whole.items():
            right[batch["forms"][row][number]].append(hit)
    return {form: sum(hits) / len(hits) for form, hits in sorted(right.items())}


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
) -> Path:
    """Train until `recipe.images`, saving to `out` as it goes; returns `out`.

    `start` is a checkpoint folder to begin from (default: freshly built). `examples` replaces the generated scenes,
    `held_out` what the curve is measured on. `report` is called with each row of the curve.
    """
    state = out / "state"
    done, curve = 0, []
    if (state / "progress.json").is_file():
        progress = json.loads((state / "progress.json").read_text())
        done, curve = progress["images"], progress["curve"]
    else:
        state.mkdir(parents=True, exist_ok=True)
        (build(out) if start is None else start)
    source = out if done or start is None else start
    processor: Any = AutoProcessor.from_pretrained(source)
    model: Any = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).to(device).train()
    enable(model)
    readouts = Readouts(model.config.text_config.hidden_size).to(device)
    opts = optimisers(model, readouts, recipe)
    if done:
        saved = load_file(state / "optimiser.safetensors")
        readouts.load_state_dict({k[9:]: saved.pop(k) for k in list(saved) if k.startswith("readouts.")})
        _restore(opts, saved)

    packer = Packer(processor)
    if examples is None:
        stream: Any = SceneBatches(packer, recipe.batch, recipe.seed, recipe.ramp, recipe.suffix)
        judge: Any = SceneBatches(packer, recipe.batch, "held out", 0, recipe.suffix)
        judged = [judge[i] for i in range(6)]
    else:
        stream = ExampleBatches(packer, recipe.batch, recipe.seed, examples)
        judge = ExampleBatches(packer, recipe.batch, "held out", held_out or examples)
        judged = [judge[i] for i in range(max(1, min(6, len(held_out or examples) // recipe.batch)))]
    steps = range(done // recipe.batch, math.ceil(recipe.images / recipe.batch))
    loader = DataLoader(stream, batch_size=None, sampler=list(steps), num_workers=1, prefetch_factor=6)

    def save() -> None:
        model.save_pretrained(out)
        processor.save_pretrained(out)
        tensors = {**_state(opts), **{f"readouts.{k}": v for k, v in readouts.state_dict().items()}}
        save_file({k: v.contiguous() for k, v in tensors.items()}, state / "optimiser.safetensors")
        text = json.dumps({"images": done, "recipe": asdict(recipe), "curve": curve}, indent=1)
        (state / "progress.json.part").write_text(text)
        (state / "progress.json.part").replace(state / "progress.json")

    clock, sums, last = time.perf_counter(), torch.zeros(2), done
    for step, batch in zip(steps, loader, strict=True):
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = recipe.rate_at(done)
        batch = _to(batch, device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits, targets, seen = forward(model, batch)
        answer = functional.cross_entropy(logits.float(), targets)
        cells = readouts.loss(seen.float(), batch["cells"])
        (answer + recipe.cells * cells).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        done = (step + 1) * recipe.batch
        sums += torch.tensor([answer.item(), cells.item()])
        if not math.isfinite(sums.sum().item()):
            raise FloatingPointError(f"the loss is no longer finite after {done} images")
        if done // recipe.every != (done - recipe.batch) // recipe.every or step == steps[-1]:
            taken = (done - last) / recipe.batch
            forms = measure(model.eval(), judged, device)
            model.train()
            row = {
                "images": done,
                "images_per_s": round((done - last) / (time.perf_counter() - clock), 1),
                "loss": round(sums[0].item() / taken, 4),
                "cells": round(sums[1].item() / taken, 4),
                "rate": recipe.rate_at(done),
                "accuracy": {form: round(value, 3) for form, value in forms.items()},
            }
            curve.append(row)
            save()
            report(row)
            clock, sums, last = time.perf_counter(), torch.zeros(2), done
    return out
