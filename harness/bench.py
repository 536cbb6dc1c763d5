"""The performance bars, each a ratio measured in one run: how fast pruned models are, and how cheap the harness is.

    infoprune bench --quick
    for bar in bars(quick=True): print(bar.name, bar.ratio, bar.holds)

What only a GPU can show is listed as not measured, with its command. Packages add bars of their own by the entry-point
group `infoprune.benches`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import budget, families, phases, record, registry, spec, surgery, tasks
from harness.bars import Bar
from harness.machine import facts
from harness.metrics import flops
from harness.metrics.latency import interleave, ratio, wait
from harness.runner import Context, code
from harness.sweep import plan, sweep
from harness.types import VLM, Budget, InputError, Trial

Progress = Callable[[str], None]
BOARD = "demo"
ROUNDS = 3
CUT = 0.3125  # the 1/3.2 of the FLOPs that the goals are about
NEVER_SLOWER = 0.9
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, CUT, 0.25)
ALIGNED = 32  # the multiple in which widths are also tried
STAGES = {"vision": "vision encode", "all": "prefill"}
GOALS = {"return": 0.85, "amortised": 1.2, "overhead": 0.1, "throughput": {"cpu": 3.0, "cuda": 8.0}}
SPEEDUPS = {"vision": 2.7, "all": 2.6}  # of a 7B model at 1/3.2 of the scope, batch 8


def bars(*, quick: bool = False, device: str = "cpu", progress: Progress = lambda text: None) -> Iterator[Bar]:
    """Every bar, as it is measured; `quick` asks fewer questions and times smaller inputs, `device` is cpu or cuda."""
    yield throughput(40 if quick else 200, ROUNDS, device, progress)
    yield from sweep_bars(40 if quick else 200, ROUNDS, device, progress)
    yield from speed(quick, device, progress)
    for own in registry.benches().values():
        yield from own(quick=quick, device=device, progress=progress)
    if not device.startswith("cuda"):
        yield Bar(
            "evaluation throughput on a GPU", GOALS["throughput"]["cuda"], command="infoprune bench --device cuda"
        )
        for scope, goal in SPEEDUPS.items():
            name = f"speedup of {STAGES[scope]} at 1/3.2, qwen2-vl-7b-geometry, bfloat16, batch 8"
            yield Bar(name, goal, command="infoprune bench --device cuda")


def measured(found: list[Bar], device: str, quick: bool) -> dict[str, Any]:
    """The bars as plain values, with the machine and the code that they were measured with, as in a record."""
    return {"bars": [bar.to_json() for bar in found], "quick": quick, "env": facts(device), "code": code()}


def worse(found: list[Bar], file: Path, env: dict[str, Any], quick: bool) -> list[str]:
    """A line for each bar that this earlier run's file shows to have become worse: by a tenth or more, or, where both
    have intervals, by more than these overlap.

    Raises InputError if the file is not one of `infoprune bench`, or of another machine or size of run.
    """
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        known = {bar["name"]: bar for bar in earlier["bars"]}
        for key in ("device", "cpu", "gpu", "threads"):
            if earlier["env"].get(key) != env.get(key):
                raise InputError(
                    f"{file}: env.{key}: measured with {earlier['env'].get(key)}, not {env.get(key)}; "
                    "times of another machine are no evidence"
                )
        if earlier["quick"] != quick:
            raise InputError(
                f"{file}: quick: {earlier['quick']}; run this bench {'with' if not quick else 'without'} --quick"
            )
        return [line for bar in found if bar.name in known and (line := _worse(bar, known[bar.name]))]
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not a file that `infoprune bench --out` wrote") from error


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


def throughput(limit: int, rounds: int, device: str, progress: Progress) -> Bar:
    """Questions per second against lmms-eval's stock loop at batch 1, the same questions, nothing kept between rounds.

    Sound only if every answer is the same.
    """
    board = spec.read(BOARD)
    progress("evaluation throughput")
    vlm = families.load(registry.model(board.model), dtype=board.dtype, device=device)
    tasks.time_against_stock(vlm, board.tasks, board.split, 4, 1)  # what is loaded at first use is nobody's time
    seconds, answers = tasks.time_against_stock(vlm, board.tasks, board.split, limit, rounds)
    middle, low, high = ratio(seconds)
    same = sum(one == other for one, other in answers)
    return Bar(
        "evaluation throughput against lmms-eval's stock batch-1 path",
        goal=GOALS["throughput"]["cuda" if device.startswith("cuda") else "cpu"],
        ratio=middle,
        lo=low,
        hi=high,
        sound=same == len(answers),
        detail={"questions": len(answers), "same_answers": same, "seconds": np.median(seconds, axis=0).tolist()},
    )


def sweep_bars(limit: int, rounds: int, device: str, progress: Progress) -> list[Bar]:
    """Sweeps of ten budgets of the method under study on the shipped board: amortisation and the harness's share."""
    demo = spec.read(BOARD)
    studied = [entry.method for entry in demo.methods if registry.method(entry.method).role == "studied"]
    method = (studied or [entry.method for entry in demo.methods])[0]
    board = spec.read(BOARD, methods=[method], budgets=list(BUDGETS), limit=limit, floors=False)
    scoring, shares, accounts = [], [], []
    for turn in range(1, rounds + 1):
        made, seconds = _swept(board, device, lambda n, text, turn=turn: progress(f"sweep {turn}, trial {n}: {text}"))
        rows = phases.account(made, seconds)
        scoring.append(amortised(made))
        shares.append(phases.overhead(rows))
        accounts.append({"wall_s": seconds, "seconds": {row.phase: row.seconds for row in rows}})
    return [
        Bar.of(
            f"{len(BUDGETS)} budgets of {method} against the scoring of one",
            GOALS["amortised"],
            scoring,
            at_most=True,
        ),
        Bar.of(
            "share of a sweep that is neither generating, timing nor tuning",
            GOALS["overhead"],
            shares,
            at_most=True,
            detail={"questions": limit * len(board.tasks), "rounds": accounts},
        ),
    ]


