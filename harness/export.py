"""A pruned model to take away: weights, config, processor, plan and model card in one folder.

    done = export(Path("results"), "demo/taylor/vision/0.5", Path("out"))  # done.form: "plain" or "custom code"

A record holds no weights: its model is made again from its trial, and has to come to the record's own plan.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness import families, record, registry, spec, surgery
from harness.card import card
from harness.files import check_writable
from harness.results import Stored, collect, find
from harness.runner import Context, Pruned, Worker, blank
from harness.types import VLM, InputError, Keep, Plan, Ranking, Trial, Tuning

Progress = Callable[[str], None]
PLAN = "plan.json"
KEPT = ("id", "trial", "plan", "hashes", "code", "env")  # of a record, in plan.json


@dataclass(frozen=True)
class Exported:
    """A written checkpoint, before and after: MACs of the scope's blocks and in all, parameters, bytes of weights."""

    folder: str
    form: str  # "plain" (the stock class loads it) or "custom code" (it brings a modelling file)
    trial: str  # the id that its record has or would have
    plan: str  # hash
    weights: str  # hash of the dense model's
    before: Mapping[str, int]
    after: Mapping[str, int]


def export(
    results: Path, name: str, out: Path, *, device: str = "cpu", progress: Progress = lambda text: None
) -> Exported:
    """Write the model of a record, named by its id (or how that begins) or as BOARD/METHOD/SCOPE/BUDGET[/SEED].

    Raises InputError if there is no such record or it failed, if the weights or the plan that come of its trial now are
    others than the record's, or if `out` is not an empty folder or a new one.
    """
    _check_new(out)
    stored = row(results, name) if "/" in name else find(results, name)
    found = stored.record
    if found["status"] != "ok":
        raise InputError(f"{stored.name}: this trial failed; there is no model to export")
    trial = Trial.of(found["trial"])
    made = Worker(device, progress).prune(trial)
    for what in ("weights", "plan"):
        before, now = found["hashes"].get(what), made.record["hashes"][what]
        if before != now:
            raise InputError(
                f"{stored.name}: hashes.{what}: {before} in the record, {now} of the model made again from its trial;"
                " use the same checkpoint, the same data and the code and kind of device that the record names"
            )
    return _write(made, trial, out, device, progress, found, _dense(stored, results))


def prune(trial: Trial, out: Path, *, device: str = "cpu", progress: Progress = lambda text: None) -> Exported:
    """Prune a model as a trial says and write it; raises InputError if `out` is not an empty folder or a new one."""
    _check_new(out)
    return _write(Worker(device, progress).prune(trial), trial, out, device, progress)


def load(path: Path, model: str, out: Path, *, device: str = "cpu", progress: Progress = lambda text: None) -> Exported:
    """Cut the dense `model` as a plan.json (or record) says and write it.

    A plan that only removes units fits any weights of the same architecture. One with replaced Linears, repaired or
    tuned weights is made again from its trial, and needs the weights that it was made of. Raises InputError where the
    plan does not fit, or does not come out again.
    """
    _check_new(out)
    stored = _read(path)
    plan, trial = Plan.of(stored["plan"]), replace(Trial.of(stored["trial"]), model=model)
    worker = Worker(device, progress)
    if _only_cuts(plan, trial):
        dense = worker.load(trial)
        _check_fits(dense, plan, path)
        hashes = {"weights": dense.weights_hash, "plan": record.short_hash(stored["plan"])}
        made = Pruned(
            dense,
            surgery.apply(dense, plan, Ranking({})),
            plan,
            blank(trial, device) | {"plan": stored["plan"], "hashes": hashes},
        )
        return _write(made, trial, out, device, progress)
    made = worker.prune(trial)
    for what in ("weights", "plan"):
        if (before := stored["hashes"].get(what)) != (now := made.record["hashes"][what]):
            raise InputError(
                f"{path}: hashes.{what}: {before}, but {model} gives {now}; this plan also replaces, repairs or tunes"
                " weights, so it needs the very model, data and code that it was made with"
            )
    return _write(made, trial, out, device, progress)


def row(results: Path, name: str) -> Stored:
    """The record of a board's row, BOARD/METHOD/SCOPE/BUDGET[/SEED] as its table shows them, METHOD with its variant.

    Raises InputError, with what there is, unless it is exactly one.
    """
    parts = name.split("/")
    if len(parts) not in (4, 5) or not (results / parts[0]).is_dir():
        raise InputError(f"row {name}: not BOARD/METHOD/SCOPE/BUDGET[/SEED] of a board in {results}")
    rows = [(one, _row(one.record)) for one in collect(results / parts[0])]
    found = [(one, own) for one, own in rows if own[: len(parts) - 1] == tuple(parts[1:])]
    if len(found) == 1:
        return found[0][0]
    if found:
        listed = ", ".join(f"{'/'.join(own)} is {one.record['id']}" for one, own in found)
        raise InputError(f"row {name}: {len(found)} records; name one with its seed or by its id: {listed}")
    raise InputError.unknown("row", name, ("/".join((parts[0], *own)) for _, own in rows))


