"""Runs in Weights & Biases: one group per board in the project WANDB_PROJECT. WANDB_MODE=offline writes files."""

from __future__ import annotations

import os

import wandb

from harness.records.mirrors import Run


def send(run: Run) -> None:
    """Log a run. Its id is the hash of the record's content, so a second call updates the same run."""
    wandb_run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "infoprune-bench"),
        group=run.board,
        name=run.name,
        id=run.hash[:32],
        resume="allow",
        config={**run.params, **run.tags},
        settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
    )
    try:
        wandb_run.summary.update(run.metrics)
    finally:
        wandb_run.finish(exit_code=int(run.failed))
