"""One trial, from a model to a record: load, calibrate, rank, solve, cut, tune, measure.

    worker = Worker("cpu"); record, samples = worker.run(trial)

A worker keeps what trials share: the loaded model, its calibration, and each ranking, which serves every budget.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from harness import budget, control, families, prices, provenance, record, registry, spec, surgery, tasks, tuning
from harness.calibration import Calibration, Made
from harness.machine import Machine, facts, machine, step
from harness.memory import begin_peak, out_of_memory, peak, release
from harness.phases import STEPS, Watch
from harness.prompts import encode
from harness.types import VLM, Budget, Component, Extent, InputError, Loading, Plan, Ranking, Trial

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
Shared = tuple[Any, Ranking, float, Made]  # what it is a ranking of, the seconds it took, what a repair may look at
Answered = tuple[str, dict[Any, Any]]  # the hash of the plan, and the replies of the model cut by it
BATCH = 16  # of calibration, unless memory is short
SHRINKS = ("calibration", "ranking", "repair", "surgery")  # phases that a smaller one helps


class Context:
    """What a metric gets besides the two models: timed stages, a progress line, the machine, answers made elsewhere, a
    place for samples."""

    def __init__(self, trial: Trial, progress: Progress) -> None:
        self.progress = progress
        self.samples: pyarrow.Table | None = None
        self.replies: dict[Any, Any] = {}  # batches of the questions that the pruned model answered elsewhere
        self._reference = trial.reference_input

    def inputs(self, vlm: VLM, batch: int = 1, image_size: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
        """The trial's reference input `batch` times, encoded for this model; with an image of another size if given."""
        width, height = image_size or self._reference["image"]
        image = Image.new("RGB", (width, height), (128, 128, 128))
        device = next(vlm.model.parameters()).device
        return encode(vlm.processor, [[image]] * batch, [self._reference["text"]] * batch, device=device)

    def stages(
        self, vlm: VLM, batch: int = 1, image_size: tuple[int, int] | None = None
    ) -> dict[str, Callable[[], Any]]:
        return families.family(vlm.family).stages(vlm.model, self.inputs(vlm, batch, image_size))

    def machine(self, vlm: VLM) -> Machine:
        """What the machine can do at best on this model's device, in its dtype."""
        weight = next(vlm.model.parameters())
        return machine(str(weight.device), str(weight.dtype).removeprefix("torch."))

    def attach_samples(self, table: pyarrow.Table) -> None:
        self.samples = table


@dataclass(frozen=True)
class Pruned:
    """What a trial makes of a model, and its record without figures."""

    dense: VLM
    vlm: VLM
    plan: Plan
    record: dict[str, Any]


