"""What the harness costs beside the trials: planning, no-op trials through each executor, and the report of a board.

    python -m tests.support.overhead plan 100000
    python -m tests.support.overhead inline 10000
    python -m tests.support.overhead ray 1000
    python -m tests.support.overhead report 10000 [RESULTS]

Prints one JSON object; records are written and flushed to disk as in any sweep. A report is of copies of the reference
board's records and samples under other seeds, kept in RESULTS if that is named.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from harness.records import record
from harness.trials.sweep import Cluster, plan, sweep
from harness.types import Trial
from tests.support import stubs
from tests.support.paths import ROOT

SOURCE = ROOT / "results" / "reference"


def main(what: str, number: int, kept: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(kept or folder)
        if what == "report":
            copies(number, results / "large")
        start, cpu = time.perf_counter(), time.process_time()
        found = page(results, Path(folder)) if what == "report" else sweeping(what, number, results)
        seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = {"seconds": round(seconds, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    each = round(1000 * seconds / number, 3)
    print(json.dumps({what: number, **took, "ms_each": each, "peak_MiB": round(memory), **found}))


def sweeping(what: str, number: int, results: Path) -> dict[str, int]:
    board = stubs.board(*range(1000, 1000 + number), budgets=(0.5,))
    if what == "plan":
        ran = len(plan(board, results).trials)
    else:
        cluster = Cluster() if what == "ray" else None
        ran = sweep(board, results, inline=what == "inline", cluster=cluster, make=stubs.make).ran
    assert ran == number
    return {}


def page(results: Path, out: Path) -> dict[str, int]:
    from harness.report import INDEX, report

    report(results, out / "out")
    return {"page_bytes": (out / "out" / "large" / INDEX).stat().st_size}


def copies(number: int, folder: Path) -> None:
    """Write so many records with their samples, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.glob("*.json"))) == number:
        return
    sources = sorted(path for path in SOURCE.glob("*.json") if path.with_suffix(".parquet").is_file())
    for turn in range(number):
        path = sources[turn % len(sources)]
        made = json.loads(path.read_bytes())
        made["trial"] |= {"board": "large", "seed": made["trial"]["seed"] + 100 * (turn // len(sources))}
        made["id"] = Trial.of(made["trial"]).id
        made["hashes"]["record"] = record.content_hash(made)
        (folder / f"{made['id']}.json").write_text(json.dumps(made, indent=2, sort_keys=True) + "\n")
        shutil.copy(path.with_suffix(".parquet"), folder / f"{made['id']}.parquet")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