def _swept(board: spec.Board, device: str, said: Callable[[int, str], None]) -> tuple[list[dict[str, Any]], float]:
    """The records of a board that is swept from nothing, in the order in which they were made, and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = sweep(board, Path(folder), device=device, todo=plan(board, Path(folder)), progress=said)
        if outcome.failed:
            raise RuntimeError(f"the sweep that is timed failed: {outcome.failed[0]}")
        stored = {found["id"]: found for found in record.load(outcome.folder)[0]}
    return [stored[each] for each in outcome.ids], outcome.seconds


def amortised(records: list[dict[str, Any]]) -> float:
    """Seconds that these trials of one method took to be ranked, solved and cut, over those of the first's scoring."""
    scoring = ("calibration", "ranking")
    each = [record["cost"]["phases_s"] for record in records]
    first = next(i for i, record in enumerate(records) if record["trial"]["method"] != "none")
    once = sum(own.get(phase, 0.0) for own in each[: first + 1] for phase in scoring)
    return sum(own.get(phase, 0.0) for own in each for phase in (*scoring, "solve", "repair", "surgery")) / once


# --- pruned models ----------------------------------------------------------------------------------------


def speed(quick: bool, device: str, progress: Progress) -> Iterator[Bar]:
    """Pruned against dense at published shapes with random weights: the return on FLOPs, and never slower than dense.

    The return is the speedup of a stage over the reduction of that stage's FLOPs, what is not pruned included: of a
    model of few layers that is much. Never slower: also of the language model alone, and there also with widths in
    multiples, as kernels may like no others.
    """
    gpu = device.startswith("cuda")
    name, dtype = ("qwen2-vl-7b-geometry", "bfloat16") if gpu else ("mini-geometry", "float32")
    side, batch, repeats = (448, 8, 20) if gpu else (224 if quick else 448, 1, 9)
    progress(f"{name}: load")
    dense = families.load(registry.model(name), dtype=dtype, device=device, random_weights=True, name=name)
    shown = f"{name}, {dtype}, {side} x {side} pixels, batch {batch}"

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
                yield Bar(f"speedup of {stage} at {keep:g} of the FLOPs ({shown})", 1.0, middle, low, high)
                continue
            if gpu:
                yield Bar(f"speedup of {stage} at 1/3.2 ({shown})", SPEEDUPS[scope], middle, low, high)
            macs = [flops.count(vlm.model, context.stages(vlm)[scope])[0][""] for vlm in (dense, pruned)]
            reduction = macs[0] / macs[1]
            yield Bar(
                f"return on FLOPs of {stage} at 1/3.2 ({shown})",
                GOALS["return"],
                middle / reduction,
                low / reduction,
                high / reduction,
                detail={"speedup": middle, "flops_reduction": reduction},
            )
    for align in (1, ALIGNED):
        progress(f"{name}: language at {NEVER_SLOWER:g}")
        _, _, found = timed("language", NEVER_SLOWER, align)
        widths = f", widths in multiples of {align}" if align > 1 else ""
        yield Bar(f"speedup of the language model at {NEVER_SLOWER:g} of the FLOPs{widths} ({shown})", 1.0, *found)


def cut(dense: VLM, scope: Any, keep: float, side: int, align: int = 1) -> tuple[VLM, Context]:
    """The model with the same share of every layer's units removed at random, and what gives its stages."""
    trial = Trial(
        board="bench",
        model=dense.name,
        method="random",
        options={},
        scope=scope,
        units="both",
        budget=keep,
        seed=0,
        tasks=(),
        split="",
        limit=None,
        metrics=(),
        calibration={},
        latency={},
        reference_input={"image": [side, side], "text": "What is in the picture?"},
    )
    context = Context(trial, lambda text: None)
    extents = families.family(dense.family).extents(dense.model, context.inputs(dense))
    ranking = registry.method("random").rank(dense, None, seed=0)  # type: ignore[arg-type]
    plan = budget.solve(dense, ranking, Budget(scope, keep, extents=extents, align=align))
    return surgery.apply(dense, plan, ranking), context
