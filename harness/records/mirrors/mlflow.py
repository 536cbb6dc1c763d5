"""Runs in MLflow: one experiment per board, on the server or in the store of MLFLOW_TRACKING_URI.

MLflow retries a silent server for four minutes; MLFLOW_HTTP_REQUEST_MAX_RETRIES below its default of 7 shortens this.
"""

# pyright: reportMissingImports=false, reportCallIssue=false
# Developers do not install MLflow.

from __future__ import annotations

import time

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from harness.records.mirrors import Run

HASH = "infoprune.record"  # tag that identifies a finished run
BATCH = 100  # maximal params per call


def send(run: Run) -> None:
    """Log a run unless its record is already logged. An interrupted run has no HASH tag, so it is logged again."""
    client, now = MlflowClient(), int(1000 * time.time())
    existing = client.get_experiment_by_name(run.board)
    experiment = existing.experiment_id if existing else client.create_experiment(run.board)
    if client.search_runs([experiment], f"tags.`{HASH}` = '{run.hash}'", max_results=1):
        return
    run_id = client.create_run(experiment, tags=run.tags, run_name=run.name).info.run_id
    params = [Param(key, value) for key, value in run.params.items()]
    metrics = [Metric(key, value, now, 0) for key, value in run.metrics.items()]
    for start in range(0, max(len(params), len(metrics)), BATCH):
        client.log_batch(run_id, metrics[start : start + BATCH], params[start : start + BATCH])
    client.set_tag(run_id, HASH, run.hash)
    client.set_terminated(run_id, "FAILED" if run.failed else "FINISHED")
