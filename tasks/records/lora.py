"""The adapter before training: its resolved configuration, and the adapter in the base."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue

from tasks.config import Bias
from tasks.records.base import BaseModelRecord
from tasks.records.record import FileRecord, Record
from tasks.records.source import SourceRecord


class TargetMatches(Record):
    """How many modules the target names select."""

    per_target: dict[str, int]
    per_layer: dict[str, int]
    """By layer number; `outside` counts modules that are in no numbered layer."""


class AdaptedLayer(Record):
    """The size and scale of the update of one module or parameter."""

    r: int
    lora_alpha: int | float


class PeftConfigRecord(Record):
    """The complete configuration of a PEFT method, with every choice written out.

    The declared fields are those that are read here. All other fields of PEFT's are kept as they
    are, so that the same configuration can be built again.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, JsonValue]

    peft_type: str
    """PEFT's name of the method."""
    task_type: str
    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...] | None

    @property
    def method(self) -> str:
        """The method's name, as in `lora.method`."""
        return self.peft_type.lower()

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values, by PEFT's names."""
        return self.model_dump(mode="json")


class LoraConfigRecord(PeftConfigRecord):
    """The configuration of LoRA."""

    peft_type: Literal["LORA"]
    r: int
    lora_alpha: int | float
    lora_dropout: float
    bias: Bias
    use_rslora: bool
    use_dora: bool
    init_lora_weights: bool | str
    target_parameters: tuple[str, ...] | None = None
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """By patterns, in the order in which PEFT tries them."""
    alpha_pattern: dict[str, int | float] = Field(default_factory=dict)


AnyConfigRecord = Annotated[LoraConfigRecord | PeftConfigRecord, Field(union_mode="left_to_right")]
"""LoRA's, or that of another method."""


class ResolvedLora(Record):
    """The LoRA configuration for a base, with what it selects and how much it trains."""

    adapter_name: str
    peft_config: AnyConfigRecord
    matches: TargetMatches
    num_trainable_parameters: int
    num_total_parameters: int
    warnings: tuple[str, ...]
    adapted: dict[str, AdaptedLayer] = Field(default_factory=dict)
    """Each adapted module and parameter by its dotted name, with its rank and alpha."""
    chosen_by: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What is adapted, by the names or the pattern that chose it."""
    reached: dict[str, dict[str, tuple[str, ...]]] = Field(default_factory=dict)
    """What the patterns reach, by setting and pattern."""
    notes: tuple[str, ...] = ()
    """What is as it should be, and good to know."""
    source: SourceRecord | None = None
    """The adapter to begin with; None for a fresh one."""


class LoraRecord(ResolvedLora):
    """Step 2: the resolved LoRA configuration of an adapter for the loaded base."""

    base: BaseModelRecord
    seed: int
    """Of the adapter's initial weights."""


class InjectedRecord(Record):
    """Step 3: the base with an adapter, verified to begin where it should.

    A fresh adapter leaves the base's outputs unchanged; those of methods other than LoRA may start
    elsewhere (`logit_difference`). One that continues another has the other's outputs.
    """

    lora: LoraRecord
    initial_weights: FileRecord
    base_checksum: str
    """xxh3-128 of all base weights after the adapter's initialization."""
    num_trainable_parameters: int
    num_total_parameters: int
    layers: TargetMatches
    logit_difference: float
    """Largest absolute difference from the base's logits on a probe."""
    starts_at_base: bool = True
    """Whether that difference is no more than rounding."""
    source_logit_difference: float | None = None
    """Largest absolute difference from the logits of the adapter that this one begins with."""
