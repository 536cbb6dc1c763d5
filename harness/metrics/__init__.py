"""Metrics, one file each: `measure(pruned, dense, trial, context) -> dict`, recorded under the file's name."""
