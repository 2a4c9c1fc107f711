"""Prefect's kept results: written atomically, and read as records of ours and nothing else.

Prefect 3.8 opens a result's file and writes into it. One that was cut short would be taken for the
step's record, could not be read, and would fail every retry.

A result's file also names the serializer that is to read it, and Prefect obeys: `pickle` there runs
code. So does its JSON, which calls whatever function `__class__` names. Whoever can write to the
folder of the results could run code in the next resume; so what a file may become is decided here.
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

from tasks.errors import AdapterflowError
from tasks.records import Record
from tasks.runtime.atomic_files import write_atomically
from tasks.runtime.progress import logger

Kind = TypeVar("Kind")


class RecordSerializer(JSONSerializer[Any]):
    """JSON whose objects become records, paths and errors; any other class is refused."""

    type: str = Field(default="adapterflow-record", frozen=True)

    def loads(self, blob: bytes) -> Any:  # noqa: ANN401 - Prefect's signature
        """Read what `dumps` wrote.

        Raises:
            ValueError: it is no JSON, or names a class that no step returns.
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
    kind = next((one for one in _subclasses(Record) if _name(one) == name), None)
    if kind is None:
        raise ValueError(f"{name} is no record of adapterflow's")
    return kind.model_validate(found["data"])


def _error(name: str, message: str) -> AdapterflowError:
    """Return the error that a run ended with; one that is not ours by its name."""
    kind = next((one for one in _subclasses(AdapterflowError) if _name(one) == name), None)
    return kind(message) if kind else AdapterflowError(f"{name}: {message}")


def _subclasses(kind: type[Kind]) -> Iterator[type[Kind]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _subclasses(one)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class AtomicFiles(LocalFileSystem):
    """A folder whose files are complete wherever they exist."""

    _block_type_name = "Atomic Files"
    _block_type_slug = "atomic-files"

    def write_path(self, path: str, content: bytes, *, _sync: bool = True) -> str:  # type: ignore[override]
        """Write a result's file, atomically."""
        file = Path(self.basepath or "").expanduser() / path
        write_atomically(file, content)
        return str(file)


def keep_results_atomically() -> None:
    """Write the results of the current flow run and its steps atomically, where they are files."""
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
        return _record({}, data.decode())  # of a flow Prefect keeps the bare result
    except Exception as error:
        logger().warning("a kept result is not what adapterflow writes, and is not read: %s", error)
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
    """Return whether whoever reads a result declared ours.

    Outside of any run, where the results of finished runs are read, nobody could declare another:
    what the state in Prefect's database names is not obeyed, either. A flow of the user's own that
    calls ours keeps its own results as it declares.
    """
    running = TaskRunContext.get() or FlowRunContext.get()
    declared = serializer or get_result_store().serializer
    return running is None or isinstance(declared, RecordSerializer)


# All of Prefect's ways to a kept result lead through these two: a step's record, a flow's result
# and a subflow's, which no other hook reaches. A result that can't be read so counts as absent.
ResultRecord.deserialize = _read_as_declared  # type: ignore[method-assign]
ResultRecord.deserialize_from_result_and_metadata = _read_apart_as_declared  # type: ignore[method-assign]
