"""One process that works on a run of the flow, watched, and killed outright if so wanted."""

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

from tqdm import tqdm  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from tasks.config import TrainAdapterConfig
    from tasks.records import ReportRecord, RetrainedRecord

_SECONDS_A_RUN = 300

Say = Callable[[str, object], None]


@dataclass
class Attempt:
    """What one process did."""

    began: list[str] = field(default_factory=list)
    """Steps whose work began."""
    done: list[str] = field(default_factory=list)
    """Steps that gave their record, kept or new."""
    seconds: dict[str, float] = field(default_factory=dict)
    """From a step's beginning to its record."""
    flow_run_id: str = ""
    result: dict[str, Any] | None = None
    error: str = ""
    imported: list[str] = field(default_factory=list)
    """Modules that the process had to import first."""

    @property
    def unfinished(self) -> str | None:
        """The step that was being worked on at the end."""
        return next((name for name in reversed(self.began) if name not in self.done), None)


def attempt(
    config: "TrainAdapterConfig", flow_run_id: str, target: str | None = None, delay: float = 0
) -> Attempt:
    """Work on a run in a fork, and kill that so many seconds after the target step's work began."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _work(config, flow_run_id, writing)
        os._exit(0)
    os.close(writing)
    this = _watch(child, reading, target, delay)
    os.waitpid(child, 0)
    os.close(reading)
    return this


def _watch(child: int, reading: int, target: str | None, delay: float) -> Attempt:
    this, started, rest = Attempt(), dict[str, float](), b""
    deadline = time.monotonic() + _SECONDS_A_RUN
    while True:
        wait = max(0.0, deadline - time.monotonic())
        if not select.select([reading], [], [], wait)[0]:
            os.kill(child, signal.SIGKILL)
            deadline = time.monotonic() + _SECONDS_A_RUN
            continue
        part = os.read(reading, 65536)
        if not part:  # the child is gone
            return this
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            kind, _, value = line.decode().partition(" ")
            _note(this, kind, value, started)
            if (kind, value) == ("began", target):
                deadline = time.monotonic() + delay


def _note(this: Attempt, kind: str, value: str, started: dict[str, float]) -> None:
    now = time.monotonic()
    match kind:
        case "began":
            this.began.append(value)
            started[value] = now
        case "done":
            this.done.append(value)
            this.seconds[value] = now - started.get(value, now)
        case "run":
            this.flow_run_id = value
        case "result":
            this.result = json.loads(value)
        case "imported":
            this.imported = value.split()
        case _:
            this.error = value


def _work(config: "TrainAdapterConfig", flow_run_id: str, writing: int) -> None:
    def say(kind: str, value: object) -> None:
        os.write(writing, f"{kind} {value}\n".encode())

    known = set(sys.modules)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    # The bars' lock is shared between forks: one that was killed while it held it would stop all.
    tqdm.set_lock(threading.RLock())
    try:
        _let_steps_tell(say)
        from uuid import UUID

        from flows.cli.runs import create_run, execute_any, reopen_run
        from tasks.records import VariantsRecord

        flow_run = reopen_run(UUID(flow_run_id)) if flow_run_id else create_run(config)
        say("run", flow_run.id)
        record = execute_any(flow_run)
        assert not isinstance(record, VariantsRecord)
        say("result", json.dumps(_result(record)))
        say("imported", " ".join(name for name in sys.modules if name not in known))
    except BaseException as error:  # noqa: BLE001 - the parent judges it
        say("error", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


def _let_steps_tell(say: Say) -> None:
    from flows import retrain_adapter, train_adapter
    from tasks.durability.step import Step

    call = Step.__call__

    def tell_of_call(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        record = call(self, *args, **kwargs)
        say("done", self.name)
        return record

    Step.__call__ = tell_of_call  # type: ignore[method-assign]
    for one in {**vars(train_adapter), **vars(retrain_adapter)}.values():
        if isinstance(one, Step):
            one.fn = _telling(one.fn, one.name, say)


def _telling(function: Callable[..., Any], name: str, say: Say) -> Callable[..., Any]:
    @wraps(function)
    def work(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        say("began", name)
        return function(*args, **kwargs)

    return work


def _result(record: "ReportRecord | RetrainedRecord") -> dict[str, Any]:
    """Return what has to be the same however often the run was killed."""
    from tasks.records import ReportRecord

    if isinstance(record, ReportRecord):
        return {"sha256": record.saved.weights.sha256, "record": _recorded(record)}
    from tasks.tracking import Registry

    assert record.report
    assert record.version
    registry = Registry(record.report.run.tracking_uri, record.version.name)
    return {
        "sha256": record.report.saved.weights.sha256,
        "record": _recorded(record.report)
        | {
            "outcome": record.decision.outcome,
            "versions": [
                (one.version, one.aliases, sorted(one.tags)) for one in registry.versions()
            ],
        },
    }


def _recorded(report: "ReportRecord") -> dict[str, Any]:
    """Return what MLflow shows of the run, without what differs from run to run."""
    from mlflow import MlflowClient

    client = MlflowClient(report.run.tracking_uri)
    experiment = client.get_experiment_by_name(report.run.experiment)
    assert experiment
    tag = f"tags.`prefect.flow_run_id` = '{report.run.flow_run_id}'"
    runs = client.search_runs([experiment.experiment_id], tag)
    curve = client.get_metric_history(runs[0].info.run_id, "train/loss")
    return {
        "runs": [run.info.status for run in runs],
        "curve": sorted((point.step, point.value) for point in curve),
        "metrics": sorted(runs[0].data.metrics),
    }
