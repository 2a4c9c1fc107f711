"""Find earlier runs, in the run folders and in MLflow."""

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import ValidationError

from tasks.config import TrackingSettings
from tasks.records import RunRecord
from tasks.tracking.offline import outages
from tasks.tracking.offline.journal import Journal
from tasks.tracking.offline.shipping import FLOW_RUN_TAG, journals
from tasks.tracking.store import ready_client, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VIEW = "?workflowType=machine_learning"


def is_begun(run_folder: Path) -> bool:
    """Return whether the folder belongs to a run that was recorded, in MLflow or in its journal."""
    return Journal(run_folder).is_open()


def tag_before(run_folder: Path, tag: str) -> str | None:
    """Return the value of a tag when the run was last opened; None if it had none."""
    opened = Journal(run_folder).named("reopen") if is_begun(run_folder) else ()
    values = [entry.arguments["tags"].get(tag) for entry in opened]
    return values[-1] if values else None


def param_before(run_folder: Path, param: str) -> str | None:
    """Return the value of a parameter as it was last logged; None if it never was."""
    logged = Journal(run_folder).named("log_params") if is_begun(run_folder) else ()
    values = [one for entry in logged if (one := entry.arguments["params"].get(param))]
    return values[-1] if values else None


def mlflow_run_id(run: RunRecord) -> str | None:
    """Return the MLflow run's id; None until the run is known to the store."""
    return Journal(run.folder).position.run_id


def is_registered(run: RunRecord) -> bool:
    """Return whether this run's adapter is a version in the registry; True if that is unknown."""
    run_id = mlflow_run_id(run)
    if run_id is None or outages.why_to_wait(run.tracking_uri):
        return True
    try:
        with outages.watch(run.tracking_uri):
            client, _ = ready_client(run.tracking_uri, run.experiment)
            return bool(client.search_model_versions(f"run_id = '{run_id}'", max_results=1))
    except Exception:  # noqa: BLE001 - when in doubt, nothing is removed
        return True


Status = Literal["FINISHED", "FAILED", "KILLED"]

NUMBERS_FILE = "numbers.json"
"""The artifact with a run's single numbers, as a table of names and values."""


def numbers_in(table: str) -> dict[str, float]:
    """Return the numbers in the text of a run's table, by name."""
    return {str(name): float(value) for name, value in json.loads(table).get("data", [])}


def recorded_numbers(client: "MlflowClient", run_id: str) -> dict[str, float]:
    """Return a run's single numbers by name; those of an older version's run are its metrics."""
    metrics = dict(client.get_run(run_id).data.metrics)
    if NUMBERS_FILE not in {file.path for file in client.list_artifacts(run_id)}:
        return metrics
    with tempfile.TemporaryDirectory() as folder:
        file = Path(client.download_artifacts(run_id, NUMBERS_FILE, folder))
        return metrics | numbers_in(file.read_text(encoding="utf-8"))


class RecordedRun(NamedTuple):
    """A run according to its journal."""

    run: RunRecord
    status: str
    """RUNNING until it is ended, even if its process is dead."""
    opened_ms: int
    """When it was last opened, in milliseconds since 1970-01-01 UTC."""
    ended_ms: int
    """When it was last ended, in the same unit; 0 if never."""


def recorded_runs(folders: Iterable[Path]) -> list[RecordedRun]:
    """Return the runs in these folders and directly below them, the last opened one last."""
    found = (_recorded(journal) for journal in journals(folders))
    return sorted((seen for seen in found if seen), key=lambda seen: seen.opened_ms)


def _recorded(journal: Journal) -> RecordedRun | None:
    try:
        run = journal.run()
    except (OSError, ValidationError):  # of another version, or being removed
        return None
    status, opened_ms, ended_ms = "RUNNING", 0, 0
    for entry in journal.named("reopen", "end"):
        if entry.name == "reopen":
            status, opened_ms = "RUNNING", entry.time_ms
        else:
            status, ended_ms = str(entry.arguments["status"]), entry.time_ms
    return RecordedRun(run, status, opened_ms, ended_ms)


def running_elsewhere(run: RunRecord) -> dict[str, str]:
    """Return the flow runs of the other RUNNING runs in the run's experiment, by MLflow run id.

    Empty if MLflow can't be reached.
    """
    try:
        with outages.watch(run.tracking_uri):
            client, experiment_id = ready_client(run.tracking_uri, run.experiment)
            found = client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
    except Exception:  # noqa: BLE001 - a later run does it
        return {}
    flow_runs = {one.info.run_id: one.data.tags.get(FLOW_RUN_TAG) for one in found}
    return {key: tag for key, tag in flow_runs.items() if tag and tag != run.flow_run_id}


def finished_run(settings: TrackingSettings, tag: str, value: str) -> str | None:
    """Return the id of the experiment's last FINISHED run with this tag; None if none is found."""
    uri = tracking_uri(settings)
    wanted = f"attributes.status = 'FINISHED' and tags.`{tag}` = '{value}'"
    try:
        with outages.watch(uri):
            client, experiment_id = ready_client(uri, settings.experiment)
            found = client.search_runs([experiment_id], wanted, max_results=1)
    except Exception:  # noqa: BLE001 - when in doubt, it is trained again
        return None
    return found[0].info.run_id if found else None


def run_url(run: RunRecord) -> str | None:
    """Return the URL of the run's curves on an MLflow server; None without a server.

    mlflow 3.17 opens an experiment on its page for GenAI unless the link names the kind of work.

    `MLFLOW_PUBLIC_URL` is the server's address for people, if it differs from the tracking URI.
    Name and password of the tracking URI are removed.
    """
    run_id = mlflow_run_id(run)
    if run_id is None or not run.tracking_uri.startswith(("http:", "https:")):
        return None
    try:
        with outages.watch(run.tracking_uri):
            _, experiment_id = ready_client(run.tracking_uri, run.experiment)
    except Exception:  # noqa: BLE001 - a run must not fail for a link
        return None
    reached = re.sub(r"(?<=://)[^/@]*@", "", run.tracking_uri)
    server = (os.environ.get("MLFLOW_PUBLIC_URL") or reached).rstrip("/")
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}/model-metrics{_VIEW}"


def end_elsewhere(run: RunRecord, run_id: str, status: Status) -> None:
    """End another MLflow run in the run's store, whose journal is not on this machine."""
    try:
        with outages.watch(run.tracking_uri):
            client, _ = ready_client(run.tracking_uri, run.experiment)
            client.set_terminated(run_id, status)
    except Exception:  # noqa: BLE001 - a later run does it
        return
