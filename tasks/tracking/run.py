"""One MLflow run per flow run: opened or reopened, written to, and ended with its true status.

All operations are written to a journal in the run's folder first, and shipped to MLflow as soon as
it can be reached. So an outage delays nothing, fails nothing and loses nothing.
"""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.config import TrackingSettings
from tasks.errors import AdapterflowError, UserError
from tasks.records import FileRecord, RunRecord, SavedRecord, SplitRecord
from tasks.runtime import home
from tasks.runtime.progress import logger
from tasks.tracking.adapter_model import requirements
from tasks.tracking.datasets import describe
from tasks.tracking.offline import outages
from tasks.tracking.offline.journal import Journal, now_ms
from tasks.tracking.offline.shipping import FLOW_RUN_TAG, Outcome, shipper_of
from tasks.tracking.offline.writer import OPERATIONS, REDONE_AT_TAG
from tasks.tracking.past_runs import NUMBERS_FILE, Status, numbers_in, run_url
from tasks.tracking.store import POSSIBLE, database_file, ready_client, tracking_uri

# Limit of mlflow 3.17 (mlflow.utils.validation), which truncates longer values silently.
_MAX_PARAM_CHARACTERS = 6000

# During a training, a backlog is shipped in small portions.
_SECONDS_PER_OPERATION = 2.0
_SECONDS_AT_THE_END = 60.0
_SECONDS_FOR_ANOTHER_PROCESS = 5.0

REDONE_FROM_TAG = "adapterflow.redone_from"
VARIANT_TAG = "adapterflow.variant"
"""Tag: the variant's name, where the run is one of a set's."""
SET_TAG = "adapterflow.variants_of"
"""Tag: the flow run of the set that a variant belongs to."""
PARENT_TAG = "mlflow.parentRunId"
"""Tag: the MLflow run below which MLflow's UI shows this one."""


def open_run(
    settings: TrackingSettings,
    *,
    run_name: str,
    flow_run_id: str,
    folder: Path,
    tags: Mapping[str, str],
) -> RunRecord:
    """Open the flow run's MLflow run: the existing one, set to RUNNING again, or a new one.

    The settings' run name wins over `run_name`, and their tags over `tags`. If the server is down,
    only the journal in `folder` is opened.

    Raises:
        UserError: the tracking URI or the experiment can't be used.
    """
    run = RunRecord(
        tracking_uri=tracking_uri(settings),
        experiment=settings.experiment,
        run_name=settings.run_name or run_name,
        flow_run_id=flow_run_id,
        folder=folder,
    )
    problem = _check(run)
    all_tags = {**tags, **settings.tags, FLOW_RUN_TAG: flow_run_id}
    journal = Journal(folder)
    if not journal.is_open():
        all_tags = _with_origin(all_tags)
    journal.open(run)
    if problem:
        _warn(run, problem)
    Tracker(run).reopen(all_tags)
    return run


def _check(run: RunRecord) -> str | None:
    """Return why the server can't be reached; None if it can."""
    uri = run.tracking_uri
    try:
        with outages.watch(uri):
            ready_client(uri, run.experiment)
    except AdapterflowError:
        raise
    except Exception as error:
        problem = outages.reason(error)
        if outages.is_mistake(error):
            raise UserError(f"MLflow at {uri}: {problem}; {POSSIBLE}") from error
        if not database_file(uri):
            return problem
        if outages.is_passing(error):  # a file is never down: it can't be written
            raise AdapterflowError(f"MLflow at {uri}: {problem}") from error
        raise
    return None


def _with_origin(tags: dict[str, str]) -> dict[str, str]:
    """Add user, program and git commit, as `mlflow.start_run` records them."""
    from mlflow.tracking.context.registry import resolve_tags

    return {key: str(value) for key, value in resolve_tags(tags).items()}


def _warn(run: RunRecord, problem: str) -> None:
    logger().warning(
        "MLflow at %s can't be reached; operations are kept in %s until it can: %s",
        run.tracking_uri,
        Journal(run.folder).folder,
        problem,
    )


def ui_command(run: RunRecord) -> str:
    """Return the command that shows the run's store, or the run's address on its server."""
    if run.tracking_uri.startswith(("http:", "https:")):
        return run_url(run) or run.tracking_uri
    settings = "MLFLOW_DISABLE_TELEMETRY=true"
    return f"{settings} mlflow ui --backend-store-uri {shlex.quote(run.tracking_uri)}"


def ship_command(run: RunRecord) -> str:
    """Return the command that ships the pending operations in the run's folder."""
    if run.folder.parent == home.outputs():
        return "adapterflow ship"
    return f"adapterflow ship {shlex.quote(str(run.folder))}"


