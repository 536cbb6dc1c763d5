"""The contestants: each file is one method with one function `rank(vlm, calibration, *, seed, ...) -> Ranking`.

The first line of a file's docstring is the method's title with its source. `REGIME`, `ROLE` and `UNITS` describe the
method where they differ from "none", "reference" and "both".
"""

DEFAULT = "infoprune_free"  # the method of `harness.prune` where none is named
