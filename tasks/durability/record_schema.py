"""A kept record counts only for the schema that it was written with.

After an upgrade a record may have other fields. It would be read in vain and fail every retry of a
run that the older version began; so its step runs again instead.
"""

import hashlib
import json
import typing
from dataclasses import dataclass
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from tasks.records import Record


@dataclass
class RecordSchema(CachePolicy):
    """Makes the fields of a step's record, and of those within it, part of its key."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],  # noqa: ARG002
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> str | None:
        """Give the schema's sha256; None for a task that gives no record."""
        kind = typing.get_type_hints(task_ctx.task.fn).get("return")
        if not (isinstance(kind, type) and issubclass(kind, Record)):
            return None
        return hashlib.sha256(json.dumps(_fields(kind)).encode()).hexdigest()


def _fields(kind: type[Record]) -> Any:  # noqa: ANN401 - a part of a JSON schema
    return _without_words(kind.model_json_schema())


def _without_words(schema: Any) -> Any:  # noqa: ANN401 - a part of a JSON schema
    """Leave titles and descriptions out: a better docstring is no other record."""
    if isinstance(schema, dict):
        return {
            key: _without_words(value)
            for key, value in schema.items()
            if not (key in {"title", "description"} and isinstance(value, str))
        }
    return [_without_words(one) for one in schema] if isinstance(schema, list) else schema
