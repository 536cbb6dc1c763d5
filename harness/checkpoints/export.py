"""Export a pruned model as one folder: weights, config, processor, plan and model card.

    exported = export(Path("results"), "demo/taylor/vision/0.5", Path("out"))  # exported.form: "plain" or "custom code"

A record holds no weights, so its trial prunes the model again; the plan must be the record's own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness import families, registry
from harness import tasks as question_sets
from harness.checkpoints.card import card
from harness.files import check_new, new_folder
from harness.machine.facts import facts
from harness.progress import Progress, silent
from harness.pruning import surgery
from harness.pruning.depth import check_gone
from harness.records.comparison import pairs, regime, terms
from harness.records.record import Record
from harness.records.store import Stored, collect, find
from harness.trials import spec
from harness.trials.context import Context
from harness.trials.pruner import Pruned
from harness.trials.result import code, contestant
from harness.trials.worker import Worker
from harness.types import (
    VLM,
    WIDTHS,
    Currency,
    InputError,
    Keep,
    Plan,
    Ranking,
    Scope,
    Trial,
    Tuning,
    UnitKinds,
    short_hash,
)

PLAN = "plan.json"
COPIED = ("id", "trial", "contestant", "plan", "hashes", "code", "env")  # keys of a record that plan.json copies


@dataclass(frozen=True)
class Exported:
    """A written checkpoint, with sizes before and after: MACs (scope's blocks and total), parameters, weight bytes."""

    folder: str
    form: str  # "plain" (the stock class loads it) or "custom code" (it brings a modelling file)
    trial: str  # the id of its record, or of the record that the trial would get
    plan: str  # hash
    weights: str  # hash of the dense model's weights
    before: Mapping[str, int]
    after: Mapping[str, int]


def export(results: Path, name: str, out: Path, *, device: str = "cpu", progress: Progress = silent) -> Exported:
    """Write the pruned model of a record again.

    `name`: the record's id (or its first characters), or a row's name; see `row`. Raises InputError if no such
    record exists or its trial failed, if the trial now gives other weights or another plan than the record's, or if
    `out` is not a new or empty folder.
    """
    target = check_new("folder", out)
    stored = row(results, name) if "/" in name else find(results, name)
    record = stored.record
    if record.error is not None:
        raise InputError(f"{stored.name}: this trial failed, so it has no model to export")
    pruned = Worker(device, progress).prune(record.trial)
    for what, now in pruned.hashes.items():
        before = record.hashes.get(what)
        if before != now:
            raise InputError(
                f"{stored.name}: hashes.{what}: {before} in the record, but its trial now gives {now};"
                " use the checkpoint, data, code and kind of device that the record names"
            )
    return _write(pruned, record.trial, out, target, device, progress, record, _dense(stored, results))


def trial(
    model: str,
    method: str,
    budget: float,
    *,
    currency: Currency = "flops",
    scope: Scope = "vision",
    units: UnitKinds | None = None,
    options: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
    samples: int = 128,
    image: tuple[int, int] = (448, 448),
    dtype: str = "float32",
    revision: str | None = None,
    seed: int = 0,
) -> Trial:
    """A trial that prunes one model, validated as on a board; for `prune`, or for a worker.

    units: by default what the method cuts. tasks: where the calibration questions come from; by default the embedded
    sets. image: width and height of the one whose FLOPs are budgeted. Raises InputError for what cannot be used.
    """
    if method == "none":
        raise InputError("method none: is the model as it is; there is nothing to prune")
    content = {
        "name": "prune",
        "model": model,
        "methods": [{"method": method, "options": dict(options or {})}],
        "budgets": [budget],
        "currency": currency,
        "scopes": [scope],
        "units": units or registry.method(method).units,
        "tasks": list(tasks) or question_sets.names(),
        "metrics": ["flops"],
        "calibration": {"samples": samples},
        "reference_input": {"image": list(image)},
        "dtype": dtype,
        "revision": revision,
    }
    return replace(spec.check(content, Path("of these settings")).trials()[-1], seed=seed)


def prune(trial: Trial, out: Path, *, device: str = "cpu", progress: Progress = silent) -> Exported:
    """Prune a model as the trial says and write it; raises InputError if `out` is not a new or empty folder."""
    target = check_new("folder", out)
    return _write(Worker(device, progress).prune(trial), trial, out, target, device, progress)


def load(path: Path, model: str, out: Path, *, device: str = "cpu", progress: Progress = silent) -> Exported:
    """Cut the dense `model` as a plan.json (or record) says and write it.

    A plan that only removes units or visual tokens fits any weights of the same architecture. A plan that replaces
    Linears, or that was recovered or tuned, is made again from its trial and needs its original weights. Raises
    InputError if the plan does not fit, or if its trial now gives another plan.
    """
    target = check_new("folder", out)
    saved = _read(path)
    plan = Plan.of(saved["plan"])
    trial = replace(Trial.of(saved["trial"]), model=model, method_file=saved["method_file"])
    worker = Worker(device, progress)
    if _only_cuts(plan, trial):
        dense = worker.pruner.load(trial)
        _check_fits(dense, plan, path)
        return _write(
            Pruned(dense, surgery.apply(dense, plan, Ranking({})), plan), trial, out, target, device, progress
        )
    pruned = worker.prune(trial)
    for what, now in pruned.hashes.items():
        if what == "weights" and plan.tokens and trial.tuning == Tuning():
            continue  # the choice of tokens is made anew for every question
        if (before := saved["hashes"].get(what)) != now:
            raise InputError(
                f"{path}: hashes.{what}: {before}, but {model} gives {now}; this plan also replaces, recovers or tunes"
                " weights, so it needs the model, data and code of its own trial"
            )
    return _write(pruned, trial, out, target, device, progress)


def row(results: Path, name: str) -> Stored:
    """The record of one row of a board: BOARD/METHOD/SCOPE/BUDGET[/SEED] as in its table, METHOD with its variant.

    Where rows have one name, METHOD goes on with what tells them apart: its regime (`taylor refit`), its units, its
    calibration. Raises InputError, listing the rows, unless exactly one record matches.
    """
    board, _, asked = name.partition("/")
    if asked.count("/") < 2 or not (results / board).is_dir():
        raise InputError(f"row {name}: not BOARD/METHOD/SCOPE/BUDGET[/SEED] of a board in {results}")
    rows = [(stored, _names(stored.record)) for stored in collect(results / board)]
    matches = [(stored, names) for stored, names in rows if {asked, f"{asked}/{stored.record.trial.seed}"} & set(names)]
    if len(matches) == 1:
        return matches[0][0]
    if not matches:
        raise InputError.unknown("row", name, dict.fromkeys(f"{board}/{names[0]}" for _, names in rows))
    taken = Counter(other for _, names in matches for other in names)
    listed = []
    for stored, names in matches:
        own = next((f"{board}/{other} " for other in names if taken[other] == 1), "")
        listed.append(f"{own}({stored.record.id})")
    raise InputError(f"row {name}: {len(matches)} records; name one in full, or by its id: {', '.join(listed)}")


def _names(record: Record) -> list[str]:
    """The names of a row, METHOD/SCOPE/BUDGET/SEED, each with more of what may tell it from others."""
    trial, compared = record.trial, terms(record.trial)
    words = [
        f"{trial.method} {record.contestant.variant}".strip(),
        *(regime(record), trial.units, pairs(vars(trial.calibration)), str(compared.budget), str(compared.setting)),
    ]
    ends = f"{trial.scope}/{trial.budget:g}/{trial.seed}"
    return [f"{' '.join(words[: count + 1])}/{ends}" for count in range(len(words))]


def _dense(stored: Stored, results: Path) -> Record | None:
    """The dense record of the same board and setting, if it exists."""
    pruned = stored.record.trial
    for other in collect(results / pruned.board) if (results / pruned.board).is_dir() else ():
        trial = other.record.trial
        same = terms(trial).setting == terms(pruned).setting
        if same and trial.method == "none" and other.record.error is None:
            return other.record
    return None


def _only_cuts(plan: Plan, trial: Trial) -> bool:
    cuts = all(isinstance(part, Keep) for part in plan.parts.values())
    return cuts and plan.tokens is None and trial.tuning == Tuning()


def _read(path: Path) -> dict[str, Any]:
    """The content of a plan.json or record, with the parts that are needed here checked."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        trial, plan, hashes = saved["trial"], saved["plan"], saved["hashes"]
        if short_hash(plan) != hashes["plan"]:
            raise InputError(
                f"{path}: hashes.plan: the plan does not have this hash; it was changed after it was written"
            )
        for kind, content in ((Plan, plan), (Trial, trial)):
            kind.of(content)
        file = dict(saved.get("contestant") or {}).get("file")
        if not isinstance(file, str | None):
            raise TypeError("a path is text")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a plan.json of an exported model, nor a record with a plan") from error
    return {**saved, "method_file": file}


def _check_fits(dense: VLM, plan: Plan, path: Path) -> None:
    blocks = {block.name: block for block in dense.blocks}
    for (name, kind), part in plan.parts.items():
        if name not in blocks or kind not in (*WIDTHS, "layers"):
            raise InputError(f"{path}: plan.blocks.{name}.{kind}: {dense.name} has no such block")
        assert isinstance(part, Keep)
        count, indices = blocks[name].units(kind).count, part.indices
        if kind == "layers" and not indices:
            continue
        if not indices or list(indices) != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < count:
            raise InputError(f"{path}: plan.blocks.{name}.{kind}: {dense.name} has units 0 to {count - 1} there")
    try:
        check_gone(dense, plan.gone)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _write(
    pruned: Pruned,
    trial: Trial,
    out: Path,
    target: Path,
    device: str,
    progress: Progress,
    measured: Record | None = None,
    dense: Record | None = None,
) -> Exported:
    """Fill a folder, load it again, compare all logits exactly, and move it to `target`, where `out` leads."""
    context = Context(trial.reference_input, progress)
    record = Record(
        trial, contestant(trial), plan=pruned.plan, env=facts(device), code=code(), hashes=pruned.hashes
    )  # of this copy
    progress("count")
    counted = registry.metric("flops")(pruned.vlm, pruned.dense, trial, context)
    sizes = []
    for vlm, key in ((pruned.dense, "dense_macs"), (pruned.vlm, "macs")):
        scope = sum(part[key] for name, part in counted["components"].items() if trial.scope in ("all", name))
        sizes.append({"macs": scope, "total_macs": counted["total"][key], **_weights(vlm)})
    with new_folder(target) as folder:
        progress("write")
        form = families.save(pruned.vlm, folder)
        exported = Exported(
            folder=str(out),
            form=form,
            trial=trial.id,
            plan=record.hashes["plan"],
            weights=record.hashes["weights"],
            before=sizes[0],
            after=sizes[1],
        )
        content = (measured or record).to_json()
        copied = {key: content[key] for key in COPIED}
        (folder / PLAN).write_text(json.dumps(copied, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(asdict(exported), record, measured, dense), encoding="utf-8")
        progress("load again")
        _check_same(
            pruned.vlm,
            families.load(
                folder, dtype=trial.dtype, device=device, attention=trial.loading.attention, trust_remote_code=True
            ),
            context,
        )
    return exported


def _weights(vlm: VLM) -> dict[str, int]:
    parameters = list(vlm.model.parameters())
    return {
        "params": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def _check_same(vlm: VLM, again: VLM, context: Context) -> None:
    inputs = context.inputs(vlm)
    with torch.no_grad():
        expected, loaded = (checked.model(**inputs).logits for checked in (vlm, again))
    if not torch.equal(expected, loaded):
        raise RuntimeError("the written model gives other logits than the one in memory")
