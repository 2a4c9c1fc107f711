"""What makes a function a step: a Prefect task whose record outlives the process.

Its record is kept as JSON, so that a retry, in this process or another, does not run a completed
step again; unless a file that the record names is gone or changed, then it does (contract 3).
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import DEFAULT
from prefect.client.schemas.objects import State, TaskRun

from tasks.errors import UserError, VerificationError
from tasks.measuring import measured
from tasks.progress import logger
from tasks.records import Record, RunRecord
from tasks.redo import Generation
from tasks.tracking import Tracker

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
        result_serializer="json",
        cache_policy=DEFAULT + Generation(),
        retries=3,
        retry_delay_seconds=[2, 10, 30],
        retry_condition_fn=is_worth_a_retry,
        task_run_name=function.__name__,
    )


async def is_worth_a_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Tell whether another try may help: not with a mistake, nor where a proof failed."""
    try:
        await state.aresult()
    except (UserError, VerificationError):
        return False
    except Exception:  # noqa: BLE001 - whatever else it was, another try may help
        return True
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
