"""Prefect's persisted results: written atomically, and read as our records and nothing else.

Prefect 3.8 opens a result's file and writes into it. A truncated file would be taken for the step's
record, could not be read, and would fail every retry.

A result's file also names the serializer that reads it, and Prefect uses that one: `pickle` runs
code, and so does Prefect's JSON, which calls any function that `__class__` names. Anyone with write
access to the results' folder could run code in the next resume. Therefore the classes that a file
may become are restricted here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.context import FlowRunContext, TaskRunContext
from prefect.filesystems import LocalFileSystem
from prefect.results import get_result_store
from prefect.serializers import JSONSerializer, Serializer
from pydantic import Field

from tasks import records
from tasks.errors import AdapterflowError
from tasks.records import Record
from tasks.runtime.atomic_files import write_atomically
from tasks.runtime.progress import logger

# Persisted results are named by these modules, of this version and of earlier ones.
_MODULES_OF_RECORDS = ("tasks.records", "tasks.comparison_records")

Kind = TypeVar("Kind")


class RecordSerializer(JSONSerializer[Any]):
    """JSON whose objects become records, paths and errors; any other class is refused."""

    type: str = Field(default="adapterflow-record", frozen=True)

    def loads(self, blob: bytes) -> Any:  # noqa: ANN401 - Prefect's signature
        """Read what `dumps` wrote, in this version or an earlier one.

        Raises:
            ValueError: it is not JSON, or names a class that no step returns.
        """
        return json.loads(blob, object_hook=_revived)


def _revived(found: dict[str, Any]) -> Any:  # noqa: ANN401 - a record, or a part of one
    if "__exc_type__" in found:
        return _error(str(found["__exc_type__"]), str(found.get("message")))
    if "__class__" not in found:
        return found
    name = found["__class__"]
    if name in {"pathlib.PosixPath", "pathlib.Path"}:
        return Path(found["data"])
    return _record_class(str(name)).model_validate(found["data"])


def _record_class(name: str) -> type[Record]:
    """Return the record class of a qualified name, also one from before our records moved."""
    for kind in _subclasses(Record):
        if _name(kind) == name:
            return kind
    module, _, class_name = name.rpartition(".")
    if module.startswith(_MODULES_OF_RECORDS):
        found = getattr(records, class_name, None)
        if isinstance(found, type) and issubclass(found, Record):
            return found
    raise ValueError(f"{name} is not a record of adapterflow")


def _error(name: str, message: str) -> AdapterflowError:
    """Return the error that a run failed with; where it is not ours, an error that names it."""
    kind = next((one for one in _subclasses(AdapterflowError) if _name(one) == name), None)
    return kind(message) if kind else AdapterflowError(f"{name}: {message}")


def _subclasses(kind: type[Kind]) -> Iterator[type[Kind]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _subclasses(one)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class AtomicFiles(LocalFileSystem):
    """A folder in which a file that exists is complete."""

    _block_type_name = "Atomic Files"
    _block_type_slug = "atomic-files"

    def write_path(self, path: str, content: bytes, *, _sync: bool = True) -> str:  # type: ignore[override]
        """Write a result's file atomically."""
        file = Path(self.basepath or "").expanduser() / path
        write_atomically(file, content)
        return str(file)


def keep_results_atomically() -> None:
    """Write the results of the current flow run and its steps atomically, if they are local files.

    Must be called in the flow run, before its first step.
    """
    context = FlowRunContext.get()
    assert context is not None  # noqa: S101 - called by the flow
    storage = context.result_store.result_storage
    if type(storage) is LocalFileSystem:
        context.result_store.result_storage = AtomicFiles(basepath=storage.basepath)


_read_as_named = ResultRecord.deserialize
_read_apart_as_named = ResultRecord.deserialize_from_result_and_metadata


def _read_as_declared(
    data: bytes, backup_serializer: Serializer | None = None
) -> "ResultRecord[Any]":
    if not _is_declared_ours(backup_serializer):
        return _read_as_named(data, backup_serializer)
    try:
        fields = json.loads(data)
        if isinstance(fields, dict) and {"metadata", "result"} <= fields.keys():
            return _record(fields["metadata"], fields["result"])
        # Of a flow, Prefect 3.8 persists the bare result, without metadata.
        return _record({}, data.decode())
    except Exception as error:
        logger().warning(
            "a persisted result was not written by adapterflow and is ignored: %s", error
        )
        raise


def _read_apart_as_declared(result: bytes, metadata: bytes) -> "ResultRecord[Any]":
    if not _is_declared_ours(None):
        return _read_apart_as_named(result, metadata)
    return _record(json.loads(metadata), result.decode())


def _record(metadata: dict[str, Any], result: str) -> "ResultRecord[Any]":
    ours = RecordSerializer()
    return ResultRecord(
        metadata=ResultRecordMetadata.model_validate({**metadata, "serializer": ours}),
        result=ours.loads(result.encode()),
    )


def _is_declared_ours(serializer: Serializer | None) -> bool:
    """Return whether the flow or task that reads a result declared our serializer.

    Outside of any run, where results of finished runs are read, nothing is declared and ours is
    taken: the serializer in the state in Prefect's database is not trusted either. A user's own
    flow that calls ours reads its own results as it declares.
    """
    running = TaskRunContext.get() or FlowRunContext.get()
    declared = serializer or get_result_store().serializer
    return running is None or isinstance(declared, RecordSerializer)


# Prefect 3.8 reads every persisted result by one of these two: a step's record, a flow's result and
# a subflow's, which no other hook covers. A result that can't be read this way counts as absent.
ResultRecord.deserialize = _read_as_declared  # type: ignore[method-assign]
ResultRecord.deserialize_from_result_and_metadata = _read_apart_as_declared  # type: ignore[method-assign]
