"""Before step 1: the inputs, validated, and what the validation resolved."""

from tasks.records.base import BaseSource
from tasks.records.data import DataRecord
from tasks.records.lora import ResolvedLora
from tasks.records.record import Record


class InputsRecord(Record):
    """Base, LoRA configuration and data of a run, as validated before step 1."""

    base: BaseSource
    """Its files count: if one is edited, tokens and LoRA configuration are stale, too."""
    lora: ResolvedLora
    data: DataRecord