def _row(found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    trial = found["trial"]
    method = f"{trial['method']} {trial['variant']}".strip()
    return method, trial["scope"], f"{trial['budget']:g}", str(trial["seed"])


def _dense(stored: Stored, results: Path) -> Mapping[str, Any] | None:
    """The dense record of the same board, if it is there."""
    own = stored.record["trial"]
    for other in collect(results / own["board"]) if (results / own["board"]).is_dir() else ():
        trial = other.record["trial"]
        same = record.setting(trial) == record.setting(own)
        if same and trial["method"] == "none" and other.record["status"] == "ok":
            return other.record
    return None


def _only_cuts(plan: Plan, trial: Trial) -> bool:
    cuts = all(isinstance(part, Keep) for part in plan.parts.values())
    return cuts and trial.tuning == Tuning() and not registry.method(trial.method).repairs


def _read(path: Path) -> dict[str, Any]:
    """A plan.json or record as far as it is needed here, checked."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        trial, plan, hashes = found["trial"], found["plan"], found["hashes"]
        if record.short_hash(plan) != hashes["plan"]:
            raise InputError(f"{path}: hashes.plan: the plan was changed after it was written")
        for kind, content in ((Plan, plan), (Trial, trial)):
            kind.of(content)
    except OSError as error:
        raise InputError(f"{path}: cannot read the plan: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a plan.json of an exported model, nor a record with a plan") from error
    return found


def _check_fits(dense: VLM, plan: Plan, path: Path) -> None:
    blocks = {block.name: block for block in dense.blocks}
    for (name, kind), part in plan.parts.items():
        if name not in blocks or kind not in ("heads", "ffn"):
            raise InputError(f"{path}: plan.blocks.{name}.{kind}: {dense.name} has no such block")
        assert isinstance(part, Keep)
        count, kept = blocks[name].units(kind).count, part.indices
        if not kept or list(kept) != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < count:
            raise InputError(f"{path}: plan.blocks.{name}.{kind}: {dense.name} has units 0 to {count - 1} there")


def _check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already; name a new or empty folder")
    check_writable(out.parent, "folder")


def _write(
    made: Pruned,
    trial: Trial,
    out: Path,
    device: str,
    progress: Progress,
    found: Mapping[str, Any] | None = None,
    dense: Mapping[str, Any] | None = None,
) -> Exported:
    """Fill a neighbour of `out`, load it again, and move it into place once its logits are the model's, bit for bit."""
    context = Context(trial, progress)
    progress("count")
    counted = registry.metric("flops")(made.vlm, made.dense, trial, context)
    sizes = []
    for vlm, key in ((made.dense, "dense_macs"), (made.vlm, "macs")):
        scope = sum(own[key] for name, own in counted["components"].items() if trial.scope in ("all", name))
        sizes.append({"macs": scope, "total_macs": counted["total"][key], **_weights(vlm)})
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        progress("write")
        form = families.save(made.vlm, folder)
        done = Exported(
            folder=str(out),
            form=form,
            trial=spec.trial_id(trial),
            plan=made.record["hashes"]["plan"],
            weights=made.record["hashes"]["weights"],
            before=sizes[0],
            after=sizes[1],
        )
        kept = {key: (found or made.record)[key] for key in KEPT}
        (folder / PLAN).write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(trial, asdict(done), made.record, found, dense), encoding="utf-8")
        progress("load again")
        _check_same(
            made.vlm,
            families.load(folder, dtype=trial.dtype, device=device, attention=trial.loading.attention),
            context,
        )
        folder.chmod(0o755)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def _weights(vlm: VLM) -> dict[str, int]:
    own = list(vlm.model.parameters())
    return {"params": sum(p.numel() for p in own), "bytes": sum(p.numel() * p.element_size() for p in own)}


def _check_same(vlm: VLM, again: VLM, context: Context) -> None:
    inputs = context.inputs(vlm)
    with torch.no_grad():
        ours, theirs = (one.model(**inputs).logits for one in (vlm, again))
    if not torch.equal(ours, theirs):
        raise RuntimeError("the written model does not answer as the one in memory")
