"""What it takes to compress a model by one method, by the ordinary path: seconds, and peak memory over the weights.

    bars("random", {}, device="cuda")  # Qwen2-VL-7B's sizes; on the CPU a seventh of its widths and of its depth

Statistics, ranking, solver and surgery, to 1/3.2 of the FLOPs of both components. Weights and images are random: time
and memory depend on sizes.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from harness import budget, families, memory, moments, registry, surgery
from harness.bars import Bar
from harness.calibration import Calibration, linears
from harness.executors.local import resident
from harness.metrics.latency import wait
from harness.metrics.memory import weight_bytes
from harness.types import VLM, Budget, Sample

MODEL = "qwen2-vl-7b-geometry"
KEEP = 0.3125
ROUNDS = 3  # on the CPU
MEMORY, SECONDS, SPEED = 1.3, 60.0, 8.0  # the goals: peak over the weights, on one H200, and against plain SVDs
SAMPLES = {"cuda": 128, "cpu": 11}  # of 448 x 448 pixels, 256 tokens: about 1.9 rows and 1.1 for a column of W2's input
TEXT = {"hidden_size": 512, "intermediate_size": 2704, "num_attention_heads": 8, "num_key_value_heads": 4}
VISION = {"embed_dim": 192, "num_heads": 8, "hidden_size": TEXT["hidden_size"]}
LAYERS, VOCABULARY, SECTION = 4, 3104, [8, 12, 12]
COMMAND = "infoprune bench --device cuda"


@dataclass(frozen=True)
class Spent:
    """What a compression took."""

    statistics: float  # seconds, of the passes over the samples
    ranking: float  # what of it is no pass
    solve: float
    surgery: float
    svd: float  # of torch.linalg.svd of the FFNs' matrices, in float32
    passes: int
    peak_over_weights: float
    flops_kept: float

    @property
    def decided(self) -> float:
        """Seconds without the passes."""
        return self.ranking + self.solve + self.surgery


def bars(
    method: str,
    options: Mapping[str, Any],
    *,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
) -> list[Bar]:
    """The bars of a method: on a GPU all of them; on the CPU, for a smaller model in processes of its own, the speed.

    What else was seen there is in its detail: memory and seconds of a small model say little of a large one's.
    """
    named = " ".join([method, *(f"{key}={value}" for key, value in options.items())])
    progress(f"compression by {named}")
    if device.startswith("cuda"):
        rounds, shown = [compress(registry.model(MODEL), method, options, "bfloat16", device)], MODEL
    else:
        with tempfile.TemporaryDirectory() as folder:
            given = (reduced(Path(folder)), method, dict(options), "float32", device)
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                rounds = [pool.apply(compress, given) for _ in range(ROUNDS)]
        shown = f"{MODEL}, a seventh of widths and depth"
    spent = rounds[-1]
    detail = asdict(spent)
    speed = Bar.of(
        f"ranks and surgery by {named} against torch.linalg.svd of the same matrices ({shown})",
        SPEED,
        [each.svd / each.decided for each in rounds],
        detail=detail,
    )
    peak = f"peak memory of compression by {named} over the weights ({MODEL}, bfloat16)"
    seconds = f"seconds of compression by {named} ({MODEL}, bfloat16; the goal is an H200's)"
    if not device.startswith("cuda"):
        unseen = ((peak, MEMORY), (seconds, SECONDS))
        return [speed, *(Bar(name, goal, at_most=True, command=COMMAND) for name, goal in unseen)]
    whole = spent.statistics + spent.decided
    return [
        speed,
        Bar(peak, MEMORY, spent.peak_over_weights, at_most=True, detail=detail),
        Bar(seconds, SECONDS, whole, at_most=True, detail=detail),
    ]


def compress(folder: str, method: str, options: Mapping[str, Any], dtype: str, device: str) -> Spent:
    """Compress a model of random weights; then do the SVDs, of each shape one for all.

    The peak is the GPU's allocations, or what this process has resident less what it had beside the weights before.
    """
    gpu = device.startswith("cuda")
    vlm = families.load(folder, dtype=dtype, device=device, random_weights=True)
    weights = weight_bytes(vlm)
    beside = 0 if gpu else resident() - weights
    memory.begin_peak(device)
    samples, finish = _samples(SAMPLES["cuda" if gpu else "cpu"]), wait(torch.device(device))
    # A small model's moments are to have no more room than a large one's.
    calibration = Calibration(vlm, samples, 16 if gpu else 2, room=int(moments.ROOM * weights))
    with calibration.billed() as clock:
        ranking = registry.method(method).rank(vlm, calibration, seed=0, **options)
        finish()
        ranked, passed = clock(), calibration.pass_seconds
    extents = families.family(vlm.family).extents(vlm.model, next(calibration.batches()))
    start = time.perf_counter()
    plan = budget.solve(vlm, ranking, Budget("all", KEEP, extents=extents))
    solved = time.perf_counter()
    pruned = surgery.apply(vlm, plan, ranking)
    finish()
    cut = time.perf_counter() - solved - (calibration.pass_seconds - passed)
    peak = memory.peak(device) - beside
    del pruned, ranking
    return Spent(
        statistics=calibration.pass_seconds,
        ranking=ranked - passed,
        solve=solved - start,
        surgery=cut,
        svd=_svds(vlm, finish),
        passes=calibration.passes,
        peak_over_weights=peak / weights,
        flops_kept=plan.achieved,
    )


def _samples(number: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (number, 448, 448, 3), generator=generator, dtype=torch.uint8)
    return [Sample(Image.fromarray(image.numpy()), "What is in the picture?", "two stars") for image in pixels]


def _svds(vlm: VLM, finish: Callable[[], None]) -> float:
    """Seconds of a plain SVD of every FFN Linear's weight, as long as the one of its shape that is timed."""
    weights = [vlm.model.get_parameter(f"{path}.weight") for block in vlm.blocks for path in linears(block.ffn)]
    took: dict[torch.Size, float] = {}
    for shape, weight in {weight.shape: weight.detach().float() for weight in weights}.items():
        finish()
        start = time.perf_counter()
        torch.linalg.svd(weight, full_matrices=False)
        finish()
        took[shape] = time.perf_counter() - start
    return sum(took[weight.shape] for weight in weights)


def reduced(folder: Path) -> str:
    """A folder with the model's config at a seventh of its widths and depth, and its processor."""
    source = Path(registry.model(MODEL))
    for file in source.iterdir():
        shutil.copy(file, folder)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text, vision = config["text_config"], config["vision_config"]
    rope = {**text["rope_parameters"], "mrope_section": SECTION}
    text |= TEXT | {"num_hidden_layers": LAYERS, "layer_types": text["layer_types"][:LAYERS]}
    text |= {"vocab_size": VOCABULARY, "rope_parameters": rope}
    vision |= VISION | {"depth": LAYERS}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)
