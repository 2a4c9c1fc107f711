"""The adapter after training: its folder, and what it answers on a fresh base."""

from pathlib import Path

from tasks.records.base import BaseModelRecord
from tasks.records.record import FileRecord, Record


class SavedRecord(Record):
    """Step 5: the adapter in its own folder, complete with its manifest."""

    base: BaseModelRecord
    adapter_name: str
    template: str
    """`chat` or `plain`: how prompts were rendered in training, and must be in use."""
    folder: Path
    weights: FileRecord
    config: FileRecord
    manifest: FileRecord
    num_adapter_parameters: int
    adapter_bytes: int
    """Of the adapter's tensors, without the file's header."""
    header_bytes: int
    round_trip_logit_difference: float
    """Largest absolute logit difference between trained and reloaded adapter on the probe."""
    hub_url: str | None
    warnings: tuple[str, ...] = ()


class SampleRecord(Record):
    """One held-out row, answered by the base and by the adapter."""

    prompt: str
    expected: str
    base_answer: str
    adapter_answer: str
    base_matches: bool
    adapter_matches: bool


class LoadedRecord(Record):
    """Step 6: the saved adapter on a fresh base, and what both answered."""

    saved: SavedRecord
    logit_effect: float
    """Largest absolute logit difference between base and adapter on the probe."""
    num_samples: int
    base_exact_match: float | None
    """Share of the samples answered correctly; None without samples."""
    adapter_exact_match: float | None
    samples: tuple[SampleRecord, ...]
