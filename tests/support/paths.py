"""Where the repository is, and the environment of a process that imports from it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(*packages: Path, **variables: str) -> dict[str, str]:
    """This process's environment with further variables, for a process that finds these folders' packages, and ours."""
    path = [*map(str, packages), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **variables}
