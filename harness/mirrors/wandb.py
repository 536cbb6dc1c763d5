"""Runs in Weights & Biases: a group a board in the project WANDB_PROJECT, or by WANDB_MODE=offline in files."""

from __future__ import annotations

import os

import wandb

from harness.mirrors import Run


def send(run: Run) -> None:
    """Log a run under the id of its record's content; sent again, it is the same run."""
    made = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "infoprune-bench"),
        group=run.board,
        name=run.name,
        id=run.hash[:32],
        resume="allow",
        config={**run.params, **run.tags},
        settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
    )
    try:
        made.summary.update(run.metrics)
    finally:
        made.finish(exit_code=int(run.failed))