class Tracker:
    """Writes to one MLflow run. All operations are idempotent, so that a retry may repeat them."""

    def __init__(self, run: RunRecord) -> None:
        self.run = run
        self._journal = Journal(run.folder)
        self._shipper = shipper_of(run.folder)

    def reopen(self, tags: Mapping[str, str]) -> None:
        """Set the run to RUNNING, with its name and these tags."""
        self._log("reopen", durable=True, name=self.run.run_name, tags=dict(tags))

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; the last value wins."""
        self._log("set_tags", tags={key: str(value) for key, value in tags.items()})

    def mark_redo(self, first_step: str, time_ms: int) -> None:
        """Mark the points of curves from before `time_ms` as superseded by a redo."""
        self.set_tags({REDONE_FROM_TAG: first_step, REDONE_AT_TAG: time_ms})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters as text.

        MLflow never changes a parameter: if a retry logs another value, the first one stays and the
        new one becomes the tag `changed.<name>`. A value over 6,000 characters is truncated, and
        ends with the sha256 of the full value.
        """
        self._log("log_params", params={key: _as_text(value) for key, value in params.items()})

    def logged_params(self) -> list[dict[str, str]]:
        """Return what each attempt logged as parameters, in order, as the journal has it."""
        return [dict(entry.arguments["params"]) for entry in self._journal.named("log_params")]

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, timestamp_ms: int | None = None
    ) -> None:
        """Log metrics of one step; a step logged before keeps its value, except in a redo."""
        now = now_ms() if timestamp_ms is None else timestamp_ms
        points = [(key, float(value), now, step) for key, value in metrics.items()]
        self._log("log_metrics", points=points)

    def log_numbers(self, numbers: Mapping[str, float]) -> None:
        """Log single numbers as rows of the run's one table, `numbers.json`; the last value wins.

        As metrics, each would be a chart with one bar, and the curves were hard to find among them.
        """
        rows = {**numbers_in(self._last_numbers()), **numbers}
        self.log_table([{"name": n, "value": float(v)} for n, v in rows.items()], NUMBERS_FILE)

    def _last_numbers(self) -> str:
        tables = self._journal.named("log_table") if self._journal.is_open() else ()
        texts = [e.arguments["text"] for e in tables if e.arguments["file"] == NUMBERS_FILE]
        return str(texts[-1]) if texts else "{}"

    def describe(self, lines: Mapping[str, str]) -> None:
        """Set lines of the run's description by name, from which the experiment's is made, too."""
        self._log("describe", lines=dict(lines))

    def log_dataset(self, split: SplitRecord, context: str) -> None:
        """Log a split as a dataset of the run; `context` is such as `train` or `eval`.

        MLflow's digest is the first 36 characters of the split's sha256, which the dataset has in
        full as its own tag.
        """
        described = describe(split, context)
        self._log("log_dataset", dataset=described, context=context, sha256=split.sha256)

    def log_table(self, rows: Sequence[Mapping[str, object]], file: str) -> None:
        """Log rows with equal keys as a table, which MLflow's UI shows; `file` ends in `.json`.

        `MlflowClient.log_table` (3.17) would append the rows again on each retry.
        """
        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row[c] for c in columns] for row in rows]}
        self._log("log_table", text=json.dumps(table, ensure_ascii=False), file=file)

    def log_text(self, text: str, file: str) -> None:
        """Log a text artifact."""
        self._log("log_text", text=text, file=file)

    def log_file(self, path: Path, artifact_folder: str | None = None) -> None:
        """Log a copy of a file, such as a figure, as an artifact."""
        if self._journal.is_open():
            kept = self._journal.keep(path, FileRecord.of(path).sha256[:16])
            self._log("log_file", kept=kept, artifact_folder=artifact_folder)

    def log_adapter(self, saved: SavedRecord) -> str | None:
        """Log the adapter as a model without base weights; return its `models:/…` URI.

        Logging the same adapter in the same run again returns the same model. None is returned
        while the adapter waits to be shipped.
        """
        if not self._journal.is_open():
            return None
        self._journal.append(
            "log_adapter",
            durable=True,
            saved=saved.model_dump(mode="json"),
            kept=self._journal.keep(saved.folder, saved.weights.sha256[:16]),
            requirements=requirements(saved),
        )
        return self._ship(_SECONDS_AT_THE_END).model_uri

    def end(self, status: Status) -> None:
        """End the run; the last status wins, and a discarded run stays deleted."""
        self.note_end(status)
        self._ship(_SECONDS_AT_THE_END, insist=True)

    def note_end(self, status: Status) -> None:
        """Write the end to the journal only, for the next shipment."""
        if self._journal.is_open():
            self._journal.append("end", durable=True, status=status, time_ms=now_ms())

    def discard(self) -> None:
        """Delete the run with its artifacts and its journal.

        From an SQLite store it is deleted permanently; on a server it goes to MLflow's trash, which
        `mlflow gc` empties. If the server is down, the deletion is shipped later, unless the run is
        unknown there.
        """
        if not self._journal.is_open():
            return
        if self._journal.position.run_id is None:
            self._journal.drop()
            return
        self._journal.append("discard", durable=True)
        self._ship(_SECONDS_AT_THE_END, insist=True)

    def num_waiting(self) -> int:
        """Return the number of operations that are not shipped to MLflow yet."""
        return self._journal.num_waiting()

    def what_waits(self) -> str:
        """Describe the operations that are not shipped to MLflow yet; empty if there are none."""
        kinds = Counter(OPERATIONS.get(e.name, "unknown") for e in self._journal.waiting())
        if not kinds:
            return ""
        parts = ", ".join(f"{kind} ({number})" for kind, number in kinds.most_common())
        return f"{kinds.total()} operations of the MLflow run: {parts}"

    def _log(self, name: str, /, *, durable: bool = False, **arguments: object) -> None:
        if self._journal.is_open():
            self._journal.append(name, durable=durable, **arguments)
            if durable or self._shipper.is_due():
                self._ship(_SECONDS_PER_OPERATION)

    def _ship(self, seconds: float, *, insist: bool = False) -> Outcome:
        uri = self.run.tracking_uri
        was_out = outages.is_out(uri)
        wait = _SECONDS_FOR_ANOTHER_PROCESS if insist else 0
        outcome = self._shipper.ship(seconds, insist=insist, wait_seconds=wait)
        if outcome.problem and outages.is_out(uri) and not was_out:
            _warn(self.run, outcome.problem)
        for refused in outcome.refused:
            logger().warning("MLflow refused %s", refused)
        return outcome


def _as_text(value: object) -> str:
    if isinstance(value, (dict, list, tuple)):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str(value)
    if len(text) <= _MAX_PARAM_CHARACTERS:
        return text
    end = f"… sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return text[: _MAX_PARAM_CHARACTERS - len(end)] + end
