"""One MLflow run per flow run: opened or found again, written to, ended with its true status.

Everything goes through the run's id. mlflow's own active run belongs to one thread, is FINISHED
after an uncaught exception, and stays RUNNING after a kill.
"""

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from tasks.config import TrackingSettings
from tasks.records import RunRecord, SavedRecord, SplitRecord
from tasks.tracking.adapter_model import log_adapter
from tasks.tracking.datasets import dataset_of
from tasks.tracking.store import database_file, ready_client, store_lock, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

FLOW_RUN_TAG = "prefect.flow_run_id"

# Limits of mlflow 3.17 (mlflow.utils.validation); a longer value is an error or is cut silently.
_MAX_PARAM_CHARACTERS = 6000
_MAX_PARAMS_A_BATCH = 100
_MAX_METRICS_A_BATCH = 1000

Status = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")


def open_run(
    settings: TrackingSettings,
    *,
    run_name: str,
    flow_run_id: str,
    folder: Path,
    tags: Mapping[str, str],
) -> RunRecord:
    """Open the flow run's MLflow run: the one there is, RUNNING again, else a new one.

    The settings' run name wins over `run_name`, and their tags over `tags`.

    Raises:
        UserError: The tracking URI or the experiment cannot be used.
    """
    uri = tracking_uri(settings)
    client, experiment_id = ready_client(uri, settings.experiment)
    all_tags = {**tags, **settings.tags, FLOW_RUN_TAG: flow_run_id}
    name = settings.run_name or run_name
    with store_lock(uri):
        run_id = _find(client, experiment_id, flow_run_id)
        if run_id is None:
            run_id = _create(client, experiment_id, name, all_tags)
    record = RunRecord(
        tracking_uri=uri,
        experiment=settings.experiment,
        run_id=run_id,
        run_name=name,
        flow_run_id=flow_run_id,
        folder=folder,
    )
    client.update_run(run_id, status="RUNNING", name=name)
    Tracker(record).set_tags(all_tags)
    return record


def _find(client: "MlflowClient", experiment_id: str, flow_run_id: str) -> str | None:
    same_flow_run = f"tags.`{FLOW_RUN_TAG}` = '{flow_run_id}'"
    runs = client.search_runs([experiment_id], filter_string=same_flow_run, max_results=1)
    return runs[0].info.run_id if runs else None


def _create(client: "MlflowClient", experiment_id: str, name: str, tags: dict[str, str]) -> str:
    from mlflow.tracking.context.registry import resolve_tags

    # User, program and git commit, as `mlflow.start_run` would record them.
    run = client.create_run(experiment_id, tags=resolve_tags(tags), run_name=name)
    return str(run.info.run_id)


def ui_command(run: RunRecord) -> str:
    """Give the command that shows the run's store, or the address of its server."""
    if run.tracking_uri.startswith(("http:", "https:")):
        return run.tracking_uri
    return f"mlflow ui --backend-store-uri {shlex.quote(run.tracking_uri)}"


