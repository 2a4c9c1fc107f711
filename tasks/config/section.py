"""What all sections of a configuration have in common."""

import logging
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError

from tasks.config.location import LOCATIONS, check_location
from tasks.runtime.addresses import refuse_password

log = logging.getLogger(__name__)

_OF_MLFLOW = {"uri", "tracking_uri"}
_FOR_MLFLOW = (
    "remove the setting and set MLFLOW_TRACKING_URI to the full address, or, for a server, set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)
_FOR_THE_REST = (
    "remove it; set HF_TOKEN for the Hub, and download a file that needs a token before the run"
)
_OF_A_SERVER = {"url"}
_FOR_A_SERVER = "remove it, and set ADAPTERFLOW_SERVING_TOKEN"


def _title(name: str, _: Any) -> str:  # noqa: ANN401 - a field, or a computed one
    return name.replace("_", " ").capitalize()


def _advice(field: str | None) -> str:
    """Return what to do about a secret in a setting."""
    if field in _OF_MLFLOW:
        return _FOR_MLFLOW
    return _FOR_A_SERVER if field in _OF_A_SERVER else _FOR_THE_REST


def _scalars(value: object) -> Iterator[object]:
    """Yield all scalars in a setting, except those in nested sections, which validate their own."""
    if isinstance(value, Mapping):
        yield from (found for pair in value.items() for one in pair for found in _scalars(one))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (found for one in value for found in _scalars(one))
    else:
        yield value


def _number_type(annotation: object) -> type[int | float] | None:
    """Return the type of the numbers that a setting takes, also in a mapping; None if none."""
    possible = [annotation]
    for one in possible:
        possible += typing.get_args(one)
    return next((one for one in (int, float) if one in possible), None)


class Section(BaseModel):
    """A frozen section of the configuration, which refuses unknown keys.

    No setting may contain a secret, as all of them are recorded with the run. The JSON schema is
    the form in Prefect's UI.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,
        # Longer than any path. What takes a library long to read is refused before.
        str_max_length=10_000,
        field_title_generator=_title,
        # A setting whose name Python reserves has an alias, which is its name everywhere else.
        serialize_by_alias=True,
    )

    former_names: ClassVar[Mapping[str, str]] = {}
    """From names of fields in the previous release, which are still accepted, to the new names."""
    former_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """By field, from names of its values in the previous release to the new names."""

    @model_validator(mode="before")
    @classmethod
    def _accept_former_names(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        """Replace former names by the new ones, with a warning.

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
                new = values[value]
                log.warning("%s: %s is now called %s; rename it, or deploy again", name, value, new)
                renamed[name] = new
        return renamed

    @field_validator("*", mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - any setting
        """Refuse true where a setting is a number: pydantic reads it as 1."""
        number = _number_type(cls.model_fields[info.field_name or ""].annotation)
        given = value.values() if isinstance(value, Mapping) else [value]
        if number and any(isinstance(one, bool) for one in given):
            raise PydanticKnownError("int_type" if number is int else "float_type")
        return value

    @field_validator("*")
    @classmethod
    def _can_be_recorded(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - any setting
        """Refuse secrets, and sources and targets that can't exist."""
        for text in _scalars(value):
            if isinstance(text, str):
                refuse_password(text, _advice(info.field_name))
        if info.field_name in LOCATIONS and isinstance(value, str):
            check_location(value)
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema, with a title and a one-line description for each field."""
        schema = handler(core_schema)
        fields = settings_in(cls)
        for name, field in handler.resolve_ref_schema(schema).get("properties", {}).items():
            # For a nested section or an enum, pydantic 2 takes both from its class instead.
            field.setdefault("title", fields[name].title or _title(name, None))
            described = field.get("description") or fields[name].description or ""
            field["description"] = " ".join(described.split())
        return schema


def settings_in(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a section by the names that users write, in their order.

    The name of `LoraSettings.from_` is `from`, which Python reserves.
    """
    return {field.alias or name: field for name, field in section.model_fields.items()}
