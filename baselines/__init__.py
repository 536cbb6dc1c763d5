"""The contestants: one file, one method, one function `rank(vlm, calibration, *, seed, ...) -> Ranking`.

The first line of a file's docstring is the method's title with its source. `REGIME`, `ROLE` and `UNITS` say how it is
compared, where that differs from "training-free", "reference" and "both".
"""
