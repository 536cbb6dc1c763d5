"""What sweeping costs beside the trials: planning, and no-op trials through each executor.

    PYTHONPATH=. python tests/overhead.py plan 100000
    PYTHONPATH=. python tests/overhead.py inline 10000
    PYTHONPATH=. python tests/overhead.py ray 1000

Prints one JSON object; records are written and flushed to disk as in any sweep.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import stubs

from harness.sweep import Cluster, plan, sweep


def main(what: str, number: int) -> None:
    board = stubs.board(*range(1000, 1000 + number), budgets=(0.5,))
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        if what == "plan":
            ran = len(plan(board, Path(folder)).trials)
        else:
            cluster = Cluster() if what == "ray" else None
            ran = sweep(board, Path(folder), inline=what == "inline", cluster=cluster, make=stubs.make).ran
        seconds = time.perf_counter() - start
    assert ran == number
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = {"seconds": round(seconds, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    print(json.dumps({what: number, **took, "ms_each": round(1000 * seconds / number, 3), "peak_MiB": round(memory)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
