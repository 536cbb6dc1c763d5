"""The projector's first lesson: each image token is taught the word embedding of what lies on it.

    teach(learned, model, concepts, painter, scenes=8000, epochs=12, rate=1e-3)

Without it thousands of images teach nothing: the language model learns to answer from the question alone before the
projector says anything that it could use. The tower's features are computed once and kept in memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from harness.reference.pretrained.adapters import PROJECTOR, Learned
from harness.reference.pretrained.batches import pixels
from harness.reference.pretrained.render import Painter
from harness.reference.pretrained.scenes import COLOURS, GROUNDS, SIDE, WORDS, Item, Scene, things_scene, writing_scene
from harness.reference.pretrained.things import NAMES
from harness.reference.scenes import font

TEMPERATURE = 0.07
EXACT = 0.5
BATCH = 512


class Concepts:
    """The words that a token can be taught, with the language model's embedding of each."""

    def __init__(self, embedding: torch.Tensor, tokenizer: Any) -> None:
        letters = sorted(set("".join(WORDS).upper()))
        names = [*NAMES, *COLOURS, *GROUNDS, *letters, *"0123456789"]
        self.names = list(dict.fromkeys(names))
        self.place = {name: i for i, name in enumerate(self.names)}
        rows = []
        for name in self.names:
            ids = tokenizer(name if name.isdigit() else f" {name}", add_special_tokens=False)["input_ids"]
            rows.append(embedding[ids].float().mean(0))
        self.vectors = torch.stack(rows)
        # Embeddings have a large common part: without it, the directions of two words differ clearly.
        self.directions = functional.normalize(self.vectors - self.vectors.mean(0), dim=-1)

    def bare(self, weights: torch.Tensor) -> torch.Tensor:
        """Whether tokens with these targets show nothing but the background."""
        grounds = torch.tensor([self.place[name] for name in GROUNDS], device=weights.device)
        return (weights.max(-1).values == 1) & torch.isin(weights.argmax(-1), grounds)

    def targets(self, scene: Scene, cells: int) -> torch.Tensor:
        """What each of cells x cells tokens shows, (cells * cells, concepts): weights that sum to one.

        All zero for a token on the edge of something: too little of it is there to be told.
        """
        weights = torch.zeros(cells, cells, len(self.names))
        edge = SIDE / cells
        for row in range(cells):
            for column in range(cells):
                x, y = (column + 0.5) * edge, (row + 0.5) * edge
                for name, weight in _shown(scene, x, y).items():
                    weights[row, column, self.place[name]] += weight
        return weights.flatten(0, 1)


def _shown(scene: Scene, x: float, y: float) -> dict[str, float]:
    """The concepts at a point of the scene, with their weights; none on an edge."""
    for item in scene.items:
        across, down = (x - item.x) / item.wide, (y - item.y) / item.high
        if abs(across) > 1.15 or abs(down) > 1.15:
            continue
        middle = item.y
        if item.thing and not item.text:
            if across**2 + down**2 > 0.7:
                return {}
            return {item.name: 0.7, item.colour: 0.3} if item.colour else {item.name: 1.0}
        if item.thing:
            middle = item.y + item.high - 0.45 * item.points  # its label's
            half = item.high - 0.45 * item.points
            if y < middle - 0.45 * item.points:
                inside = (x - item.x) ** 2 + (y - item.y + item.high - half) ** 2 < 0.7 * half**2
                return {item.name: 1.0} if inside else {}
        letter = _letter(item, x, y - middle)
        if not letter:
            return {}
        return {letter: 0.7, item.colour: 0.3} if item.colour else {letter: 1.0}
    return {scene.ground: 1.0}


def _letter(item: Item, x: float, down: float) -> str:
    """The letter or digit of an item's text that stands at x; none beside the text."""
    width = font(item.font, item.points).getlength(item.text.upper())
    width = min(width, 2 * item.wide - 4)
    place = (x - item.x) / width + 0.5
    if not 0 <= place < 1 or abs(down) > 0.4 * item.points:
        return ""
    return item.text[int(place * len(item.text))].upper()


def project(tensors: dict[str, torch.Tensor], shuffled: torch.Tensor) -> torch.Tensor:
    """The projector's output for pixel-shuffled tower features (..., 1536), with these weights."""
    weights = {name.removeprefix(f"{PROJECTOR}."): t for name, t in tensors.items() if name.startswith(PROJECTOR)}
    with torch.autocast(shuffled.device.type, torch.bfloat16, enabled=shuffled.dtype == torch.bfloat16):
        x = functional.layer_norm(
            shuffled.float(), shuffled.shape[-1:], weights["layer_norm.weight"], weights["layer_norm.bias"]
        )
        x = functional.gelu(functional.linear(x, weights["linear_1.weight"], weights["linear_1.bias"]))
        return functional.linear(x, weights["linear_2.weight"], weights["linear_2.bias"]).float()


def features(model: Any, images: torch.Tensor) -> torch.Tensor:
    """What the projector reads: the tower's patches, pixel-shuffled, (n, tokens, 4 * width)."""
    with torch.no_grad():
        seen = model.model.vision_tower(pixel_values=images.to(model.dtype)).last_hidden_state[:, 1:]
        side = round(seen.shape[1] ** 0.5)
        return model.model.pixel_shuffle(seen.unflatten(1, (side, side)), scale_factor=0.5).flatten(1, 2)


