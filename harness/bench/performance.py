"""The performance bars, each a ratio measured in one run: the speed of pruned models and the overhead of the harness.

    infoprune bench --quick
    for bar in bars(quick=True): print(bar.name, bar.ratio, bar.holds)

Bars that need a GPU are listed as not measured, with their command. Packages add bars of their own through the
entry-point group `infoprune.benches`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import families, registry, tasks
from harness.bench import estimates
from harness.bench.bar import Bar
from harness.machine import phases
from harness.machine.facts import facts
from harness.machine.timing import interleave, ratio, wait
from harness.metrics import _counting
from harness.progress import Progress, silent
from harness.pruning import solver, surgery
from harness.records import record
from harness.records.comparison import other_machine
from harness.records.record import Record
from harness.text import reason
from harness.trials import spec
from harness.trials.context import Context
from harness.trials.result import code
from harness.trials.sweep import plan, sweep
from harness.types import DENSE, VLM, Budget, InputError, ReferenceInput

BOARD = "demo"
ROUNDS = 3
CUT = 0.3125  # the goals are for 1/3.2 of the FLOPs
NEVER_SLOWER = 0.9
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, CUT, 0.25)
ALIGNED = 32  # widths are also timed in this multiple
STAGES = {"vision": "vision encode", "all": "prefill"}
GOALS = {"return": 0.85, "amortised": 1.2, "overhead": 0.1, "throughput": {"cpu": 3.0, "cuda": 8.0}}
SPEEDUPS = {"vision": 2.7, "all": 2.6}  # of a 7B model at 1/3.2 of the scope, batch 8
Part = Callable[..., Iterable[Bar]]


def parts() -> dict[str, Part | str]:
    """The parts of a run by name, each `(quick, device, progress)` to bars; those of other packages come last.

    A reason for one that cannot be loaded.
    """
    return {"answers": answers, "sweeps": sweeps, "estimates": estimates.bars, "speed": speed, **registry.benches()}


def bars(
    *, quick: bool = False, device: str = "cpu", progress: Progress = silent, only: Sequence[str] = ()
) -> Iterator[Bar]:
    """Every bar, as it is measured; `quick` asks fewer questions and times smaller inputs, `device` is cpu or cuda.

    only: these parts, in their order. Raises InputError for a name that no part has, and for a part that cannot be
    loaded, before anything is measured.
    """
    known = parts()
    for name in only:
        if name not in known:
            raise InputError.unknown("part of bench", name, known)
    chosen: list[Part] = []
    for name, part in known.items():
        if only and name not in only:
            continue
        if isinstance(part, str):
            raise InputError(f"part {name} of bench: {part}; name other parts with --only")
        chosen.append(part)
    for part in chosen:
        yield from part(quick=quick, device=device, progress=progress)
    if not device.startswith("cuda") and not only:
        yield Bar(
            "evaluation throughput on a GPU", GOALS["throughput"]["cuda"], command="infoprune bench --device cuda"
        )
        for scope, goal in SPEEDUPS.items():
            name = f"speedup of {STAGES[scope]} at 1/3.2, qwen2-vl-7b-geometry, bfloat16, batch 8"
            yield Bar(name, goal, command="infoprune bench --device cuda")


def report(results: list[Bar], device: str, quick: bool) -> dict[str, Any]:
    """The bars as plain values, with the machine and the code of this run, as in a record."""
    return {"bars": [bar.to_json() for bar in results], "quick": quick, "env": facts(device), "code": vars(code())}


def worse(results: list[Bar], file: Path, env: dict[str, Any], quick: bool) -> list[str]:
    """A line for each bar that is worse than in an earlier run's file.

    Worse means: the intervals do not overlap, or, without intervals, a loss of more than a tenth. Raises InputError if
    the file was not written by `infoprune bench`, or comes from another machine or another size of run.
    """
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        known = {bar["name"]: _figures(bar) for bar in earlier["bars"]}
        for key, before, now in other_machine(earlier["env"], env):
            raise InputError(
                f"{file}: env.{key}: measured with {before}, not {now}; times of different machines cannot be compared"
            )
        if earlier["quick"] != quick:
            raise InputError(
                f"{file}: quick: {earlier['quick']}; run this bench {'with' if not quick else 'without'} --quick"
            )
        return [line for bar in results if bar.name in known and (line := _worse(bar, known[bar.name]))]
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {reason(error)}") from error
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not a file that `infoprune bench --out` wrote") from error


def _figures(bar: dict[str, Any]) -> dict[str, float | None]:
    """What is compared of an earlier bar; raises TypeError, ValueError or KeyError for a bar without it."""
    figures = {key: None if bar[key] is None else float(bar[key]) for key in ("ratio", "lo", "hi")}
    if (figures["lo"] is None) != (figures["hi"] is None):
        raise ValueError("half an interval")
    return figures


def _worse(bar: Bar, earlier: dict[str, Any]) -> str:
    if bar.ratio is None or earlier["ratio"] is None:
        return ""
    sign = -1 if bar.at_most else 1
    loss = sign * (earlier["ratio"] - bar.ratio)
    if bar.lo is not None and bar.hi is not None and earlier["lo"] is not None:
        apart = earlier["hi"] < bar.lo if bar.at_most else bar.hi < earlier["lo"]
    else:
        apart = loss > 0.1 * abs(earlier["ratio"])
    return f"{bar.name}: {bar.ratio:.3g}, was {earlier['ratio']:.3g}" if apart else ""


# --- the harness ------------------------------------------------------------------------------------------


def answers(quick: bool, device: str, progress: Progress) -> Iterator[Bar]:
    """Questions per second relative to lmms-eval's own batch-1 loop; nothing is cached between rounds.

    The bar is sound only if all answers are the same.
    """
    limit = 40 if quick else 200
    board = spec.read(BOARD)
    progress("evaluation throughput")
    vlm = families.load(registry.model(board.model), dtype=board.dtype, device=device)
    tasks.time_against_stock(vlm, replace(board.questions, limit=4), 1)  # warm-up: loading at first use must not count
    seconds, pairs = tasks.time_against_stock(vlm, replace(board.questions, limit=limit), ROUNDS)
    middle, low, high = ratio(seconds)
    same = sum(ours == stock for ours, stock in pairs)
    yield Bar(
        "evaluation throughput against lmms-eval's stock batch-1 path",
        goal=GOALS["throughput"]["cuda" if device.startswith("cuda") else "cpu"],
        ratio=middle,
        lo=low,
        hi=high,
        sound=same == len(pairs),
        detail={"questions": len(pairs), "same_answers": same, "seconds": np.median(seconds, axis=0).tolist()},
    )


def sweeps(quick: bool, device: str, progress: Progress) -> Iterator[Bar]:
    """Sweeps of ten budgets of the studied method on the shipped board: amortisation, and the harness's overhead."""
    limit = 40 if quick else 200
    demo = spec.read(BOARD)
    studied = [entry.method for entry in demo.methods if registry.method(entry.method).role == "studied"]
    method = (studied or [entry.method for entry in demo.methods])[0]
    board = spec.read(BOARD, methods=[method], budgets=list(BUDGETS), limit=limit, floors=False)
    scoring, shares, accounts = [], [], []
    for turn in range(1, ROUNDS + 1):
        records, seconds = _swept(board, device, turn, progress)
        rows = phases.account([record.cost for record in records], seconds)
        scoring.append(amortised(records))
        shares.append(phases.overhead(rows))
        accounts.append({"wall_s": seconds, "seconds": {row.phase: row.seconds for row in rows}})
    yield Bar.of(
        f"{len(BUDGETS)} budgets of {method} against the scoring of one", GOALS["amortised"], scoring, at_most=True
    )
    yield Bar.of(
        "share of a sweep that is neither generating, timing nor tuning",
        GOALS["overhead"],
        shares,
        at_most=True,
        detail={"questions": limit * len(board.tasks), "rounds": accounts},
    )


