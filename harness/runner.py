"""One trial, from a model to a record: load, calibrate, rank, solve, cut, measure.

    worker = Worker("cpu"); record, samples = worker.run(trial)

A worker keeps what trials share: the loaded model, its calibration, and each ranking, which serves every budget.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from harness import budget, families, record, registry, spec, surgery, tasks
from harness.calibration import Calibration
from harness.prompts import encode
from harness.types import VLM, Budget, Ranking, Trial

if TYPE_CHECKING:
    import pyarrow

Progress = Callable[[str], None]
PACKAGES = ("torch", "transformers", "lmms-eval", "fvcore", "numpy")


class Context:
    """What a metric gets besides the two models: the timed stages, a progress line, a place for samples."""

    def __init__(self, trial: Trial, progress: Progress) -> None:
        self.progress = progress
        self.samples: pyarrow.Table | None = None
        self._reference = trial.reference_input

    def inputs(self, vlm: VLM, batch: int = 1) -> dict[str, torch.Tensor]:
        """The trial's reference input, encoded for this model, `batch` times."""
        image = Image.new("RGB", tuple(self._reference["image"]), (128, 128, 128))
        device = next(vlm.model.parameters()).device
        return encode(vlm.processor, [[image]] * batch, [self._reference["text"]] * batch, device=device)

    def stages(self, vlm: VLM, batch: int = 1) -> dict[str, Callable[[], Any]]:
        return families.family(vlm.family).stages(vlm.model, self.inputs(vlm, batch))

    def attach_samples(self, table: pyarrow.Table) -> None:
        self.samples = table


class Worker:
    """Runs trials on one device, one after the other."""

    def __init__(self, device: str = "cpu", progress: Progress = lambda text: None) -> None:
        self.device, self.progress = device, progress
        # The trials of a board come sorted: the last model, calibration and ranking are the ones asked for next.
        self._dense = functools.lru_cache(maxsize=1)(self._load)
        self._calibration = functools.lru_cache(maxsize=1)(self._calibrate)
        self._ranking: tuple[Any, Ranking, float] | None = None

    def run(self, trial: Trial) -> tuple[dict[str, Any], pyarrow.Table | None]:
        """The record of a trial and its samples. A failure of the trial is a record too; an interrupt is passed on."""
        watch = _Watch(self.progress)
        method = registry.method(trial.method)
        made = blank(trial, self.device)
        context = Context(trial, self.progress)
        try:
            self._measure(trial, method, made, context, watch)
            with watch("record"):
                json.dumps(made, allow_nan=False)  # say, a NaN or a tensor in a method's log
        except Exception as error:  # the sweep goes on; the record says what happened
            fail(made, type(error).__name__, str(error), watch.phase)
            context.samples = None
        made["cost"].update(
            watch.seconds, total_s=time.perf_counter() - watch.start, peak_memory_bytes=peak(self.device)
        )
        return made, context.samples

    def _measure(
        self, trial: Trial, method: registry.Method, made: dict[str, Any], context: Context, watch: _Watch
    ) -> None:
        with watch("load"):
            dense = self._dense(trial.model, trial.dtype)
            made["hashes"]["weights"] = dense.weights_hash
        ranking, made["cost"]["ranking_s"] = self._rank(dense, trial, method, watch)
        made["log"] = dict(ranking.log)
        made["cost"]["calibration_samples"] = trial.calibration["samples"] if ranking.scores else 0
        with watch("solve"):
            extents = families.family(dense.family).extents(dense.model, context.inputs(dense))
            plan = budget.solve(dense, ranking, Budget(trial.scope, trial.budget, trial.units), extents)
        with watch("surgery"):
            pruned = surgery.apply(dense, plan, ranking)
        made["plan"] = plan.to_json()
        made["hashes"]["plan"] = record.trial_id(made["plan"])
        made["cost"]["metrics_s"] = {}
        for name in trial.metrics:
            measure = registry.metric(name)
            with watch(f"metric {name}"):
                start = time.perf_counter()
                made["metrics"][name] = measure(pruned, dense, trial, context)
                made["cost"]["metrics_s"][name] = time.perf_counter() - start
        made["hashes"]["data"] = tasks.data_hash(trial.tasks, trial.split, trial.limit)[:16]

    def _load(self, model: str, dtype: str) -> VLM:
        return families.load(registry.model(model), dtype=dtype, device=self.device, name=model)

    def _calibrate(
        self, model: str, dtype: str, drawn: tuple[str, ...], split: str, number: int, seed: int
    ) -> Calibration:
        return Calibration(self._dense(model, dtype), tasks.samples(drawn, split, number, seed))

    def _rank(self, dense: VLM, trial: Trial, method: registry.Method, watch: _Watch) -> tuple[Ranking, float]:
        """The method's ranking, kept until another is asked for, and the seconds it took to make."""
        drawn = trial.calibration
        draw = (trial.model, trial.dtype, tuple(drawn["tasks"]), drawn["split"], drawn["samples"], trial.seed)
        key = (method.name, repr(sorted(trial.options.items())), trial.seed, draw)
        if self._ranking is None or self._ranking[0] != key:
            with watch("calibration"):
                calibration = self._calibration(*draw)
            with watch("ranking"):
                start = time.perf_counter()
                ranking = method.rank(dense, calibration, seed=trial.seed, **trial.options)
                self._ranking = (key, ranking, time.perf_counter() - start)
        return self._ranking[1], self._ranking[2]


