"""Verdicts from records: regressions after a code change, and the studied method against its rivals."""
