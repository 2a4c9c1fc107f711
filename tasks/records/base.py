"""The base model: which one it is, and how it is loaded."""

from tasks.config import BaseModelSettings
from tasks.records.record import FileRecord, Record


class BaseSource(Record):
    """A base model that was found, with all that identifies it later."""

    settings: BaseModelSettings
    """As the user set them."""
    labels: tuple[str, ...]
    """The classes in the order of the model's outputs; empty where the task has none."""
    location: str
    """A local folder, or a Hub id together with `revision`."""
    revision: str | None
    """The resolved commit of a Hub id."""
    reference: str
    """How another machine finds this base: a Hub id where there is one, else the local path."""
    fingerprint: str
    """`sha256:…` of the weight files, or `commit:…` of a Hub id."""
    files: tuple[FileRecord, ...]
    """The weights and the configuration of a local base; the Hub's cache is huggingface_hub's."""
    dtype: str
    """Of the weights, or of the computation where they are quantized; never `auto`."""


class BaseModelRecord(BaseSource):
    """Step 1: a base model, found and loaded."""

    architecture: str
    num_parameters: int
    num_bytes: int