class Worker:
    """Runs trials on one device, one after the other."""

    def __init__(self, device: str = "cpu", progress: Progress = lambda text: None) -> None:
        self.device, self.progress = device, progress
        # The trials of a board come sorted: the last model, calibration and ranking are the ones asked for next.
        self._dense = functools.lru_cache(maxsize=1)(self._load)
        self._calibration = functools.lru_cache(maxsize=1)(self._calibrate)
        self._tuning_calibration = functools.lru_cache(maxsize=1)(self._calibrate)
        self._prices: tuple[Any, prices.Rates, float] | None = None
        self._ranking: Shared | None = None
        self._batch = BATCH  # questions that calibration looks at together

    def run(self, trial: Trial, answers: Sequence[Answered] = ()) -> tuple[dict[str, Any], pyarrow.Table | None]:
        """The record of a trial and its samples. A failure of the trial is a record too; an interrupt is passed on.

        answers: what other workers' `answer` gave; what is missing there is answered here.
        """
        watch = Watch(self.progress)
        begin_peak(self.device)
        while (found := self._attempt(trial, watch, answers)) is None:
            self._halve()  # here, where the error no longer holds what filled the memory
        made, samples = found
        if self._batch < BATCH:
            made["cost"]["calibration_batch"] = self._batch
        made["cost"].update(
            {f"{step}_s": watch.whole[step] for step in STEPS if step in watch.whole},
            phases_s=watch.own,
            total_s=time.perf_counter() - watch.start,
        )
        made["cost"].setdefault("peak_memory_bytes", peak(self.device))
        return made, samples

    def _attempt(
        self, trial: Trial, watch: Watch, answers: Sequence[Answered]
    ) -> tuple[dict[str, Any], pyarrow.Table | None] | None:
        """The record, without what it cost, and the samples; None if memory was short and smaller batches may help."""
        made, context = blank(trial, self.device), Context(trial, self.progress)
        try:
            with watch:
                self._measure(trial, registry.method(trial.method), made, context, watch, answers)
                with watch("record"):
                    json.dumps(made, allow_nan=False)  # say, a NaN or a tensor in a method's log
        except Exception as error:  # the sweep goes on; the record says what happened
            if out_of_memory(error) and watch.phase in SHRINKS and self._batch > 1:
                return None
            fail(made, type(error).__name__, str(error), watch.phase)
            return made, None
        return made, context.samples

    def _halve(self) -> None:
        """Forget what was computed in batches that memory does not hold, and go on with smaller ones."""
        self._batch //= 2
        self._calibration.cache_clear()
        self._ranking = None  # what it makes later, it makes from the calibration
        release()

    def _measure(
        self,
        trial: Trial,
        method: registry.Method,
        made: dict[str, Any],
        context: Context,
        watch: Watch,
        answers: Sequence[Answered],
    ) -> None:
        dense, pruned, plan = self._make(trial, method, made, context, watch)
        for same, replies in answers:
            context.replies |= replies if same == made["hashes"]["plan"] else {}
        made["cost"] |= {"metrics_s": {}, "peak_memory_bytes": peak(self.device)}  # before metrics: the method's own
        for name in trial.metrics:
            measure = registry.metric(name)
            with watch(f"metric {name}"):
                start = time.perf_counter()
                made["metrics"][name] = measure(pruned, dense, trial, context)
                made["cost"]["metrics_s"][name] = time.perf_counter() - start
        if trial.currency == "latency" and "latency" in made["metrics"]:
            found = made["metrics"]["latency"]
            found["kept"] = {"requested": trial.budget, "predicted": plan.achieved, "measured": 1 / found["speedup"]}
        with watch("hashes"):
            made["hashes"]["data"] = tasks.data_hash(trial.tasks, trial.split, trial.limit)[:16]

    def share(self, trial: Trial) -> Shared | None:
        """The dense model's ranking that trials like this one ask for, for other workers to `adopt`.

        None where each budget has its own, and where it cannot be made: then each trial's record says why.
        """
        method, context, watch = registry.method(trial.method), Context(trial, self.progress), Watch(self.progress)
        if method.per_budget:
            return None
        try:
            dense = self.load(trial)
            extents = families.family(dense.family).extents(dense.model, context.inputs(dense))
            self._rank(dense, dense, trial, method, Budget(trial.scope, trial.budget, trial.units, extents), watch)
        except Exception as error:
            _say_unshared("ranking", trial, error)
            return None
        return self._ranking

    def adopt(self, ranking: Shared) -> None:
        """Use another worker's ranking for the trials that ask for it."""
        self._ranking = ranking

    def answer(self, trial: Trial, part: tuple[int, int]) -> Answered | None:
        """What the pruned model says to one of so many shares of the questions, for another worker's `run`.

        None where that needs what is not shared (tuning, a ranking for each budget), where nothing is asked, and where
        it goes wrong: then the trial's own run answers, or says why not.
        """
        if trial.tuning.method != "none" or not set(spec.ANSWERED) & set(trial.metrics):
            return None
        if registry.method(trial.method).per_budget:
            return None
        first = "fidelity" in trial.metrics
        try:
            made = self.prune(trial)
            replies = tasks.answer_share(made.vlm, trial.tasks, trial.split, trial.limit, part, first=first)
        except Exception as error:
            _say_unshared("answers", trial, error)
            return None
        return made.record["hashes"]["plan"], replies

    def prune(self, trial: Trial) -> Pruned:
        """The models of a trial, nothing measured; what goes wrong is raised."""
        made = blank(trial, self.device)
        dense, pruned, plan = self._make(
            trial, registry.method(trial.method), made, Context(trial, self.progress), Watch(self.progress)
        )
        return Pruned(dense, pruned, plan, made)

    def _make(
        self, trial: Trial, method: registry.Method, made: dict[str, Any], context: Context, watch: Watch
    ) -> tuple[VLM, VLM, Plan]:
        with watch("load"):
            made["hashes"] |= provenance.hashes(trial)
            dense = self.load(trial)
            made["hashes"]["weights"] = dense.weights_hash
            made["env"] = {**made["env"], "attention": families.attention(dense.model)}
        with watch("inputs"):
            extents = families.family(dense.family).extents(dense.model, context.inputs(dense))
        pruned, plan = self._prune(dense, trial, method, extents, made, context, watch)
        made["plan"] = plan.to_json()
        made["hashes"]["plan"] = record.short_hash(made["plan"])
        return dense, pruned, plan

    def load(self, trial: Trial) -> VLM:
        """The dense model of a trial."""
        return self._dense(trial.model, trial.dtype, trial.loading)

    def _prune(
        self,
        dense: VLM,
        trial: Trial,
        method: registry.Method,
        extents: Mapping[Component, Extent],
        made: dict[str, Any],
        context: Context,
        watch: Watch,
    ) -> tuple[VLM, Plan]:
        """Rank, cut and tune: once, or in rounds that keep the same share each."""
        vlm, whole, rounds = dense, Plan({}, 1.0, 1.0), trial.tuning.rounds
        cost = made["cost"]
        for turn in range(1, rounds + 1):
            share = min(1.0, trial.budget ** (turn / rounds) / whole.achieved)
            with watch("prices"):
                asked = self._asked(vlm, trial, Budget(trial.scope, share, trial.units, extents), context)
            ranking, calibration, seconds = self._rank(vlm, dense, trial, method, asked, watch)
            made["log"] |= ranking.log  # in rounds, that of the last
            cost["ranking_s"] = cost.get("ranking_s", 0.0) + seconds
            cost["calibration_samples"] = trial.calibration["samples"] if ranking.scores else 0
            with watch("solve"):
                plan, ranking = self._solve(vlm, ranking, asked, trial)
                if trial.control == "random-units":
                    plan, ranking = control.redraw(vlm, plan, ranking, trial.seed)
                whole = plan if rounds == 1 else tuning.together(whole, plan)
            repaired = {}
            if method.repairs and trial.control == "none":
                with watch("repair"):
                    repaired = method.repair(vlm, calibration, plan, **trial.options)
            with watch("surgery"):
                vlm = surgery.apply(vlm, plan, ranking, repaired)
            if trial.tuning.method != "none":
                vlm = self._tune(vlm, trial, turn, made, watch)
        return vlm, replace(whole, requested=trial.budget, currency=trial.currency)

    def _asked(self, vlm: VLM, trial: Trial, flops: Budget, context: Context) -> Budget:
        """The budget in the trial's currency; of parameters, each of a Linear's weights is a multiply-add per token."""
        if trial.currency == "flops" or flops.keep == 1:
            return flops
        if trial.currency == "params":
            return replace(flops, extents={component: Extent(1, 0) for component in flops.extents})
        batch = max(trial.latency["batches"])
        key = (vlm.model, trial.scope, trial.units, repr(trial.latency), repr(trial.reference_input))
        if self._prices is None or self._prices[0] != key:  # one table serves every budget
            found = prices.seconds(
                vlm, flops, lambda one: context.stages(one, batch)[trial.scope], int(trial.latency["repeats"])
            )
            self._prices = (key, *found)
        return replace(flops, rates=self._prices[1], fixed=self._prices[2])

    def _solve(self, vlm: VLM, ranking: Ranking, asked: Budget, trial: Trial) -> tuple[Plan, Ranking]:
        """The plan with the widths that the trial wants, and the ranking that it is of; unless the trial says so, a
        GPU's widths are tried and not insisted on."""
        gpu = self.device.startswith("cuda")
        measured = trial.align == "auto" or (trial.align is None and gpu)
        align = step(self.device, trial.dtype) if measured else trial.align if isinstance(trial.align, int) else 1
        try:
            fitting = budget.aligned(ranking, align)
            return budget.solve(vlm, fitting, replace(asked, align=align)), fitting
        except InputError:
            if trial.align is not None or align == 1:
                raise
            return budget.solve(vlm, ranking, asked), ranking

    def _tune(self, vlm: VLM, trial: Trial, turn: int, made: dict[str, Any], watch: Watch) -> VLM:
        how, drawn = trial.tuning, trial.calibration
        with watch("tuning"):
            draw = (tuple(drawn["tasks"]), drawn["split"], how.samples, trial.seed)
            calibration = self._tuning_calibration((trial.model, trial.dtype, trial.loading), *draw, how.batch)
            tuned = tuning.tune(vlm, calibration, how, seed=trial.seed, turn=turn, progress=self.progress)
        made["log"].setdefault("tuning", []).append(list(tuned.curve))
        for key, amount in (("tuning_steps", tuned.steps), ("tuning_samples", tuned.samples)):
            made["cost"][key] = made["cost"].get(key, 0) + amount
        return tuned.vlm

    def _load(self, model: str, dtype: str, loading: Loading) -> VLM:
        return families.load(registry.model(model), dtype=dtype, device=self.device, name=model, **asdict(loading))

    def _calibrate(
        self,
        source: tuple[str, str, Loading],
        drawn: tuple[str, ...],
        split: str,
        number: int,
        seed: int,
        batch: int | None = None,
    ) -> Calibration:
        samples = tasks.samples(drawn, split, number, seed)
        return Calibration(self._dense(*source), samples, batch or self._batch, progress=self.progress)

    def _rank(
        self, vlm: VLM, dense: VLM, trial: Trial, method: registry.Method, asked: Budget, watch: Watch
    ) -> tuple[Ranking, Calibration, float]:
        """The method's ranking, its calibration, and the seconds it took to make.

        That of the dense model is kept until another is asked for; a later round's model is ranked anew.
        """
        drawn = trial.calibration
        source = (trial.model, trial.dtype, trial.loading)
        draw = (source, tuple(drawn["tasks"]), drawn["split"], drawn["samples"], trial.seed)
        key = (method.name, repr(sorted(trial.options.items())), trial.seed, draw, asked if method.per_budget else None)
        with watch("calibration"):
            calibration = self._calibration(*draw)
            if vlm is not dense:
                calibration = Calibration(vlm, calibration.samples, self._batch, progress=self.progress)
        if vlm is dense and self._ranking is not None and self._ranking[0] == key:
            calibration.adopt(self._ranking[3])
            return self._ranking[1], calibration, self._ranking[2]
        with watch("ranking"), calibration.billed() as clock:
            ranking = method.rank(vlm, calibration, seed=trial.seed, budget=asked, **trial.options)
            seconds = clock()
        if vlm is dense:
            self._ranking = (key, ranking, seconds, calibration.made_features())
        return ranking, calibration, seconds


def blank(trial: Trial, device: str) -> dict[str, Any]:
    """A record with everything that is known before a trial runs."""
    method = registry.method(trial.method)
    regime = method.regime(trial.options)
    if trial.control != "none" and regime == "repaired":  # a control has the widths alone
        regime = "training-free"
    described = {
        "title": method.title,
        "variant": trial.variant,
        "role": method.role if trial.control == "none" else "reference",
        "regime": regime,
        "resolved": {**method.options, **trial.options},  # defaults change; what was run does not
    }
    return {
        "schema": record.SCHEMA,
        "id": spec.trial_id(trial),
        "status": "ok",
        "error": None,
        "trial": {**trial.content(), **described},
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


def _say_unshared(what: str, trial: Trial, error: Exception) -> None:
    log.warning(f"{trial.method}: no {what} to share ({type(error).__name__}: {error}); the trial makes its own")


def share_processor(jobs: int) -> None:
    """Leave cores to the other workers of this machine."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // jobs)))


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