def _swept(board: spec.Board, device: str, turn: int, progress: Progress) -> tuple[list[Record], float]:
    """The records of a fresh sweep of a board, in the order of its trials, and the seconds that it took."""

    def say(text: str = "", *, done: int | None = None, total: int | None = None) -> None:
        progress(f"sweep {turn}, trial {done}: {text}")

    with tempfile.TemporaryDirectory() as folder:
        outcome = sweep(board, Path(folder), device=device, todo=plan(board, Path(folder)), progress=say)
        if outcome.failed:
            raise RuntimeError(f"the sweep that is timed failed: {outcome.failed[0]}")
        stored = {made.id: made for made in record.load(outcome.folder)[0]}
    return [stored[trial] for trial in outcome.ids], outcome.seconds


def amortised(records: Sequence[Record]) -> float:
    """Seconds to rank, solve and cut all these trials of one method, relative to the scoring of the first trial."""
    scoring = ("calibration", "ranking")
    phases_s = [record.cost.phases_s or {} for record in records]
    first = next(i for i, record in enumerate(records) if record.trial.method != DENSE)
    once = sum(seconds.get(phase, 0.0) for seconds in phases_s[: first + 1] for phase in scoring)
    work = (*scoring, "solve", "surgery")
    return sum(seconds.get(phase, 0.0) for seconds in phases_s for phase in work) / once


