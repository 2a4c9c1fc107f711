"""What all sections of a configuration have in common."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

log = logging.getLogger(__name__)


def _title(name: str, _: Any) -> str:  # noqa: ANN401 - a field, or a computed one
    return name.replace("_", " ").capitalize()


class Section(BaseModel):
    """A frozen part of the configuration: unknown keys are refused, each field is documented.

    Its JSON schema is the form in Prefect's UI.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        field_title_generator=_title,
    )

    former_names: ClassVar[Mapping[str, str]] = {}
    """Fields by the names that they had in the release before, which are accepted for now."""
    former_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """By field, its values by the names that they had in the release before."""

    @model_validator(mode="before")
    @classmethod
    def _accept_former_names(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        """Read settings by their former names, with a warning that names the new one.

        Raises:
            ValueError: a setting was given by both names.
        """
        if not isinstance(given, dict):
            return given
        renamed = dict(given)
        for former, name in cls.former_names.items():
            if former not in given:
                continue
            if name in given:
                raise ValueError(f"{former} is now {name}, and both were given; remove {former}")
            log.warning("the setting %s is now called %s; rename it, or deploy again", former, name)
            renamed[name] = renamed.pop(former)
        for name, values in cls.former_values.items():
            value = renamed.get(name)
            if isinstance(value, str) and value in values:
                log.warning("%s: %s is now called %s; please rename it", name, value, values[value])
                renamed[name] = values[value]
        return renamed

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Give the schema with a title and a description of one line for each field."""
        schema = handler(core_schema)
        for name, field in handler.resolve_ref_schema(schema).get("properties", {}).items():
            # Of a section or choice pydantic leaves both to its class, whose name is no title.
            field.setdefault("title", cls.model_fields[name].title or _title(name, None))
            described = field.get("description") or cls.model_fields[name].description or ""
            field["description"] = " ".join(described.split())
        return schema
