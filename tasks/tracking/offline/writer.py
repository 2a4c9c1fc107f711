"""Apply the journal's operations to an MLflow run. All of them are idempotent.

Every call names the run by its id. mlflow's fluent API with its active run is not used: that
belongs to one thread, is FINISHED even after an uncaught exception, and stays RUNNING after a kill.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.records import SavedRecord
from tasks.tracking.adapter_model import log_adapter
from tasks.tracking.datasets import dataset_input
from tasks.tracking.descriptions import NOTE_TAG, of_experiment, with_lines
from tasks.tracking.offline.discarding import delete_run
from tasks.tracking.offline.outages import Refused

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunData

# Limits of mlflow 3.17 (mlflow.utils.validation).
_MAX_PARAMS_PER_BATCH = 100
_MAX_METRICS_PER_BATCH = 1000
# A server may need long to pass a file on to its artifact store.
_UPLOAD_SECONDS = "60"
REDONE_AT_TAG = "adapterflow.redone_at"
_TRUST_SECONDS = 5.0
"""For so long after an answer, the server is assumed to be reachable."""
_TIME_LIMIT = "MLFLOW_HTTP_REQUEST_TIMEOUT"

# What each operation contributes, for messages.
OPERATIONS = {
    "reopen": "status",
    "set_tags": "tags",
    "log_params": "parameters",
    "log_metrics": "metrics",
    "log_dataset": "datasets",
    "describe": "description",
    "log_table": "artifacts",
    "log_text": "artifacts",
    "log_file": "artifacts",
    "log_adapter": "model",
    "end": "status",
    "discard": "deletion",
}

T = TypeVar("T")
Point = tuple[str, float, int, int]
"""A point of a curve: name, value, milliseconds since 1970-01-01 UTC, step."""


class RunWriter:
    """Writes to one MLflow run, and knows which points of its curves exist."""

    def __init__(self, client: "MlflowClient", run_id: str, folder: Path) -> None:
        self._client = client
        self._run_id = run_id
        self._folder = folder
        self._steps: dict[str, set[int]] = {}
        self._redone_at: int | None = None
        self._answered = -math.inf

    def apply(self, name: str, arguments: Mapping[str, Any]) -> str | None:
        """Apply an operation; return the model's URI for `log_adapter`, else None.

        Raises:
            Refused: it can never be applied.
            Exception: any error of the store.
        """
        if name not in OPERATIONS:
            raise Refused(f"unknown operation {name!r}")
        uri: str | None = getattr(self, name)(**arguments)
        self._answered = time.monotonic()
        return uri

    @cached_property
    def _found(self) -> "RunData":
        """The run's data when this writer first needed it."""
        return self._client.get_run(self._run_id).data

    @cached_property
    def _params(self) -> dict[str, str]:
        return dict(self._found.params)

    def reopen(self, name: str, tags: dict[str, str]) -> None:
        """Set the run to RUNNING, whatever status an earlier attempt ended with."""
        self._client.update_run(self._run_id, status="RUNNING", name=name)
        self.set_tags(tags)

    def set_tags(self, tags: dict[str, str]) -> None:
        """Set tags; the last value wins."""
        from mlflow.entities import RunTag

        for chunk in _chunks([RunTag(k, v) for k, v in tags.items()], _MAX_PARAMS_PER_BATCH):
            self._client.log_batch(self._run_id, tags=chunk)
        if REDONE_AT_TAG in tags:
            self._redone_at = int(tags[REDONE_AT_TAG])
            self._steps.clear()

    def log_params(self, params: dict[str, str]) -> None:
        """Log new parameters; another value of an existing one becomes a tag `changed.<name>`."""
        from mlflow.entities import Param

        new = [Param(key, text) for key, text in params.items() if key not in self._params]
        for chunk in _chunks(new, _MAX_PARAMS_PER_BATCH):
            self._client.log_batch(self._run_id, params=chunk)
            self._params |= {param.key: param.value for param in chunk}
        changed = {k: text for k, text in params.items() if self._params.get(k, text) != text}
        self.set_tags({f"changed.{key}": text for key, text in changed.items()})

    def log_metrics(self, points: Sequence[Point]) -> None:
        """Log the points of steps that a curve does not have yet.

        A resumed training logs the same steps again at another time, which MLflow would keep as
        further points: it merges only points that also agree in time and value. Points from before
        a redo are kept beside the new ones.
        """
        from mlflow.entities import Metric

        new: dict[tuple[str, int], Metric] = {}
        for key, value, time_ms, step in points:
            if step not in self._known_steps(key):
                new.setdefault((key, step), Metric(key, value, time_ms, step))
        for chunk in _chunks(list(new.values()), _MAX_METRICS_PER_BATCH):
            self._client.log_batch(self._run_id, metrics=chunk)
        for key, step in new:
            self._steps[key].add(step)

    def _known_steps(self, key: str) -> set[int]:
        if key not in self._steps:
            is_new = key not in self._found.metrics
            history = [] if is_new else self._client.get_metric_history(self._run_id, key)
            start = self._start_of_redo()
            self._steps[key] = {point.step for point in history if point.timestamp >= start}
        return self._steps[key]

    def _start_of_redo(self) -> int:
        if self._redone_at is None:
            self._redone_at = int(self._found.tags.get(REDONE_AT_TAG, 0))
        return self._redone_at

    def log_dataset(self, dataset: dict[str, str], context: str, sha256: str) -> None:
        """Log a dataset of the run."""
        self._client.log_inputs(self._run_id, [dataset_input(dataset, context, sha256)])

    def describe(self, lines: dict[str, str]) -> None:
        """Set lines of the run's description, and make the experiment's from it."""
        run = self._client.get_run(self._run_id)
        text = with_lines(run.data.tags.get(NOTE_TAG, ""), lines)
        self.set_tags({NOTE_TAG: text})
        experiment = self._client.get_experiment(run.info.experiment_id)
        now = experiment.tags.get(NOTE_TAG, "")
        described = of_experiment(now, str(run.info.run_name), text)
        if described != now:
            self._client.set_experiment_tag(experiment.experiment_id, NOTE_TAG, described)

    def log_table(self, text: str, file: str) -> None:
        """Write a table artifact, and the tag by which MLflow's UI finds tables."""
        self.log_text(text, file)
        tag = self._client.get_run(self._run_id).data.tags.get("mlflow.loggedArtifacts", "[]")
        others = [table for table in json.loads(tag) if table["path"] != file]
        tables = [*others, {"path": file, "type": "table"}]
        self.set_tags({"mlflow.loggedArtifacts": json.dumps(tables)})

    def log_text(self, text: str, file: str) -> None:
        """Write a text artifact."""
        with self._uploading():
            self._client.log_text(self._run_id, text, file)

    def log_file(self, kept: str, artifact_folder: str | None) -> None:
        """Upload a kept file."""
        with self._uploading(kept):
            self._client.log_artifact(self._run_id, str(self._folder / kept), artifact_folder)

    def log_adapter(self, saved: dict[str, Any], kept: str, requirements: list[str]) -> str:
        """Log a kept adapter as a model; return its URI."""
        record = SavedRecord.model_validate(saved | {"folder": self._folder / kept})
        with self._uploading(kept):
            return log_adapter(self._client, self._run_id, record, requirements)

    def end(self, status: str, time_ms: int) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id, status, time_ms)

    def discard(self) -> None:
        """Delete the run."""
        delete_run(self._client, self._run_id)

    @contextmanager
    def _uploading(self, kept: str | None = None) -> Iterator[None]:
        """Raise the request timeout for an upload, after a check that the server answers."""
        if kept and not (self._folder / kept).exists():
            raise Refused(f"the file {self._folder / kept} is missing")
        if time.monotonic() - self._answered > _TRUST_SECONDS:
            self._client.get_run(self._run_id)
        before = os.environ[_TIME_LIMIT]
        os.environ[_TIME_LIMIT] = str(max(int(before), int(_UPLOAD_SECONDS)))
        try:
            yield
        finally:
            os.environ[_TIME_LIMIT] = before


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
