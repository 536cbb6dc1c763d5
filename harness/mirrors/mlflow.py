"""Runs in MLflow: an experiment a board, on the server or in the store that MLFLOW_TRACKING_URI names.

A server that does not answer is tried for four minutes, unless MLFLOW_HTTP_REQUEST_MAX_RETRIES is less than its 7.
"""

# pyright: reportMissingImports=false, reportCallIssue=false
# MLflow is not among what developers install.

from __future__ import annotations

import time

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from harness.mirrors import Run

HASH = "infoprune.record"  # the tag by which a run is found again
BATCH = 100  # params a call may hold


def send(run: Run) -> None:
    """Log a run, unless there is one of the same record; one that was cut short has no such tag, and is made anew."""
    client, now = MlflowClient(), int(1000 * time.time())
    found = client.get_experiment_by_name(run.board)
    experiment = found.experiment_id if found else client.create_experiment(run.board)
    if client.search_runs([experiment], f"tags.`{HASH}` = '{run.hash}'", max_results=1):
        return
    made = client.create_run(experiment, tags=run.tags, run_name=run.name).info.run_id
    params = [Param(key, value) for key, value in run.params.items()]
    metrics = [Metric(key, value, now, 0) for key, value in run.metrics.items()]
    for start in range(0, max(len(params), len(metrics)), BATCH):
        client.log_batch(made, metrics[start : start + BATCH], params[start : start + BATCH])
    client.set_tag(made, HASH, run.hash)
    client.set_terminated(made, "FAILED" if run.failed else "FINISHED")
