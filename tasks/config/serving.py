"""The serving settings: the server that a promoted adapter is published to."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from tasks.config.section import Section


class ServingSettings(Section):
    """The vLLM server that a promoted adapter is published to; by default there is none."""

    model_config = ConfigDict(title="Serving")

    url: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """Address of the server, such as `http://127.0.0.1:8000`. Its token is read from
    `ADAPTERFLOW_SERVING_TOKEN` or `VLLM_API_KEY`."""

    folder: str | None = Field(default=None, min_length=1)
    """Folder in which the server finds the adapters' files, by the same path as here; on another
    machine, on storage that both share. By default `served` in the home folder."""

    @model_validator(mode="after")
    def _is_an_address(self) -> Self:
        if self.url is None:
            return self
        try:
            parts = urlsplit(self.url)
            is_address = bool(parts.hostname) and self.url.isprintable() and parts.port != 0
        except ValueError:  # a port that is no number, or half an IPv6 address
            is_address = False
        if not is_address:
            raise ValueError(f"url is {self.url}; it must be as http://HOST:PORT")
        return self
