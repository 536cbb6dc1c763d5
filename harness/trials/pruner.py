"""From a trial to its pruned model: load, calibrate, rank, solve, cut, recover; and count what the cut saves.

    pruned = Pruner("cpu").prune(trial, PhaseTimer())    # pruned.vlm, pruned.plan

A pruner caches what trials share: the loaded model, its calibration, and the ranking, which serves all budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness import families, registry, tasks
from harness.machine.limits import step
from harness.machine.phases import PhaseTimer
from harness.metrics import flops
from harness.progress import Progress, silent
from harness.pruning import latency_rates, random_units, recovery, solver, surgery, tokens, training
from harness.pruning.quantised import quantise
from harness.pruning.rounds import merged_plan
from harness.pruning.sequential import ranked_in_forward_order
from harness.statistics.calibration import Calibration
from harness.trials.caches import LatestValue, ModelCache
from harness.trials.context import Context
from harness.trials.methods import methods_of, per_budget
from harness.trials.tokens import check_tokens
from harness.types import (
    VLM,
    Budget,
    Extent,
    InputError,
    Plan,
    Ranking,
    Trial,
    Tuning,
    kinds,
    short_hash,
)

BATCH = 16  # calibration questions per batch, unless memory is short


@dataclass(frozen=True)
class Ranked:
    """A ranking and its seconds."""

    ranking: Ranking
    seconds: float


@dataclass(frozen=True)
class SharedRanking:
    """A ranking of the dense model, for all trials with this `key`. Workers send it to each other."""

    key: tuple[Any, ...]
    ranked: Ranked


@dataclass(frozen=True)
class Pruned:
    """The dense and the pruned model of a trial, the plan, and the log of method and tuning."""

    dense: VLM
    vlm: VLM
    plan: Plan
    log: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the dense weights and of the plan."""
        return {"weights": self.dense.weights_hash, "plan": short_hash(self.plan.to_json())}


def in_params(flops: Budget) -> Budget:
    """The budget as a share of the weights of the Linears: one token's multiply-adds count them."""
    return replace(flops, extents=dict.fromkeys(flops.extents, Extent(1, 0)))


