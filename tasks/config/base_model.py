"""Step 1's settings: which base model, and how its weights are held in memory."""

from enum import StrEnum
from typing import Self

from pydantic import ConfigDict, Field, model_validator

from tasks.config.hub_ids import HubId, is_hub_id
from tasks.config.section import Section


class Task(StrEnum):
    """What the model is for; it decides the Auto class."""

    CAUSAL_LM = "causal-lm"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - no secret
    SEQ2SEQ = "seq2seq"


class Dtype(StrEnum):
    """The type of the base's weights; adapter weights are always float32 in training."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantization(StrEnum):
    """How bitsandbytes packs the base's weights."""

    NONE = "none"
    NF4 = "4bit"
    INT8 = "8bit"


class BaseModelSettings(Section):
    """The base model and how it is loaded."""

    model_config = ConfigDict(title="Base model")

    source: str = Field(min_length=1)
    """A Hub id (`org/name`), a local folder, a GGUF file, or `package:NAME` for a GGUF file or a
    model's folder that an installed Python package carries."""

    revision: str | None = None
    """Branch, tag or commit of a Hub id; it is resolved to a commit, and that is recorded."""

    hub_id: HubId | None = None
    """The Hub id under which others find a base that is given here as a file or folder; it goes
    into `adapter_config.json`, so that the adapter loads on another machine."""

    task: Task = Task.CAUSAL_LM
    """`causal-lm` continues a text; `seq2seq` reads one and writes another, as T5 and BART do;
    `sequence-classification` puts a text into one of several classes and `token-classification`
    each of its words, with an output layer of its own that trains whole beside the adapter."""

    labels: tuple[str, ...] = ()
    """The classes of texts or words, in the order of the model's outputs; those of the training
    rows, sorted, unless set."""

    dtype: Dtype = Dtype.AUTO
    """Type of the weights; `auto` is bfloat16 where the hardware multiplies it fast (a GPU, or a
    CPU with AMX or AVX512-BF16), else float32."""

    quantization: Quantization = Quantization.NONE
    """`4bit` is NF4 with double quantisation (QLoRA, section 3); `8bit` is LLM.int8()."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    @model_validator(mode="after")
    def _revision_needs_a_hub_id(self) -> Self:
        is_on_hub = is_hub_id(self.source) and not self.source.endswith(".gguf")
        if self.revision and not is_on_hub:
            raise ValueError(
                f"revision {self.revision!r} was given, but {self.source!r} is not a Hub id; "
                "remove revision"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_classes(self) -> Self:
        if not self.labels:
            return self
        if self.task not in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION):
            raise ValueError(f"labels were given, but task is {self.task.value}; remove one")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"labels are {', '.join(self.labels)}; give two or more, each once")
        return self
