"""The judge: prunes models by any registered method, measures what is left, keeps records and compares them.

From Python: `harness.load`, `prune`, `sweep`, `results` and `pareto`, which `harness.api` describes. They are imported
when they are first used, so that `import harness` stays light.
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import Pruned, load, pareto, prune, results, sweep

# transformers imports torchao where it is installed, and that import warns of what only torchao can change.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

__all__ = ["Pruned", "load", "pareto", "prune", "results", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harness import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
