"""Ship a journal's operations to MLflow: in order, each at least once, with the effect of once.

The MLflow run is found by its flow run's id, or created. If it is not the run of the last shipment,
as in a new database, the complete journal is shipped again.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.records import RunRecord, variants_in
from tasks.tracking.offline import outages
from tasks.tracking.offline.journal import Entry, Journal, Position
from tasks.tracking.offline.writer import RunWriter
from tasks.tracking.store import ready_client, store_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLOW_RUN_TAG = "prefect.flow_run_id"

_PARAMS, _METRICS, _TABLE = "log_params", "log_metrics", "log_table"
_MAX_ENTRIES_PER_BATCH = 500
_SECONDS_TOGETHER = 3.0


@dataclass
class Outcome:
    """The outcome of a shipment."""

    uri: str | None = None
    """Of the store; None if the journal can't be read."""
    num_shipped: int = 0
    refused: list[str] = field(default_factory=list)
    """Why operations will never be accepted, one line each."""
    problem: str | None = None
    """Why operations are still pending; None if all are shipped, or time ran out."""
    num_waiting: int = 0
    """Number of pending operations; only set by `ship_all`."""
    model_uri: str | None = None
    """Of the last adapter that was logged in the shipment."""


def ship_all(folders: Iterable[Path], seconds: float = math.inf) -> Iterator[tuple[Path, Outcome]]:
    """Ship the journals in these folders and directly below them; yield run folders and outcomes.

    No operation is begun after `seconds`.
    """
    deadline = time.monotonic() + seconds
    for journal in journals(folders):
        if time.monotonic() > deadline:
            return
        if journal.num_waiting():
            outcome = Shipper(journal).ship(deadline - time.monotonic())
            outcome.num_waiting = journal.num_waiting()
            yield journal.folder.parent, outcome


def journals(folders: Iterable[Path]) -> list[Journal]:
    """Return the journals of the run folders among these folders and directly below them.

    The runs of a set's variants are below the set's folder.
    """
    resolved = {folder.expanduser().resolve() for folder in folders}
    patterns = ("*/", f"*/{variants_in(Path()).name}/*/")
    below = {path for folder in resolved for one in patterns for path in folder.glob(one)}
    journals = (Journal(path) for path in sorted(resolved | below))
    return [journal for journal in journals if journal.is_open()]


@lru_cache(maxsize=16)
def shipper_of(run_folder: Path) -> "Shipper":
    """Return this process's shipper of a run, which all steps share with its connection.

    Connecting takes several calls, and MLflow's server with basic auth needs 0.3 s for each.
    """
    return Shipper(Journal(run_folder))


class _Pause:
    """How long a shipper may wait after a shipment."""

    seconds = 0.0


_pause = _Pause()


@contextmanager
def shipping_together() -> Iterator[None]:
    """Let operations wait for a few seconds for others, for a while.

    In short runs one after the other, most of a run's calls of MLflow are saved by it.
    """
    before, _pause.seconds = _pause.seconds, _SECONDS_TOGETHER
    try:
        yield
    finally:
        _pause.seconds = before


