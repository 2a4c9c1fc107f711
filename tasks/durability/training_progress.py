"""The progress of a training as an artifact in Prefect, from its first step on.

A thread of its own publishes it: while Prefect can't be reached, a call takes minutes, and training
must neither wait for it nor fail with it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.runtime import flow_run, task_run

from tasks.config import TrainingSettings
from tasks.records import DataRecord
from tasks.runtime.progress import logger
from tasks.runtime.time_left import TimeLeft, time_left_text

KEY = "training-progress"
_SECONDS_BETWEEN_UPDATES = 3.0
_SECONDS_AT_THE_END = 2.0


class Point(NamedTuple):
    """How far a training is."""

    percent: float
    text: str


class ShownTraining:
    """Turns steps into what is published: step, loss, tokens/s, time left."""

    def __init__(self, tokens_per_step: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens_per_step = tokens_per_step
        self._time_left = TimeLeft(clock)
        self._loss = ""
        self.latest = Point(0.0, "the training begins")
        self.changed = threading.Event()

    def at(self, step: int, num_steps: int, loss: float | None = None) -> None:
        """Note that `step` of `num_steps` steps are done; a loss that is not given stays."""
        self._time_left.observe(step, num_steps)
        if loss is not None:
            self._loss = f"loss {loss:.4f}"
        parts = [f"step {step:,} of {num_steps:,}", self._loss]
        if speed := self._time_left.speed:
            parts.append(f"{speed * self._tokens_per_step:,.0f} tokens/s")
        parts.append(time_left_text(self._time_left.seconds))
        text = " · ".join(part for part in parts if part)
        self.latest = Point(100 * step / max(num_steps, 1), text)
        self.changed.set()


def tokens_per_step(data: DataRecord, settings: TrainingSettings) -> float:
    """Return the tokens of an optimizer step, on average."""
    rows = data.train.num_rows
    rows_per_step = min(rows, settings.batch_size * settings.gradient_accumulation_steps)
    return data.train.num_tokens / max(rows, 1) * rows_per_step


@contextmanager
def published_progress(tokens_per_step: float) -> Iterator[ShownTraining]:
    """Publish what the block notes of its training, every few seconds and at its end."""
    shown = ShownTraining(tokens_per_step)
    over = threading.Event()
    flow_run_id, task_run_id = flow_run.get_id(), task_run.get_id()
    if flow_run_id is None:  # the step is called outside of a run
        yield shown
        return
    # With this run's settings, which name the server.
    given = (_publish, shown, over, str(flow_run_id), task_run_id)
    thread = threading.Thread(target=copy_context().run, args=given, daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        over.set()
        shown.changed.set()
        thread.join(_SECONDS_AT_THE_END)


def _publish(
    shown: ShownTraining, over: threading.Event, flow_run_id: str, task_run_id: str | None
) -> None:
    artifact_id: UUID | None = None
    is_last = False
    while not is_last:
        is_last = over.is_set()
        shown.changed.clear()
        try:
            with get_client(sync_client=True) as client:
                artifact_id = _put(client, artifact_id, shown.latest, flow_run_id, task_run_id)
        except Exception as error:  # noqa: BLE001 - it is tried again at the next update
            logger().debug("the training's progress can't be published: %s", error)
        if not is_last:
            over.wait(_SECONDS_BETWEEN_UPDATES)
            shown.changed.wait()


def _put(
    client: SyncPrefectClient,
    artifact_id: UUID | None,
    now: Point,
    flow_run_id: str,
    task_run_id: str | None,
) -> UUID:
    """Create or update the artifact, also that of an earlier attempt; return its id."""
    if artifact_id is None:
        wanted = ArtifactFilter(
            key=ArtifactFilterKey(any_=[KEY]),
            flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run_id)]),
        )
        found = client.read_artifacts(artifact_filter=wanted, limit=1)
        if not found:
            made = ArtifactCreate(
                key=KEY,
                type="progress",
                data=now.percent,
                description=now.text,
                flow_run_id=UUID(flow_run_id),
                task_run_id=UUID(str(task_run_id)) if task_run_id else None,
            )
            return client.create_artifact(made).id
        artifact_id = found[0].id
    client.update_artifact(artifact_id, ArtifactUpdate(data=now.percent, description=now.text))
    return artifact_id
