"""Kills sweeps at random instants, lets the same command finish them, and compares what is there with a whole run.

    python -m tests.support.kills FOLDER 100            # a worker that computes nothing: record files byte for byte
    python -m tests.support.kills FOLDER 4 BOARD.yaml   # the real one: all but times

Prints one JSON object: kills by phase, the phases that there are, power cuts, and what came out different. Each sweep
is a fork of this process, so that imports are paid for once; a kill is SIGKILL, within a step (a phase of a trial, a
write, a move) or in the middle of a file's bytes; a power cut is a copy of the folder made at such an instant.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet

from harness.progress import Progress
from harness.records import record
from harness.records.record import Cost
from harness.trials import executors, spec
from harness.trials.locks import Claims
from harness.trials.sweep import sweep
from tests.support import stubs

Step = Callable[[str, Callable[[], object]], None]  # phase, what half of it would be


def watch(step: Step) -> None:
    """Have `step` called before everything that a sweep does to the folder."""
    for owner, name, phase in (
        (Claims, "take", "claim"),
        (Claims, "check", "check"),
        (Claims, "give_up", "give up"),
        (os, "fsync", "flush"),
        (os, "replace", "move"),
    ):
        setattr(owner, name, _stepping(step, phase, getattr(owner, name)))
    table, text = pyarrow.parquet.write_table, Path.write_text

    def write_table(samples: Any, where: Path, **more: Any) -> None:
        def half() -> None:
            table(samples, where, **more)
            os.truncate(where, where.stat().st_size // 2)

        step("samples", half)
        table(samples, where, **more)

    def write_text(where: Path, content: str, **more: Any) -> int:
        step("record", lambda: text(where, content[: len(content) // 2], **more))
        return text(where, content, **more)

    pyarrow.parquet.write_table = write_table
    Path.write_text = write_text  # type: ignore[method-assign]


def _stepping(step: Step, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def stepping(*given: Any, **more: Any) -> Any:
        step(phase, lambda: None)
        return call(*given, **more)

    return stepping


def run(
    board: spec.Board, make: executors.MakeWorker, results: Path, at: int = 0, copy: Path | None = None
) -> list[str]:
    """Sweep in a fork, killed at this step (0: never), or copied there; the phases that it went through."""
    seen, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def step(phase: str, half: Callable[[], object]) -> None:
            nonlocal count
            count += 1
            os.write(theirs, f"{phase}\n".encode())
            if count != at:
                return
            half()
            if copy is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                shutil.copytree(results, copy)

        def telling(device: str, jobs: int, progress: Progress) -> executors.Worker:
            return make(device, jobs, lambda text="", **counts: step(f"trial: {text}", lambda: None))

        watch(step)
        sweep(board, results, inline=True, make=telling)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(seen) as pipe:
        phases = pipe.read().split("\n")[:-1]
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) if at and copy is None else status == 0, (status, phases[-3:])
    return phases


def timeless(folder: Path) -> dict[str, Any]:
    """Records without what time they took, and samples."""
    found: dict[str, Any] = {}
    for name, content in stubs.contents(folder).items():
        if name.endswith(".json"):
            made = record.parse(content, folder / name)
            cost = Cost(calibration_samples=made.cost.calibration_samples)
            found[name] = replace(made, cost=cost, hashes={**made.hashes, "record": ""})
        else:
            found[name] = content
    return found


def main(root: Path, number: int, file: str = "") -> None:
    random.seed(0)
    if file:
        board: spec.Board = spec.read(file)
        make, look = executors.make_worker, timeless
    else:
        board, look, make = stubs.board(0, 1), stubs.contents, stubs.make
    sweep(board, root / "first", inline=True, make=make)  # what is imported or hashed once, is so before the forks
    steps = run(board, make, root / "whole")
    whole, kills, differ, cuts = look(root / "whole" / board.name), Counter[str](), [], 0
    for turn in range(number):
        results = root / f"{turn}"
        at = random.randint(1, len(steps))
        if turn % 10 == 9:
            run(board, make, root / f"{turn}-whole", at, copy=results)
            cuts += 1
        else:
            kills[run(board, make, results, at)[-1]] += 1
        run(board, make, results)
        found = look(results / board.name)
        if found != whole:
            which = [name for name in {*found, *whole} if found.get(name) != whole.get(name)]
            differ.append(f"{turn}: step {at}, {steps[at - 1]}: {which}")
        shutil.rmtree(results)
    print(json.dumps({"kills": kills, "phases": sorted(set(steps)), "cuts": cuts, "differ": differ}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
