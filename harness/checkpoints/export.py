"""Export a pruned model as one folder: weights, config, processor, plan and model card.

    exported = export(Path("results"), "demo/taylor/vision/0.5", Path("out"))  # exported.form: "plain" or "custom code"

A record holds no weights, so its trial prunes the model again; the plan must be the record's own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness import families, registry
from harness import tasks as question_sets
from harness.checkpoints.card import card
from harness.files import check_new, check_space, new_folder
from harness.machine.facts import facts
from harness.progress import Progress, silent
from harness.pruning import surgery
from harness.pruning.solver import flops_kept
from harness.records.comparison import pairs, regime, terms
from harness.records.record import Record
from harness.records.store import Stored, collect, find
from harness.text import reason
from harness.trials import spec
from harness.trials.context import Context
from harness.trials.pruner import Pruned, in_params
from harness.trials.result import code, contestant
from harness.trials.worker import Worker
from harness.types import (
    DENSE,
    VLM,
    Budget,
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
    notes: tuple[str, ...] = ()  # what of the dense checkpoint was left out or filled in


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
    pruned = _made_again(Worker(device, progress), record.trial, target, record.plan, record.hashes, stored.name)
    return _write(pruned, record.trial, out, target, device, progress, record, _dense(stored, results))


def single_trial(
    model: str,
    method: str,
    budget: float,
    *,
    currency: Currency = "flops",
    scope: Scope | None = None,
    units: UnitKinds | None = None,
    options: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
    samples: int = 128,
    image: tuple[int, int] = (448, 448),
    dtype: str = "float32",
    revision: str | None = None,
    seed: int = 0,
    tuning: str | Mapping[str, Any] = "none",
    shares: Mapping[str, float] | None = None,
    tokens: str | Mapping[str, Any] | None = None,
    sequential: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Trial:
    """A trial that prunes one model, validated as on a board; for `prune`, or for a worker.

    units: by default what the method cuts. scope: by default vision, or all where visual tokens go. tasks: where the
    calibration questions come from; by default the embedded sets. image: width and height of the one whose FLOPs are
    budgeted. tuning, shares, tokens, sequential: as of a contestant on a board. overrides: values of other keys of a
    board, such as `device_map`. Raises InputError for what cannot be used, and if that asks for several models.
    """
    if method == DENSE:
        raise InputError("method none: is the model as it is; there is nothing to prune")
    asked = units or registry.method(method).units
    if not isinstance(tuning, str | Mapping):
        raise InputError(f"tuning: {tuning}: one model is recovered in one way; use a name or its settings")
    contestant = {"shares": dict(shares or {}), "tokens": tokens, "sequential": sequential}
    content = {
        "name": "prune",
        "model": model,
        "methods": [{"method": method, "options": dict(options or {}), **contestant}],
        "budgets": [budget],
        "currency": currency,
        "scopes": [scope or ("all" if "tokens" in asked else "vision")],
        "units": asked,
        "tuning": tuning,
        "tasks": list(tasks) or question_sets.names(),
        "metrics": ["flops"],
        "calibration": {"samples": samples},
        "reference_input": {"image": list(image)},
        "dtype": dtype,
        "revision": revision,
    }
    board = spec.check(spec.override(content, overrides or {}, "board of these settings: "), Path("of these settings"))
    _, *trials = board.trials()  # without the dense one
    if len(trials) != 1:
        raise InputError(f"these settings make {len(trials)} models; prune makes one")
    return replace(trials[0], seed=seed)


def prune(trial: Trial, out: Path, *, device: str = "cpu", progress: Progress = silent) -> Exported:
    """Prune a model as the trial says and write it; raises InputError if `out` is not a new or empty folder."""
    target = check_new("folder", out)
    worker = Worker(device, progress)
    _load(worker, trial, target)
    return _write(worker.prune(trial), trial, out, target, device, progress)


def load(path: Path, model: str, out: Path, *, device: str = "cpu", progress: Progress = silent) -> Exported:
    """Cut the dense `model` as a plan.json (or record) says and write it.

    A plan that only removes units fits any weights of the widths that it is of, and so does one that drops visual
    tokens. A plan that replaces Linears, or that was recovered or tuned, is made again from its trial and needs its
    original weights. Raises InputError if the plan does not fit, or if its trial now gives another plan.
    """
    target = check_new("folder", out)
    saved = _read(path)
    plan = Plan.of(saved["plan"])
    trial = replace(Trial.of(saved["trial"]), model=model, method_file=saved["method_file"])
    worker = Worker(device, progress)
    if _only_cuts(plan, trial):
        dense = _load(worker, trial, target)
        try:
            vlm = surgery.apply(dense, plan, Ranking({}))
            if not plan.widths and dense.weights_hash != saved["hashes"].get("weights"):
                _check_share(dense, plan, trial)
        except InputError as error:
            raise InputError(f"{path}: {error}; this plan is of {saved['trial']['model']}") from error
        return _write(Pruned(dense, vlm, plan), trial, out, target, device, progress)
    # Which visual tokens go is chosen anew for every question, by any weights.
    of_any = _only_cuts(replace(plan, tokens=None), trial)
    pruned = _made_again(worker, trial, target, plan, saved["hashes"], str(path), of_any)
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
        *(regime(record), trial.units, pairs(vars(trial.calibration))),
        *(str(compared.budget), compared.budget.asked, str(compared.setting)),
    ]
    ends = f"{trial.scope}/{trial.budget:g}/{trial.seed}"
    return [f"{' '.join(words[: count + 1])}/{ends}" for count in range(len(words))]


def _dense(stored: Stored, results: Path) -> Record | None:
    """The dense record of the same board and setting, if it exists."""
    pruned = stored.record.trial
    for other in collect(results / pruned.board) if (results / pruned.board).is_dir() else ():
        trial = other.record.trial
        same = terms(trial).setting == terms(pruned).setting
        if same and trial.method == DENSE and other.record.error is None:
            return other.record
    return None


def _only_cuts(plan: Plan, trial: Trial) -> bool:
    """Whether the plan only removes units or layers, without recovery: then it fits other weights too."""
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
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a plan.json of an exported model, nor a record with a plan") from error
    return {**saved, "method_file": file}


def _load(worker: Worker, trial: Trial, target: Path) -> VLM:
    """The dense model.

    Raises InputError for weights of fewer bits, or if the disk has no room even for what no plan cuts of the model.
    """
    if (weights := trial.tuning.weights) != "same":
        raise InputError(
            f"tuning: weights: {weights}: a checkpoint here has whole weights; export the row without this key and "
            "quantise what is written with torchao"
        )
    dense = worker.pruner.load(trial)
    cut = tuple(f"{block.path}." for block in dense.blocks if trial.scope in ("all", block.component))
    stays = (weight for name, weight in dense.model.named_parameters() if not name.startswith(cut))
    check_space("folder", target, sum(weight.numel() * weight.element_size() for weight in stays))
    return dense


def _made_again(
    worker: Worker,
    trial: Trial,
    target: Path,
    plan: Plan | None,
    hashes: Mapping[str, str],
    where: str,
    any_weights: bool = False,
) -> Pruned:
    """The trial's models made again; raises InputError if the weights or the plan are not those of these hashes.

    any_weights: other weights may give the same plan.
    """

    def check(what: str, now: str) -> None:
        if (before := hashes.get(what)) != now and not (what == "weights" and any_weights):
            raise InputError(
                f"{where}: hashes.{what}: {before}, but {trial.model} now gives {now}; a plan that is made again from"
                " its trial needs its checkpoint, data, code and kind of device"
            )

    check("weights", _load(worker, trial, target).weights_hash)
    # With the step of widths that the plan was solved with, whatever this device would choose.
    pruned = worker.prune(replace(trial, align="off" if plan is None or plan.align == 1 else plan.align))
    if plan is not None and not plan.widths:  # from before plans had widths
        pruned = replace(pruned, plan=replace(pruned.plan, widths={}))
    check("plan", pruned.hashes["plan"])
    return pruned


def _check_share(dense: VLM, plan: Plan, trial: Trial) -> None:
    """Raise InputError if a plan without widths keeps another share of this model than of its own: then it is of other
    widths. No share tells so for a budget in time.
    """
    if trial.currency == "latency":
        raise InputError("plan.widths: missing, and its budget is in time, so only its own weights are known to fit")
    budget = Budget(trial.scope, 1.0, trial.units, Context(trial.reference_input).extents(dense))
    kept = flops_kept(dense, plan, Ranking({}), in_params(budget) if trial.currency == "params" else budget)
    if not math.isclose(plan.achieved, kept, rel_tol=1e-6):
        raise InputError(
            f"plan.achieved: {plan.achieved:.6g} of its model, but {kept:.6g} of {dense.name}, so their widths differ"
        )


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
    """Write the checkpoint to a temporary folder, load that, compare all logits exactly, and move it to `target`.

    out: the path as the user gave it. target: the same with links followed.
    """
    context = Context(trial.reference_input, progress)
    # The record of this copy, not of the one that was measured.
    record = Record(trial, contestant(trial), plan=pruned.plan, env=facts(device), code=code(), hashes=pruned.hashes)
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
            notes=pruned.dense.notes,
        )
        content = (measured or record).to_json()
        copied = {key: content[key] for key in COPIED}
        (folder / PLAN).write_text(json.dumps(copied, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(asdict(exported), record, measured, dense), encoding="utf-8")
        progress("load again")
        placed = {"attention": trial.loading.attention, "device_map": trial.loading.device_map}
        again = families.load(folder, dtype=trial.dtype, device=device, trust_remote_code=True, **placed)
        _check_same(pruned.vlm, again, context)
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
