"""Find earlier runs, in the run folders and in MLflow."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from tasks.config import TrackingSettings
from tasks.records import RunRecord
from tasks.tracking.offline import outages
from tasks.tracking.offline.journal import Journal
from tasks.tracking.offline.shipping import FLOW_RUN_TAG, journals
from tasks.tracking.store import ready_client, tracking_uri


def is_begun(run_folder: Path) -> bool:
    """Return whether the folder belongs to a run that was recorded, in MLflow or in its journal."""
    return Journal(run_folder).is_open()


def tag_before(run_folder: Path, tag: str) -> str | None:
    """Return the value of a tag when the run was last opened; None if it had none."""
    opened = Journal(run_folder).named("reopen") if is_begun(run_folder) else ()
    values = [entry.arguments["tags"].get(tag) for entry in opened]
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
    """Return the URL of the run's page on an MLflow server; None without a server.

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
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}"


def end_elsewhere(run: RunRecord, run_id: str, status: Status) -> None:
    """End another MLflow run in the run's store, whose journal is not on this machine."""
    try:
        with outages.watch(run.tracking_uri):
            client, _ = ready_client(run.tracking_uri, run.experiment)
            client.set_terminated(run_id, status)
    except Exception:  # noqa: BLE001 - a later run does it
        return
