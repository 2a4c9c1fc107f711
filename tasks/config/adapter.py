"""Which saved adapter, and under what name."""

from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from tasks.config.adapter_name import AdapterName
from tasks.config.data import Template
from tasks.config.hub_ids import is_hub_id, with_revision
from tasks.config.section import Section
from tasks.runtime.paths import exists


class AdapterSettings(Section):
    """A saved adapter to load."""

    model_config = ConfigDict(title="Adapter")

    source: str = Field(min_length=1)
    """A folder, a Hub id (`org/name`, or `org/name@revision`), or an MLflow URI:
    `models:/name@alias`, `models:/name/version`, `models:/m-…`, `runs:/RUN_ID/name`."""

    name: AdapterName = "default"
    """The name by which rows and requests select it."""

    value: str | None = Field(default=None, min_length=1)
    """What a row has in `adapter_column` to select it; by default its name."""

    revision: str | None = None
    """Branch, tag or commit of a Hub id."""

    template: Template = Template.AUTO
    """How prompts are rendered; `auto` is the template of the training where the adapter records
    it, otherwise `chat` if the tokenizer has a chat template, else `plain`."""

    any_base: bool = False
    """Load the adapter even if it was trained on another base, as long as the shapes fit."""

    @model_validator(mode="before")
    @classmethod
    def _revision_behind_the_id(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        source = given.get("source") if isinstance(given, dict) else None
        if not isinstance(source, str) or given.get("revision") or exists(source):
            return given
        name, revision = with_revision(source)
        return {**given, "source": name, "revision": revision} if revision else given

    @model_validator(mode="after")
    def _revision_needs_a_hub_id(self) -> Self:
        if self.revision and not is_hub_id(self.source):
            raise ValueError(
                f"revision {self.revision!r} was given, but {self.source!r} is not a Hub id; "
                "remove revision"
            )
        return self