class Shipper:
    """Ships one journal, and stays connected until a call fails."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._run: RunRecord | None = None
        self._writer: RunWriter | None = None
        self._left_at: Position | None = None
        self._shipped_at = -math.inf

    def is_due(self) -> bool:
        """Return whether operations are to be shipped now, or may wait for those after them."""
        return time.monotonic() - self._shipped_at >= _pause.seconds

    def ship(
        self, seconds: float = math.inf, *, insist: bool = False, wait_seconds: float = 0
    ) -> Outcome:
        """Ship the pending operations; an outage is reported in the outcome and never raised.

        Args:
            seconds: no operation is begun after this time.
            insist: try even if the store was unreachable a moment ago.
            wait_seconds: how long to wait for another process that ships the same journal.
        """
        from filelock import Timeout

        outcome = Outcome()
        try:
            run = self._journal.run()
            outcome.uri = run.tracking_uri
            if run != self._run:  # the run was resumed with another store
                self._run, self._writer = run, None
            outcome.problem = None if insist else outages.why_to_wait(outcome.uri)
            if not outcome.problem:
                with self._journal.alone(wait_seconds):
                    self._ship(run, time.monotonic() + seconds, outcome)
        except Timeout:
            outcome.problem = "another process is shipping it"
        except Exception as error:  # noqa: BLE001 - nothing is lost, the journal has everything
            outcome.problem = outages.reason(error)
            self._writer = None
        self._shipped_at = time.monotonic()
        return outcome

    def _ship(self, run: RunRecord, deadline: float, outcome: Outcome) -> None:
        if self._left_at != self._journal.position:  # another process has shipped meanwhile
            self._writer = None
        for batch in _batches(self._unshipped(run)):
            with outages.watch(run.tracking_uri):
                self._apply(batch, outcome)
            if batch[-1].name == "discard":
                self._journal.drop()
                return
            if time.monotonic() > deadline:
                return

    def _unshipped(self, run: RunRecord) -> Iterator[Entry]:
        if next(self._journal.waiting(), None) is None:
            return
        if self._writer is None:
            with outages.watch(run.tracking_uri):
                self._writer = self._connect(run)
        # A table that is replaced by a later one, such as that of the numbers, is left out.
        last = {table.arguments["file"]: table.end for table in self._journal.named(_TABLE)}
        for entry in self._journal.waiting():
            if entry.name != _TABLE or entry.end >= last[entry.arguments["file"]]:
                yield entry

    def _connect(self, run: RunRecord) -> RunWriter:
        client, experiment_id = ready_client(run.tracking_uri, run.experiment)
        with store_lock(run.tracking_uri):
            run_id = _find(client, experiment_id, run.flow_run_id)
            if run_id is None:
                run_id = _create(client, experiment_id, run, next(self._journal.entries()))
        if run_id != self._journal.position.run_id:
            self._journal.position = Position(run_id=run_id)
        return RunWriter(client, run_id, self._journal.folder)

    def _apply(self, batch: list[Entry], outcome: Outcome) -> None:
        try:
            self._write(batch, outcome)
        except Exception as error:
            if not outages.is_refusal(error):
                raise
            if len(batch) > 1:  # find the refused one, and apply the others
                for entry in batch:
                    self._apply([entry], outcome)
                return
            self._journal.set_aside(batch[0], outages.reason(error))
            outcome.refused.append(f"{batch[0].name}: {outages.reason(error)}")
        else:
            outcome.num_shipped += len(batch)
        self._move_to(batch[-1].end)

    def _write(self, batch: list[Entry], outcome: Outcome) -> None:
        assert self._writer is not None  # noqa: S101 - connected before the first batch
        if len(batch) == 1:
            uri = self._writer.apply(batch[0].name, batch[0].arguments)
            outcome.model_uri = uri or outcome.model_uri
            return
        params = [entry.arguments["params"] for entry in batch if entry.name == _PARAMS]
        points = [entry.arguments["points"] for entry in batch if entry.name == _METRICS]
        if params:
            self._writer.apply(
                _PARAMS, {"params": dict(chain.from_iterable(map(dict.items, params)))}
            )
        if points:
            self._writer.apply(_METRICS, {"points": list(chain.from_iterable(points))})

    def _move_to(self, end: int) -> None:
        position = self._journal.position.model_copy(update={"shipped_bytes": end})
        self._journal.position = self._left_at = position


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Group consecutive parameters and metrics: for a server, a thousand cost as much as one."""
    batch: list[Entry] = []
    names: set[str] = set()
    """Of the parameters in the batch: a second value of one is an operation of its own."""
    for entry in entries:
        is_groupable = entry.name in {_PARAMS, _METRICS}
        given = set(entry.arguments.get("params", ())) if entry.name == _PARAMS else set()
        is_full = len(batch) == _MAX_ENTRIES_PER_BATCH
        if batch and (not is_groupable or is_full or given & names):
            yield batch
            batch, names = [], set()
        batch.append(entry)
        names |= given
        if not is_groupable:
            yield batch
            batch = []
    if batch:
        yield batch


def _find(client: "MlflowClient", experiment_id: str, flow_run_id: str) -> str | None:
    same_flow_run = f"tags.`{FLOW_RUN_TAG}` = '{flow_run_id}'"
    runs = client.search_runs([experiment_id], filter_string=same_flow_run, max_results=1)
    return runs[0].info.run_id if runs else None


def _create(client: "MlflowClient", experiment_id: str, run: RunRecord, opened: Entry) -> str:
    tags = {**opened.arguments["tags"], FLOW_RUN_TAG: run.flow_run_id}
    made = client.create_run(experiment_id, opened.time_ms, tags, run.run_name)
    return str(made.info.run_id)
