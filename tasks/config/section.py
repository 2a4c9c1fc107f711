"""What all sections of a configuration have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


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
