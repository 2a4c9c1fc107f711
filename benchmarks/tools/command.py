"""adapterflow as a user runs it: `adapterflow train CONFIG.yaml --json`, all six steps."""

import json
import subprocess
import sys
import time
from pathlib import Path

import yaml

from benchmarks.harness.messages import Job, Outcome
from benchmarks.harness.recorded import mlflow_run, numbers, peak_memory_mb
from benchmarks.tools.ours import sections


def run(job: Job) -> Outcome:
    """Run the command, and read the end of its first step from MLflow afterwards.

    Raises:
        RuntimeError: the command failed; its output is in the job's log.
    """
    config = job.folder / "config.yaml"
    settings = {**sections(job), "output": {"folder": str(job.folder)}, "seed": job.seed}
    config.write_text(yaml.safe_dump(settings))
    command = [str(Path(sys.executable).with_name("adapterflow")), "train", str(config), "--json"]
    started = time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise RuntimeError(f"adapterflow train ended with status {done.returncode}")
    ended = time.time()
    return _outcome(json.loads(done.stdout)).model_copy(update={"started": started, "ended": ended})


def _outcome(report: dict[str, dict[str, object]]) -> Outcome:
    from mlflow import MlflowClient

    run, saved = report["run"], report["saved"]
    uri = str(run["tracking_uri"])
    found = mlflow_run(uri, str(run["flow_run_id"]))
    history = MlflowClient(uri).get_metric_history(found.info.run_id, "train/loss")
    points = sorted(history, key=lambda point: point.step)
    folder = Path(str(saved["folder"]))
    return Outcome(
        training_began=points[0].timestamp / 1000,
        step_ends=[point.timestamp / 1000 for point in points],
        losses=[point.value for point in points],
        adapter=folder,
        # Written last, so its time is when the adapter was complete.
        adapter_done=(folder / "manifest.json").stat().st_mtime,
        # All of step 4: it includes choosing how to batch, which counts as training time.
        seconds_training=numbers(uri, found)["seconds/train_adapter"],
        peak_memory_mb=peak_memory_mb(uri, found),
        warnings=[f"{report['trained']['batching']} batches"],
    )