def blank(trial: Trial, device: str) -> dict[str, Any]:
    """A record with everything that is known before a trial runs."""
    method = registry.method(trial.method)
    described = {"title": method.title, "variant": trial.variant, "role": method.role, "regime": method.regime}
    return {
        "schema": record.SCHEMA,
        "id": spec.trial_id(trial),
        "status": "ok",
        "error": None,
        "trial": {**asdict(trial), **described},
        "plan": None,
        "metrics": {},
        "cost": {},
        "log": {},
        "env": facts(device),
        "code": code(),
        "hashes": {},
    }


def fail(made: dict[str, Any], kind: str, message: str, phase: str) -> None:
    """Turn a record into a failure record: no figures, but what went wrong and where."""
    error = {"type": kind, "message": message[:2000], "phase": phase}
    made.update(status="failed", metrics={}, log={}, plan=None, error=error)


class _Watch:
    """Names the phase a trial is in and sums the seconds of the harness's own phases."""

    def __init__(self, progress: Progress) -> None:
        self.start = time.perf_counter()
        self.progress, self.phase, self.seconds = progress, "start", {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.phase, start = phase, time.perf_counter()
        self.progress(phase)
        yield
        if phase in ("load", "calibration", "solve", "surgery"):
            self.seconds[f"{phase}_s"] = time.perf_counter() - start


def peak(device: str) -> int:
    """Peak memory of this process in bytes: of the GPU where there is one, else resident."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def facts(device: str) -> dict[str, Any]:
    """What is known of the machine: processor, memory, GPU with clocks, library versions."""
    found: dict[str, Any] = {
        "device": device,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": f"{_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "attention": "sdpa",
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_memory_bytes"] = properties.total_memory
        found["gpu_clock_mhz"] = torch.cuda.clock_rate(device)
        found["cuda"] = torch.version.cuda
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def code() -> dict[str, Any]:
    """Version of this package, and the git revision it runs from, if any."""
    found: dict[str, Any] = {"version": importlib.metadata.version("infoprune-bench"), "revision": None, "dirty": None}
    root = Path(__file__).parent.parent
    if (root / ".git").exists():

        def git(*words: str) -> str:
            return subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
            ).stdout.strip()

        found["revision"] = git("rev-parse", "HEAD")
        found["dirty"] = bool(git("status", "--porcelain", "--", "harness", registry.BUILT_IN))
    return found
