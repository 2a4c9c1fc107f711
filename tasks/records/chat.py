"""How conversations are rendered by a chat template, in training and in every later answer."""

from collections.abc import Mapping
from typing import Any

from tasks.config import DataSettings
from tasks.records.record import Record


class ChatOptions(Record):
    """What a chat template is given beside the conversation, as an adapter's manifest has it."""

    chat_template_kwargs: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Variables that the chat template reads, such as `enable_thinking`."""
    system_in_user: bool = False
    """Whether a system message is put at the beginning of the next user message."""

    @classmethod
    def of(cls, settings: DataSettings) -> "ChatOptions":
        """Return the options that the settings of the data name."""
        return cls(
            chat_template_kwargs=settings.chat_template_kwargs,
            system_in_user=settings.system_in_user,
        )

    @classmethod
    def in_manifest(cls, manifest: Mapping[str, Any]) -> "ChatOptions":
        """Return the options that an adapter was trained with; the defaults if it names none."""
        given = manifest.get("chat", {})
        return cls(**{name: given[name] for name in cls.model_fields if name in given})
