"""What is made of saved adapters: merged models, GGUF files and combined adapters."""

from pathlib import Path

from tasks.records.record import FileRecord, Record


class QuantizedGap(Record):
    """How far a merged model is from its adapter on the quantized base of the training."""

    quantization: str
    logit_difference: float
    same_next_token: float
    """Share of the probe's positions at which both predict the same next token."""
    score: float | None


class MergedRecord(Record):
    """An adapter merged into its base, verified by loading the result."""

    folder: Path
    base_model: str
    base_fingerprint: str
    adapter_sha256: str
    dtype: str
    num_parameters: int
    largest_logit: float
    logit_difference: float
    """Largest absolute difference from base with adapter, all in float32."""
    tolerance: float
    is_untied: bool
    """Whether the output layer got its own weights where the base ties them to its embeddings."""
    score: float | None
    """Share of the given rows answered correctly, by the merged model as by base with adapter."""
    quantized_gap: QuantizedGap | None
    warnings: tuple[str, ...] = ()


class GgufRecord(Record):
    """An adapter as one GGUF file."""

    file: FileRecord
    base_model: str
    base_fingerprint: str
    adapter_sha256: str
    architecture: str
    """llama.cpp's name of the base's architecture."""
    num_adapter_parameters: int
    warnings: tuple[str, ...] = ()


class CombinedRecord(Record):
    """One adapter made of several, verified by loading it."""

    folder: Path
    base_model: str
    method: str
    weights: dict[str, float]
    """By the sha256 of each adapter's own weights."""
    r: int
    num_adapter_parameters: int
    round_trip_logit_difference: float
    logit_effect: float
    """Largest absolute logit difference from the base."""
    warnings: tuple[str, ...] = ()
