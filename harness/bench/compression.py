"""The cost of compressing a model by one method on the usual path: seconds, and peak memory relative to the weights.

    bars("random", {}, device="cuda")  # sizes of Qwen2-VL-7B; on the CPU a seventh of its widths and depth

It runs statistics, ranking, solver and surgery, down to 1/3.2 of the FLOPs of both components. Weights and images are
random, because time and memory depend only on sizes.
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

from harness import families, registry
from harness.bench.bar import Bar
from harness.machine import memory
from harness.machine.timing import wait
from harness.metrics.memory import weight_bytes
from harness.progress import Progress, silent
from harness.pruning import solver, surgery
from harness.statistics import moments
from harness.statistics.calibration import Calibration, linears
from harness.trials.executors.local import resident
from harness.types import VLM, Budget, Sample

MODEL = "qwen2-vl-7b-geometry"
KEEP = 0.3125
ROUNDS = 3  # on the CPU
# Goals: peak memory over the weights, seconds on one H200, speed against plain SVDs.
MEMORY, SECONDS, SPEED = 1.3, 60.0, 8.0
SAMPLES = {"cuda": 128, "cpu": 11}  # 448 x 448 pixels, 256 tokens: about 1.9 and 1.1 rows per column of W2's input
TEXT = {"hidden_size": 512, "intermediate_size": 2704, "num_attention_heads": 8, "num_key_value_heads": 4}
VISION = {"embed_dim": 192, "num_heads": 8, "hidden_size": TEXT["hidden_size"]}
LAYERS, VOCABULARY, SECTION = 4, 3104, [8, 12, 12]
COMMAND = "infoprune bench --device cuda"


@dataclass(frozen=True)
class Spent:
    """The cost of one compression."""

    encoding: float  # seconds from images to the processor's pixels
    statistics: float  # seconds of the passes over the samples
    ranking: float  # seconds of the ranking without the passes
    solve: float
    surgery: float
    svd: float  # seconds of torch.linalg.svd of the FFNs' matrices, in float32
    passes: int
    peak_over_weights: float
    flops_kept: float

    @property
    def decided(self) -> float:
        """Seconds without the samples: neither their encoding nor the passes."""
        return self.ranking + self.solve + self.surgery


def bars(
    method: str,
    options: Mapping[str, Any],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Bar]:
    """The bars of a method: all of them on a GPU; on the CPU only the speed, for a smaller model in separate processes.

    The detail also holds memory and seconds on the CPU, although those of a small model say little about a large one.
    """
    method_text = " ".join([method, *(f"{key}={value}" for key, value in options.items())])
    progress(f"compression by {method_text}")
    if device.startswith("cuda"):
        rounds, model_text = [compress(registry.model(MODEL), method, options, "bfloat16", device)], MODEL
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (reduced(Path(folder)), method, dict(options), "float32", device)
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                rounds = [pool.apply(compress, arguments) for _ in range(ROUNDS)]
        model_text = f"{MODEL}, a seventh of widths and depth"
    spent = rounds[-1]
    detail = asdict(spent)
    speed = Bar.of(
        f"ranks and surgery by {method_text} against torch.linalg.svd of the same matrices ({model_text})",
        SPEED,
        [each.svd / each.decided for each in rounds],
        detail=detail,
    )
    peak = f"peak memory of compression by {method_text} over the weights ({MODEL}, bfloat16)"
    seconds = f"seconds of compression by {method_text} ({MODEL}, bfloat16; the goal is an H200's)"
    if not device.startswith("cuda"):
        not_measured = ((peak, MEMORY), (seconds, SECONDS))
        return [speed, *(Bar(name, goal, at_most=True, command=COMMAND) for name, goal in not_measured)]
    total_seconds = spent.encoding + spent.statistics + spent.decided
    return [
        speed,
        Bar(peak, MEMORY, spent.peak_over_weights, at_most=True, detail=detail),
        Bar(seconds, SECONDS, total_seconds, at_most=True, detail=detail),
    ]


def compress(folder: str, method: str, options: Mapping[str, Any], dtype: str, device: str) -> Spent:
    """Compress a model with random weights; then time the SVDs, one per shape.

    The peak counts the GPU's allocations; on the CPU, the resident memory of this process without what it used besides
    the weights before.
    """
    gpu = device.startswith("cuda")
    vlm = families.load(folder, dtype=dtype, device=device, random_weights=True)
    weights = weight_bytes(vlm)
    other_memory = 0 if gpu else resident() - weights
    memory.begin_peak(device)
    samples, wait_for_device = _samples(SAMPLES["cuda" if gpu else "cpu"]), wait(torch.device(device))
    # A small model gets no more room for moments, relative to its weights, than a large one.
    calibration = Calibration(vlm, samples, 16 if gpu else 2, room=int(moments.ROOM * weights))
    start = time.perf_counter()
    batch = next(calibration.batches())  # encodes all samples
    wait_for_device()
    encoding = time.perf_counter() - start
    with calibration.billed() as clock:
        ranking = registry.method(method).rank(vlm, calibration, seed=0, **options)
        wait_for_device()
        ranked, passed = clock(), calibration.pass_seconds
    extents = families.family(vlm.family).extents(vlm.model, batch)
    start = time.perf_counter()
    plan = solver.solve(vlm, ranking, Budget("all", KEEP, extents=extents))
    solved = time.perf_counter()
    pruned = surgery.apply(vlm, plan, ranking)
    wait_for_device()
    cut = time.perf_counter() - solved - (calibration.pass_seconds - passed)
    peak = memory.peak(device) - other_memory
    del pruned, ranking
    return Spent(
        encoding=encoding,
        statistics=calibration.pass_seconds,
        ranking=ranked - passed,
        solve=solved - start,
        surgery=cut,
        svd=_svds(vlm, wait_for_device),
        passes=calibration.passes,
        peak_over_weights=peak / weights,
        flops_kept=plan.achieved,
    )


def _samples(number: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (number, 448, 448, 3), generator=generator, dtype=torch.uint8)
    return [Sample(Image.fromarray(image.numpy()), "What is in the picture?", "two stars") for image in pixels]


def _svds(vlm: VLM, finish: Callable[[], None]) -> float:
    """Seconds of a plain SVD of every FFN Linear's weight, from one timed SVD per shape."""
    weights = [vlm.model.get_parameter(f"{path}.weight") for block in vlm.blocks for path in linears(block.ffn)]
    seconds_by_shape: dict[torch.Size, float] = {}
    torch.linalg.svd(weights[0].detach().float()[:64], full_matrices=False)  # loads the library
    for shape, weight in {weight.shape: weight.detach().float() for weight in weights}.items():
        finish()
        start = time.perf_counter()
        torch.linalg.svd(weight, full_matrices=False)
        finish()
        seconds_by_shape[shape] = time.perf_counter() - start
    return sum(seconds_by_shape[weight.shape] for weight in weights)


def reduced(folder: Path) -> str:
    """Fill a folder with the processor and a config of a seventh of the model's widths and depth; returns its path."""
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
