"""The inputs of a record as hashes: code, checkpoint, questions. A record is stale once one of its hashes changes.

    hashes(trial)  # {"code": "5f0c...", "checkpoint": "91aa...", "data": "...", "calibration": "..."}

The hashes need neither the model nor torch, so a sweep knows its stale records before it starts. The code hash covers
the code behind a trial's figures: its method's module, its recovery, the worker, the metrics, the model family, and all
our functions, classes and values that these refer to. Only what the code does counts, not its place or its names (see
`code_hash`). A hash that is unknown before the run (a model outside the hub's cache, data that lmms-eval fetches) is
omitted and not compared.
"""

from __future__ import annotations

import functools
from hashlib import sha256

from harness import families, registry, tasks
from harness.records.record import Record
from harness.trials import code_hash
from harness.types import InputError, Questions, Trial

ROOTS = ("harness.trials.worker",)
# Modules that decide where a figure is stored but not its value, and modules that no trial runs.
PLUMBING = (
    "harness.families._saving",
    "harness.files",
    "harness.method_files",
    "harness.progress",
    "harness.records.record",
    "harness.records.schema",
    "harness.registry",
    "harness.tasks.doubts",
    "harness.tasks.stock",
    "harness.text",
    "harness.trials.code_hash",
    "harness.trials.code_hash.form",
    "harness.trials.code_hash.walk",
    "harness.trials.code_hash.names",
    "harness.trials.result",
    "harness.trials.staleness",
    "harness.types.errors",
    "harness.types.metric",
)
# What recovers a model after the cut: counts only for the trials that use it.
RECOVERY = "harness.pruning.recovery"
RECOVERIES = {
    "bias": "harness.pruning.bias",
    "refit": "harness.pruning.refit",
    "full": "harness.pruning.training",
    "lora": "harness.pruning.training",
    "projector": "harness.pruning.training",
    "int8": "harness.pruning.quantised",
    "int4": "harness.pruning.quantised",
}


def hashes(trial: Trial) -> dict[str, str]:
    """16 hex digits each for `code`, `checkpoint`, `data` and `calibration`, if known before the run."""
    source, revision = registry.model(trial.model), trial.loading.revision
    model_type, changed = families.model_type(source, revision), registry.changed(trial.lookup)
    chooser = trial.tokens.method if trial.tokens else None
    recoveries = tuple(stage.method for stage in trial.tuning.stages)
    if trial.tuning.weights != "same":
        recoveries += (trial.tuning.weights,)
    known = {
        "code": code(trial.lookup, trial.metrics, model_type, recoveries, changed, chooser),
        "checkpoint": families.checkpoint_hash(source, revision),
        "data": _data(trial.questions),
        "calibration": _data(trial.calibration.questions),
    }
    return {key: value for key, value in known.items() if value is not None}


def stale(record: Record, trial: Trial) -> list[str]:
    """The names of the hashes that no longer fit the trial.

    A record without a code hash is of a version before there was one. Other hashes that it lacks are not compared.
    """
    known = hashes(trial)
    unknown = {key: value for key, value in known.items() if key != "code"}
    return [key for key, value in known.items() if {**unknown, **record.hashes}.get(key) != value]


def _data(questions: Questions) -> str | None:
    """The data hash; None if the questions are not local files, or the files are gone."""
    try:
        return tasks.data_hash(questions)[:16] if tasks.local(questions.tasks) else None
    except InputError:
        return None


@functools.cache
def code(
    method: str,
    metrics: tuple[str, ...],
    model_type: str | None,
    recoveries: tuple[str, ...] = (),
    changed: int = 0,
    chooser: str | None = None,
) -> str:
    """16 hex digits of the SHA-256 over what decides the figures of a trial of this method.

    recoveries: the methods of its recovery, see `Tuning.stages`. changed: when the method's file was last changed, if
    it is named by a path; see `registry.changed`. chooser: who chooses visual tokens for it, if another method does.
    """
    digest = sha256()
    modules = asked(method, metrics, model_type) + ([registry.module_path(chooser)] if chooser else [])
    for line in code_hash.hashes(ROOTS, modules, plumbing(recoveries), (registry.BUILT_IN,)):
        digest.update(f"{line}\n".encode())
    for path in sorted(tasks.MINI.glob("*.yaml")):  # prompts and scorers
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
        digest.update("\n".join([path.name, *lines, ""]).encode())
    return digest.hexdigest()[:16]


def asked(method: str, metrics: tuple[str, ...], model_type: str | None) -> list[str]:
    """The modules that a trial loads by name."""
    family = [f"harness.families.{model_type}"] if model_type in families.names() else []
    return [registry.module_path(method), *(f"harness.metrics.{name}" for name in metrics), *family]


def plumbing(recoveries: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names at which the walk over the code stops: PLUMBING, other recoveries, and the columns of each metric."""
    used = {RECOVERY, *(RECOVERIES[name] for name in recoveries)} if recoveries else set()
    others = {RECOVERY, *RECOVERIES.values()} - used
    return (*PLUMBING, *sorted(others), *(f"harness.metrics.{name}.COLUMNS" for name in registry.metrics()))
