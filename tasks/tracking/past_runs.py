"""What the run folders tell of earlier runs, and what MLflow has of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tasks.records import RunRecord
from tasks.tracking import outages
from tasks.tracking.journal import Journal
from tasks.tracking.shipping import journals
from tasks.tracking.store import ready_client


def mlflow_run_id(run: RunRecord) -> str | None:
    """Give the MLflow run's id; None while no server has heard of the run."""
    return Journal(run.folder).position.run_id


def is_registered(run: RunRecord) -> bool:
    """Tell whether a version in the registry is this run's adapter; so it is if nobody can say."""
    run_id = mlflow_run_id(run)
    if run_id is None or outages.why_to_wait(run.tracking_uri):
        return True
    try:
        with outages.watch(run.tracking_uri):
            client, _ = ready_client(run.tracking_uri, run.experiment)
            return bool(client.search_model_versions(f"run_id = '{run_id}'", max_results=1))
    except Exception:  # noqa: BLE001 - whatever it was, nothing is removed on a guess
        return True


class RecordedRun(NamedTuple):
    """A run as its journal tells of it."""

    run: RunRecord
    status: str
    """RUNNING where it was never ended, dead or alive."""
    opened_ms: int
    """When it was opened last, in milliseconds since 1970."""


def recorded_runs(folders: Iterable[Path]) -> list[RecordedRun]:
    """Give the runs in run folders, and right under these; the one opened last comes last."""
    found = (_recorded(journal) for journal in journals(folders))
    return sorted((seen for seen in found if seen), key=lambda seen: seen.opened_ms)


def _recorded(journal: Journal) -> RecordedRun | None:
    try:
        run = journal.run()
    except (OSError, ValidationError):  # of another version, or just being removed
        return None
    status, opened_ms = "RUNNING", 0
    for entry in journal.named("reopen", "end"):
        if entry.name == "reopen":
            status, opened_ms = "RUNNING", entry.time_ms
        else:
            status = str(entry.arguments["status"])
    return RecordedRun(run, status, opened_ms)