class Pruner:
    """Makes the pruned models of trials on one device. `values`: a cache of counts that the metrics use too."""

    def __init__(self, device: str = "cpu", progress: Progress = silent, values: ModelCache | None = None) -> None:
        self.device, self.progress = device, progress
        self._values = values or ModelCache()
        self.batch = BATCH
        self._dense: LatestValue[VLM] = LatestValue()
        self._calibration: LatestValue[Calibration] = LatestValue()
        self._tuning_calibration: LatestValue[Calibration] = LatestValue()
        self._rates: LatestValue[tuple[latency_rates.Rates, float]] = LatestValue()
        self._ranking: LatestValue[Ranked] = LatestValue()

    def halve(self) -> None:
        """Halve the calibration batch after an out-of-memory error, and drop results of the larger batches."""
        self.batch //= 2
        self._calibration.drop()
        self._ranking.drop()  # it computes lazy parts from the calibration

    def load(self, trial: Trial) -> VLM:
        """The dense model of a trial."""
        model, dtype, loading = trial.model, trial.dtype, trial.loading

        def load() -> VLM:
            return families.load(registry.model(model), dtype=dtype, device=self.device, name=model, **vars(loading))

        return self._dense.get((model, dtype, loading), load)

    def prune(self, trial: Trial, watch: PhaseTimer) -> Pruned:
        """The models of a trial; what goes wrong is raised. The watch also notes what ranking and tuning took."""
        method = registry.method(trial.lookup)
        check_tokens(trial)
        with watch("load"):
            dense = self.load(trial)
            method.check_model(dense)
            if trial.tuning.method == "full":
                training.check_room(dense, trial.scope, trial.budget)
        context = Context(trial.reference_input, self.progress, values=self._values)
        with watch("inputs"):
            extents = context.extents(dense)
        with watch("prices"):
            whole = self._budget(dense, trial, Budget(trial.scope, trial.budget, trial.units, extents), context)
            solver.check(dense, whole)  # before the ranking, which may take hours
        vlm, full_plan, ranking, rounds = dense, Plan({}, 1.0, 1.0), Ranking({}), trial.tuning.rounds
        log: dict[str, Any] = {}
        learning_curves = []
        for turn in range(1, rounds + 1):  # each round keeps the same share of the round before
            share = min(1.0, trial.budget ** (turn / rounds) / full_plan.achieved)
            with watch("prices"):
                budget = self._budget(
                    vlm, trial, Budget(trial.scope, share, trial.units, extents, shares=trial.shares), context
                )
            ranked = self._rank(vlm, dense, trial, method, budget, watch)
            ranking = ranked.ranking
            log |= ranking.log  # a later round replaces earlier entries
            watch.add("ranking_s", ranked.seconds)
            watch.set("calibration_samples", trial.calibration.samples if ranking.scores else 0)
            with watch("solve"):
                plan, ranking = self._plan(vlm, ranking, budget, trial, context)
                if trial.control == "random-units":
                    plan, ranking = random_units.redraw(vlm, plan, ranking, trial.seed)
                full_plan = plan if rounds == 1 else merged_plan(full_plan, plan)
            with watch("surgery"):
                vlm = surgery.apply(vlm, plan, ranking)
            trained = sum(one.steps(options) for one, options in methods_of(trial))
            for stage in trial.tuning.stages:
                tuned = self._recover(vlm, full_plan, trial, stage, trained, turn, watch)
                vlm = tuned.vlm
                learning_curves.append(list(tuned.curve))
        if trial.tuning.weights != "same":
            with watch("tuning"):
                vlm = quantise(vlm, trial.tuning.weights)
        if learning_curves:
            log["tuning"] = learning_curves
        if full_plan.parts or full_plan.tokens:
            with watch("cost"):
                stated = full_plan.achieved
                if full_plan.tokens is None:
                    whole = Budget(trial.scope, 1.0, trial.units, extents)
                    stated = solver.flops_kept(dense, full_plan, ranking, whole)
                flops.check(stated, vlm, dense, trial, context)
        return Pruned(dense, vlm, replace(full_plan, requested=trial.budget, currency=trial.currency), log)

    # --- rankings ---------------------------------------------------------------------------------------------

    def rank(self, trial: Trial, watch: PhaseTimer) -> SharedRanking | None:
        """The dense model's ranking that trials like this one ask for; None where each budget has its own."""
        if per_budget(trial):
            return None
        method = registry.method(trial.lookup)
        dense = self.load(trial)
        extents = Context(trial.reference_input).extents(dense)
        budget = Budget(trial.scope, trial.budget, trial.units, extents, shares=trial.shares)
        ranked = self._rank(dense, dense, trial, method, budget, watch)
        return SharedRanking(self._key(trial, budget), ranked)

    def adopt(self, shared: SharedRanking) -> None:
        """Use another worker's ranking for the trials with its key."""
        self._ranking.put(shared.key, shared.ranked)

    def _key(self, trial: Trial, budget: Budget) -> tuple[Any, ...]:
        return (*trial.ranking, budget if per_budget(trial) else None)

    def _rank(
        self, vlm: VLM, dense: VLM, trial: Trial, method: registry.Method, budget: Budget, watch: PhaseTimer
    ) -> Ranked:
        """The method's ranking. The last one of the dense model is cached; that of a later round's model is not."""
        with watch("calibration"):
            calibration = self._calibrated(trial)
            if vlm is not dense:
                calibration = Calibration(vlm, calibration.samples, self.batch, progress=self.progress)
        key = self._key(trial, budget)
        if vlm is dense and (cached := self._ranking.peek(key)) is not None:
            return cached
        with watch("ranking"), calibration.billed() as clock:
            how: dict[str, Any] = {"seed": trial.seed, "budget": budget, **trial.options}
            ranking = method.rank(vlm, calibration, **how)
            if trial.tokens:
                how = {"seed": trial.seed, "budget": budget, **trial.tokens.options}
                chosen = registry.method(trial.tokens.method).rank(vlm, calibration, **how)
                ranking = replace(ranking, tokens=chosen.tokens, log={**chosen.log, **ranking.log})
            if trial.sequential:

                def rank(cut: VLM, part: VLM) -> Ranking:
                    return method.rank(part, Calibration(cut, calibration.samples, self.batch), **how)

                ranking = ranked_in_forward_order(
                    vlm, ranking, trial.scope, lambda ranks: self._solve(vlm, ranks, budget, trial), rank
                )
            seconds = clock()
        ranked = Ranked(ranking, seconds)
        if vlm is dense:
            self._ranking.put(key, ranked)
        return ranked

    def _calibrated(self, trial: Trial) -> Calibration:
        number = trial.calibration.samples
        key = (trial.model, trial.dtype, trial.loading, trial.calibration_questions, number, trial.seed)
        return self._calibration.get(key, lambda: self._calibrate(trial, number, self.batch))

    def _calibrate(self, trial: Trial, number: int, batch: int) -> Calibration:
        samples = tasks.samples(trial.calibration_questions, number, trial.seed)
        return Calibration(self.load(trial), samples, batch, progress=self.progress)

    # --- budgets and plans ------------------------------------------------------------------------------------

    def _budget(self, vlm: VLM, trial: Trial, flops: Budget, context: Context) -> Budget:
        """The budget in the trial's currency."""
        if trial.currency == "flops" or flops.keep == 1:
            return flops
        if trial.currency == "params":
            return in_params(flops)
        latency = trial.latency

        def call(timed: VLM) -> Callable[[], Any]:
            return context.stages(timed, max(latency.batches))[trial.scope]

        key = (vlm.model, trial.scope, trial.units, latency, trial.reference_input)
        rates, fixed = self._rates.get(key, lambda: latency_rates.seconds(vlm, flops, call, latency.repeats))
        return replace(flops, rates=rates, fixed=fixed)

    def _plan(self, vlm: VLM, ranking: Ranking, budget: Budget, trial: Trial, context: Context) -> tuple[Plan, Ranking]:
        """The plan of all kinds, and the ranking behind it: visual tokens first, blocks make up the rest."""
        if "tokens" not in kinds(trial.units):
            return self._solve(vlm, ranking, budget, trial)
        inputs = context.inputs(vlm)
        first = tokens.solve(vlm, ranking, tokens.tokens_budget(budget), inputs, (trial.tokens or trial).method)
        if trial.units == "tokens" or first.achieved <= budget.keep:
            return first, ranking
        blocks, watching = tokens.blocks_budget(vlm, ranking, first, budget, inputs)
        plan, cut_ranking = self._solve(vlm, ranking, blocks, trial)
        if watching:  # by how many heads stay whose attention is read, which is known now
            blocks, _ = tokens.blocks_budget(vlm, ranking, first, budget, inputs, plan)
            plan, cut_ranking = self._solve(vlm, ranking, blocks, trial)
            _, watching = tokens.blocks_budget(vlm, ranking, first, budget, inputs, plan)
        return replace(plan, tokens=first.tokens, achieved=plan.achieved + watching), cut_ranking

    def _solve(self, vlm: VLM, ranking: Ranking, budget: Budget, trial: Trial) -> tuple[Plan, Ranking]:
        """The plan with the widths that the trial requires, and the ranking behind it.

        If the trial sets no `align`, a GPU's step is tried first, and dropped if no plan meets it.
        """
        automatic = trial.align == "auto" or (trial.align is None and self.device.startswith("cuda"))
        align = step(self.device, trial.dtype) if automatic else trial.align if isinstance(trial.align, int) else 1
        try:
            aligned = solver.aligned(ranking, align)
            return solver.solve(vlm, aligned, replace(budget, align=align)), aligned
        except InputError:
            if trial.align is not None or align == 1:
                raise
            return solver.solve(vlm, ranking, budget), ranking

    # --- recovery ---------------------------------------------------------------------------------------------

    def _recover(
        self, vlm: VLM, plan: Plan, trial: Trial, tuning: Tuning, trained: int, turn: int, watch: PhaseTimer
    ) -> recovery.Tuned:
        """The recovered model. `trained`: steps of the method's own training, which leave fewer steps to the tuning."""
        if tuning.trains:
            tuning = replace(tuning, steps=max(0, tuning.steps - trained * tuning.rounds))
        with watch("tuning"):
            calibration = self._recovery_calibration(trial, tuning)
            how: dict[str, Any] = {"plan": plan, "seed": trial.seed, "turn": turn, "progress": self.progress}
            tuned = recovery.tune(vlm, calibration, tuning, **how)
        watch.add("tuning_steps", tuned.steps)
        watch.add("tuning_samples", tuned.samples)
        return tuned

    def _recovery_calibration(self, trial: Trial, tuning: Tuning) -> Calibration:
        """The dense model on the questions of the recovery: those of the calibration, or a training's own number."""
        if not tuning.trains:
            return self._calibrated(trial)
        number, batch = tuning.samples, tuning.batch
        key = (trial.model, trial.dtype, trial.loading, trial.calibration_questions, number, trial.seed, batch)
        return self._tuning_calibration.get(key, lambda: self._calibrate(trial, number, batch))