# --- pruned models ----------------------------------------------------------------------------------------


def speed(quick: bool, device: str, progress: Progress) -> Iterator[Bar]:
    """Pruned against dense models of published sizes: the return on FLOPs, and never slower than dense.

    Weights are random. The return is a stage's speedup divided by the reduction of its FLOPs, including the FLOPs of
    unpruned parts, which are a large share in a model with few layers. "Never slower" is also measured for the language
    model alone, and there also with aligned widths, because some kernels are slow at other widths.
    """
    gpu = device.startswith("cuda")
    name, dtype = ("qwen2-vl-7b-geometry", "bfloat16") if gpu else ("mini-geometry", "float32")
    side, batch, repeats = (448, 8, 20) if gpu else (224 if quick else 448, 1, 9)
    progress(f"{name}: load")
    dense = families.load(registry.model(name), dtype=dtype, device=device, random_weights=True, name=name)
    setting = f"{name}, {dtype}, {side} x {side} pixels, batch {batch}"

    def timed(scope: str, keep: float, align: int = 1) -> tuple[VLM, Context, tuple[float, float, float]]:
        pruned, context = cut(dense, scope, keep, side, align)
        before, after = context.stages(dense, batch)[scope], context.stages(pruned, batch)[scope]
        with torch.no_grad():
            return pruned, context, ratio(interleave(before, after, repeats, wait(torch.device(device))))

    for scope, stage in STAGES.items():
        for keep in (CUT, NEVER_SLOWER):
            progress(f"{name}: {stage} at {keep:g}")
            pruned, context, (middle, low, high) = timed(scope, keep)
            if keep == NEVER_SLOWER:
                yield Bar(f"speedup of {stage} at {keep:g} of the FLOPs ({setting})", 1.0, middle, low, high)
                continue
            if gpu:
                yield Bar(f"speedup of {stage} at 1/3.2 ({setting})", SPEEDUPS[scope], middle, low, high)
            macs = [_counting.count(vlm.model, context.stages(vlm)[scope])[0][""] for vlm in (dense, pruned)]
            reduction = macs[0] / macs[1]
            yield Bar(
                f"return on FLOPs of {stage} at 1/3.2 ({setting})",
                GOALS["return"],
                middle / reduction,
                low / reduction,
                high / reduction,
                detail={"speedup": middle, "flops_reduction": reduction},
            )
    for align in (1, ALIGNED):
        progress(f"{name}: language at {NEVER_SLOWER:g}")
        _, _, speedup = timed("language", NEVER_SLOWER, align)
        widths = f", widths in multiples of {align}" if align > 1 else ""
        yield Bar(f"speedup of the language model at {NEVER_SLOWER:g} of the FLOPs{widths} ({setting})", 1.0, *speedup)


def cut(dense: VLM, scope: Any, keep: float, side: int, align: int = 1) -> tuple[VLM, Context]:
    """The model after random pruning of the same share of every layer, and the context that gives its stages."""
    context = Context(ReferenceInput((side, side)))
    extents = context.extents(dense)
    ranking = registry.method("random").rank(dense, None, seed=0)  # type: ignore[arg-type]
    plan = solver.solve(dense, ranking, Budget(scope, keep, extents=extents, align=align))
    return surgery.apply(dense, plan, ranking), context
