"""The last lines that a finished run prints: where it can be seen, and how its adapter is used."""

import shlex

from flows.server.embedded import EmbeddedServer
from flows.server.embedded import ui_command as prefect_ui_command
from flows.server.programs import near, program, runnable
from flows.server.stack import running_mlflow
from tasks.config import TrackingSettings
from tasks.records import Outcome, ReportRecord, RetrainedRecord, RunRecord, VariantsRecord
from tasks.runtime.addresses import masked
from tasks.tracking import Tracker, mlflow_run_id, run_url, ship_command, tracking_uri
from tasks.tracking import ui_command as mlflow_ui_command

Lines = list[tuple[str, str]]
"""Each with its name."""


def places(run: RunRecord) -> Lines:
    """Return where a run is recorded: addresses, or the command that opens a UI where none is up.

    What waits to be recorded is named with the command that ships it.
    """
    recorded = f"{mlflow_run_id(run) or run.run_name} in experiment {run.experiment!r}"
    waiting = Tracker(run).what_waits()
    return [
        ("MLflow run", recorded),
        *([("waiting", f"{waiting}; ship with: {ship_command(run)}")] if waiting else []),
        ("MLflow UI", _mlflow(run)),
        ("Prefect UI", _prefect(run)),
    ]


def use(report: ReportRecord) -> Lines:
    """Return the command that answers a file of rows with the adapter of a training."""
    return [("use it", _predict(str(near(report.saved.folder))))]


def use_set(record: VariantsRecord) -> Lines:
    """Return the command that answers a file of rows with all adapters of a set."""
    if all(one.adapter is None for one in record.variants):
        return []
    return [("use them", _predict(str(near(record.run.folder))))]


def use_version(record: RetrainedRecord) -> Lines:
    """Return the command that answers a file of rows with what a retraining registered."""
    if not (record.version and record.run):
        return []
    is_champion = record.decision.outcome is Outcome.PROMOTE
    source = f"models:/{record.version.name}@champion" if is_champion else record.version.uri
    store = record.run.tracking_uri
    elsewhere = store != tracking_uri(TrackingSettings()) and masked(store) == store
    return [("use it", _predict(source, f"tracking_uri={store}" if elsewhere else None))]


def _predict(source: str, setting: str | None = None) -> str:
    words = [program("adapterflow"), "predict", shlex.quote(source), "INPUT.jsonl", "OUTPUT.jsonl"]
    return " ".join([*words, *(["--set", shlex.quote(setting)] if setting else [])])


def _mlflow(run: RunRecord) -> str:
    """Return the address of the run's page, or of a server for its store, or else a command."""
    if url := run_url(run):
        return url
    is_embedded = run.tracking_uri == tracking_uri(TrackingSettings())
    if is_embedded and (running := running_mlflow()):
        return running["MLFLOW_TRACKING_URI"]
    return runnable(mlflow_ui_command(run))


def _prefect(run: RunRecord) -> str:
    if EmbeddedServer.of_this_process:
        return runnable(prefect_ui_command())
    from prefect.utilities.urls import url_for

    return masked(url_for("flow-run", obj_id=run.flow_run_id) or prefect_ui_command())
