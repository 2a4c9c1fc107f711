"""A persisted record is used only with the schema that it was written with.

After an upgrade a record may have other fields. An older version's record could not be read, and
would fail every retry of a run that the older version began. Its step runs again instead.
"""

import hashlib
import json
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from tasks.records import Record


@dataclass
class RecordSchema(CachePolicy):
    """Make the fields of a step's record, and of nested records, part of the cache key."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],  # noqa: ARG002
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> str | None:
        """Return the schema's sha256; None for a task that returns no record."""
        kind = typing.get_type_hints(task_ctx.task.fn).get("return")
        if not (isinstance(kind, type) and issubclass(kind, Record)):
            return None
        return _sha256(kind)


@cache  # making a schema takes a tenth of a second, and a process may train hundreds of adapters
def _sha256(kind: type[Record]) -> str:
    return hashlib.sha256(json.dumps(_fields(kind)).encode()).hexdigest()


def _fields(kind: type[Record]) -> Any:  # noqa: ANN401 - a part of a JSON schema
    return _without_text(kind.model_json_schema())


def _without_text(schema: Any) -> Any:  # noqa: ANN401 - a part of a JSON schema
    """Remove titles and descriptions: a changed docstring does not change the record."""
    if isinstance(schema, dict):
        return {
            key: _without_text(value)
            for key, value in schema.items()
            if not (key in {"title", "description"} and isinstance(value, str))
        }
    return [_without_text(one) for one in schema] if isinstance(schema, list) else schema