class Tracker:
    """Writes to one MLflow run. Saying the same thing twice, as a retry does, changes nothing."""

    def __init__(self, run: RunRecord) -> None:
        from mlflow import MlflowClient

        self.run = run
        self.client = MlflowClient(tracking_uri=run.tracking_uri)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; the last value wins."""
        from mlflow.entities import RunTag

        for chunk in _chunks([RunTag(k, str(v)) for k, v in tags.items()], _MAX_PARAMS_A_BATCH):
            self.client.log_batch(self.run.run_id, tags=chunk)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters as text.

        MLflow never changes a parameter: where a retry brings another value, the first one stays
        and the new one becomes the tag `changed.<name>`. A value over 6,000 characters is cut and
        ends in the sha256 of the whole.
        """
        from mlflow.entities import Param

        known = self.client.get_run(self.run.run_id).data.params
        given = {key: _as_text(value) for key, value in params.items()}
        new = [Param(key, text) for key, text in given.items() if key not in known]
        for chunk in _chunks(new, _MAX_PARAMS_A_BATCH):
            self.client.log_batch(self.run.run_id, params=chunk)
        self.set_tags(
            {f"changed.{key}": text for key, text in given.items() if known.get(key, text) != text}
        )

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, timestamp_ms: int | None = None
    ) -> None:
        """Log metrics of one step in one call; a point that is there already is not doubled."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
        points = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        self._log_points(points)

    def log_metric_series(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        """Log a whole curve of (step, value).

        The points' times follow from the run's start, so that a replay adds no point.
        """
        from mlflow.entities import Metric

        start = self.client.get_run(self.run.run_id).info.start_time
        self._log_points([Metric(name, float(value), start + step, step) for step, value in points])

    def _log_points(self, points: Sequence["Metric"]) -> None:
        for chunk in _chunks(points, _MAX_METRICS_A_BATCH):
            self.client.log_batch(self.run.run_id, metrics=chunk)

    def log_dataset(self, split: SplitRecord, context: str) -> None:
        """Log a split as a dataset of the run; `context` is such as `train` or `eval`.

        MLflow's digest is the first 36 characters of the split's sha256, which is also the tag
        `dataset.<context>.sha256`.
        """
        self.client.log_inputs(self.run.run_id, datasets=[dataset_of(split, context)])
        self.set_tags({f"dataset.{context}.sha256": split.sha256})

    def log_table(self, rows: Sequence[Mapping[str, object]], file: str) -> None:
        """Log rows with equal keys as a table, which the UI shows; `file` ends in `.json`.

        `MlflowClient.log_table` (3.17) would append the rows again on each retry.
        """
        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row[c] for c in columns] for row in rows]}
        self.client.log_text(self.run.run_id, json.dumps(table, ensure_ascii=False), file)
        # The tag by which the UI finds tables.
        self.set_tags({"mlflow.loggedArtifacts": json.dumps(self._tables_with(file))})

    def _tables_with(self, file: str) -> list[dict[str, str]]:
        tag = self.client.get_run(self.run.run_id).data.tags.get("mlflow.loggedArtifacts", "[]")
        others = [table for table in json.loads(tag) if table["path"] != file]
        return [*others, {"path": file, "type": "table"}]

    def log_text(self, text: str, file: str) -> None:
        """Write a text artifact."""
        self.client.log_text(self.run.run_id, text, file)

    def log_file(self, path: Path, artifact_folder: str | None = None) -> None:
        """Copy a file, such as a figure, to the run's artifacts."""
        self.client.log_artifact(self.run.run_id, str(path), artifact_folder)

    def log_adapter(self, saved: SavedRecord) -> str:
        """Log the adapter as a model without base weights; give its `models:/…` URI.

        The same adapter in the same run is the same model, however often it is logged.
        """
        return log_adapter(self.client, self.run, saved)

    def end(self, status: Status) -> None:
        """End the run; the last status wins, and a discarded run stays gone."""
        if self._exists():
            self.client.set_terminated(self.run.run_id, status)

    def discard(self) -> None:
        """Delete the run with its artifacts; from an SQLite store for good.

        Elsewhere it goes to MLflow's trash, which `mlflow gc` empties.
        """
        if not self._exists():
            return
        run = self.client.get_run(self.run.run_id)
        for output in run.outputs.model_outputs if run.outputs else []:
            self.client.delete_logged_model(output.model_id)
        self.client.delete_run(self.run.run_id)
        if database_file(self.run.tracking_uri):
            self._delete_for_good(run.info.artifact_uri)

    def _delete_for_good(self, artifact_uri: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
        from mlflow.utils.file_utils import local_file_uri_to_path
        from mlflow.utils.uri import is_local_uri

        get_artifact_repository(artifact_uri).delete_artifacts()
        if is_local_uri(artifact_uri):
            shutil.rmtree(Path(local_file_uri_to_path(artifact_uri)).parent, ignore_errors=True)
        # What `mlflow gc` calls.
        store = self.client._tracking_client.store  # noqa: SLF001
        assert isinstance(store, SqlAlchemyStore)  # noqa: S101
        store._hard_delete_run(self.run.run_id)  # noqa: SLF001

    def _exists(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(self.run.run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False


def _as_text(value: object) -> str:
    if isinstance(value, (dict, list, tuple)):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str(value)
    if len(text) <= _MAX_PARAM_CHARACTERS:
        return text
    end = f"… sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return text[: _MAX_PARAM_CHARACTERS - len(end)] + end


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
