"""Metrics, one file each: `measure(pruned, dense, trial, context) -> dict`, stored under the file's name in the record."""
