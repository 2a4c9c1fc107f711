"""What makes a function a step: a Prefect task whose record outlives the process.

Its record is kept as JSON, so that a retry, in this process or another, does not run a completed
step again; unless a file that the record names is gone or changed, then it does (contract 3).
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import httpx
from prefect import Task
from prefect.cache_policies import DEFAULT
from prefect.client.schemas.objects import State, TaskRun

from tasks.durability.kept_results import RecordSerializer
from tasks.durability.record_schema import RecordSchema
from tasks.durability.redo import Generation
from tasks.engine.failures import is_of_the_disk
from tasks.errors import AdapterflowError, PassingError
from tasks.records import Record, RunRecord
from tasks.runtime.measuring import measured
from tasks.runtime.progress import logger
from tasks.tracking import Tracker

_RETRY_SECONDS = [2.0, 10.0, 30.0, 60.0]
_TRIES_OF_THE_UNEXPECTED = 3

P = ParamSpec("P")
R = TypeVar("R")


class Step(Task[P, R]):
    """A Prefect task that gives its kept record only while the record's files are intact."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Run the step, or give the record that it left in this flow run."""
        record = super().__call__(*args, **kwargs)
        spoiled = record.spoiled_files() if isinstance(record, Record) else []
        if not spoiled:
            return record
        logger().warning("%s is gone or changed: %s runs again", spoiled[0], self.name)
        return self.with_options(refresh_cache=True)(*args, **kwargs)


def step(function: Callable[P, R]) -> Step[P, R]:
    """Make a step of a function that takes records and gives one."""
    return Step(
        _measured(function),
        persist_result=True,
        result_serializer=RecordSerializer(),
        cache_policy=DEFAULT + RecordSchema() + Generation(),
        retries=len(_RETRY_SECONDS),
        retry_delay_seconds=_RETRY_SECONDS,
        retry_condition_fn=is_worth_a_retry,
        task_run_name=function.__name__,
    )


async def is_worth_a_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Tell whether another try may help.

    A lost connection is waited for. An error that nobody expected gets a second and a third try. A
    mistake, a proof that failed, a full disk and the like would only end the same way.
    """
    try:
        await state.aresult()
    except (PassingError, httpx.TransportError):
        return True
    except AdapterflowError:
        return False
    except Exception as error:  # noqa: BLE001 - whatever else it was
        return not is_of_the_disk(error) and task_run.run_count < _TRIES_OF_THE_UNEXPECTED
    return False


def _measured(function: Callable[P, R]) -> Callable[P, R]:
    """Log the step's seconds and peak memory to the run among its arguments."""
    signature = inspect.signature(function)

    @wraps(function)
    def with_measurement(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments.values()
        run = next((value for value in given if isinstance(value, RunRecord)), None)
        with measured() as measurement:
            result = function(*args, **kwargs)
        if run:
            Tracker(run).log_metrics(measurement.as_metrics(function.__name__))
        return result

    return with_measurement
