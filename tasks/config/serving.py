"""The serving settings: the server that a promoted adapter is published to."""

from pydantic import ConfigDict, Field

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
