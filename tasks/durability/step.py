"""The decorator that makes a function a step: a Prefect task whose record outlives the process.

The record is persisted as JSON. A retry or resume, in this process or another, does not run a
completed step again, unless a file that its record names is missing or changed.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import httpx
from prefect import Task
from prefect.cache_policies import RUN_ID, TASK_SOURCE
from prefect.client.schemas.objects import State, TaskRun

from tasks.durability.inputs import InputsOfStep
from tasks.durability.kept_results import RecordSerializer
from tasks.durability.record_schema import RecordSchema
from tasks.durability.redo import RedoCount
from tasks.durability.run_labels import in_step
from tasks.engine.failures import is_full_disk
from tasks.errors import AdapterflowError, PassingError
from tasks.records import Record, RunRecord
from tasks.runtime.measuring import measured
from tasks.runtime.progress import logger
from tasks.tracking import Tracker

# For lost connections, to the Hub or to Prefect, which take from seconds to a minute or two.
_RETRY_SECONDS = [2.0, 10.0, 30.0, 60.0]
_MAX_ATTEMPTS_UNEXPECTED = 3

P = ParamSpec("P")
R = TypeVar("R")


class Step(Task[P, R]):
    """A Prefect task that reuses its persisted record only while the record's files are intact."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Run the step, or return the record that it persisted in this flow run."""
        record = super().__call__(*args, **kwargs)
        wanted = self.fn.__annotations__.get("return")
        # Prefect knows nothing of the files: without this check a resume would build on lost ones.
        spoiled = record.spoiled_files() if isinstance(record, Record) else []
        if isinstance(wanted, type) and not isinstance(record, wanted):
            logger().warning(
                "the persisted result is no %s: %s runs again", wanted.__name__, self.name
            )
        elif spoiled:
            logger().warning("%s is missing or changed: %s runs again", spoiled[0], self.name)
        else:
            return record
        return self.again(*args, **kwargs)

    def again(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # noqa: ANN401 - as __call__
        """Run the step although this flow run has its record, which is replaced.

        (Prefect 3.8's `with_options` returns a plain task, which does not look at the files.)
        """
        return self.with_options(refresh_cache=True)(*args, **kwargs)


def step(function: Callable[P, R]) -> Step[P, R]:
    """Make a function that takes records and returns one a step."""
    return Step(
        _measured(function),
        persist_result=True,
        result_serializer=RecordSerializer(),
        # With the flow run, a record is only reused by the run that wrote it.
        cache_policy=InputsOfStep() + TASK_SOURCE + RUN_ID + RecordSchema() + RedoCount(),
        retries=len(_RETRY_SECONDS),
        retry_delay_seconds=_RETRY_SECONDS,
        retry_condition_fn=is_worth_a_retry,
        task_run_name=function.__name__,
    )


async def is_worth_a_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Return whether another attempt may succeed.

    A lost connection is retried up to the limit, an unexpected error twice. A user's mistake, a
    failed verification and a full disk would fail in the same way again.
    """
    try:
        await state.aresult()
    except (PassingError, httpx.TransportError):
        return True
    except AdapterflowError:
        return False
    except Exception as error:  # noqa: BLE001 - any other error
        return not is_full_disk(error) and task_run.run_count < _MAX_ATTEMPTS_UNEXPECTED
    return False


def _measured(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a step: MLflow gets its seconds and peak memory, and Prefect its name meanwhile."""
    signature = inspect.signature(function)

    @wraps(function)
    def with_measurement(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments.values()
        run = next((value for value in given if isinstance(value, RunRecord)), None)
        with in_step(function.__name__), measured() as measurement:
            result = function(*args, **kwargs)
        # The validation runs before the MLflow run is opened, and has none.
        if run:
            Tracker(run).log_numbers(measurement.as_numbers(function.__name__))
        return result

    return with_measurement