def teach(
    learned: Learned,
    model: Any,
    concepts: Concepts,
    painter: Painter,
    *,
    scenes: int,
    epochs: int,
    rate: float,
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> float:
    """Train the projector alone; returns the share of held-out tokens on items whose heaviest concept comes first.

    For the first half, the four patches of a token share their weights: what a patch shows does not depend on where in
    the token it lies, so every scene teaches four times as much.
    """
    seen, wanted = _cache(model, concepts, painter, scenes, progress)
    held = max(1, scenes // 20)
    parameters = [t.requires_grad_() for name, t in learned.tensors.items() if name.startswith(PROJECTOR)]
    first = learned.tensors[f"{PROJECTOR}.linear_1.weight"]
    with torch.no_grad():
        first.copy_(_shared(first))
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    inputs, targets = seen[held:].flatten(0, 1), wanted[held:].flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    bare = concepts.bare(targets) & (torch.rand(len(targets), generator=generator) > 0.1)
    kept = (~bare & (targets.sum(-1) > 0.5)).nonzero()[:, 0]
    inputs, targets = inputs[kept], targets[kept]
    steps, step = epochs * -(-len(inputs) // BATCH), 0
    share = 0.0
    for epoch in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(BATCH):
            optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - step / steps)
            loss = _loss(project(learned.tensors, inputs[rows]), targets[rows].float(), concepts)
            loss.backward()
            if 2 * epoch < epochs:
                first.grad = _shared(first.grad)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
        share, things, letters = _right(learned, seen[:held].flatten(0, 1), wanted[:held].flatten(0, 1), concepts)
        progress(scenes, f"projector, round {epoch + 1} of {epochs}: {things:.3f} of things, {letters:.3f} of letters")
    for tensor in parameters:
        tensor.requires_grad_(False)
    return share


def _shared(weight: Any) -> torch.Tensor:
    """The mean over a token's four patches, for each of them."""
    return weight.unflatten(1, (4, -1)).mean(1, keepdim=True).expand(-1, 4, -1).flatten(1).contiguous()


def _cache(
    model: Any, concepts: Concepts, painter: Painter, scenes: int, progress: Callable[[int, str], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tower features and targets of many crowded scenes."""
    seen, wanted, size = [], [], 16
    for start in range(0, scenes, size):
        drawn = [_scene(number) for number in range(start, min(scenes, start + size))]
        shuffled = features(model, pixels([painter.render(scene) for scene in drawn], SIDE))
        seen.append(shuffled)
        cells = round(shuffled.shape[1] ** 0.5)
        wanted.append(torch.stack([concepts.targets(scene, cells) for scene in drawn]).half())
        progress(start + len(drawn), "features of the tower")
    return torch.cat(seen), torch.cat(wanted)


def _scene(number: int) -> Scene:
    rng = random.Random(f"projector/{number}")
    if rng.random() < 0.3:
        return writing_scene(rng, training=True)
    return things_scene(rng, training=True, number=rng.choice((3, 4, 5, 6)))


def cells_loss(concepts: Concepts, out: torch.Tensor, scenes: Sequence[Scene | None]) -> torch.Tensor:
    """The lesson's loss on the projected tokens (n, tokens, width) of these scenes, a little of it from bare ground."""
    cells = round(out.shape[1] ** 0.5)
    known = [row for row, scene in enumerate(scenes) if scene is not None]
    if not known:
        return out.sum() * 0
    targets = torch.cat([concepts.targets(scene, cells) for scene in scenes if scene is not None]).to(out.device)
    flat = out[known].flatten(0, 1)
    bare = concepts.bare(targets)
    bare &= torch.arange(len(bare), device=out.device) % 10 > 0
    kept = ~bare & (targets.sum(-1) > 0.5)
    return _loss(flat[kept], targets[kept], concepts)


def _loss(out: torch.Tensor, targets: torch.Tensor, concepts: Concepts) -> torch.Tensor:
    """Which concepts, by direction; and the embedding itself, so that the length is right as well."""
    centred = out - concepts.vectors.mean(0)
    scores = functional.normalize(centred, dim=-1) @ concepts.directions.T / TEMPERATURE
    named = -(targets * scores.log_softmax(-1)).sum(-1).mean()
    mean = targets @ concepts.vectors
    return named + EXACT * (out - mean).pow(2).sum(-1).mean() / mean.pow(2).sum(-1).mean()


@torch.no_grad()
def _right(
    learned: Learned, seen: torch.Tensor, wanted: torch.Tensor, concepts: Concepts
) -> tuple[float, float, float]:
    """Share of the tokens on items (not on bare ground) that are read right: of all, on things, on letters."""
    first = ((project(learned.tensors, seen) - concepts.vectors.mean(0)) @ concepts.directions.T).argmax(-1)
    heaviest = wanted.argmax(-1)
    on_items = ~concepts.bare(wanted) & (wanted.sum(-1) > 0.5)
    hits = first == heaviest
    things, letters = on_items & (heaviest < len(NAMES)), on_items & (heaviest >= len(NAMES))
    return tuple(float(hits[part].float().mean()) for part in (on_items, things, letters))  # pyright: ignore
