"""Step 1's settings: which base model, and how its weights are held in memory."""

from enum import StrEnum
from typing import Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tasks.config.hub_ids import HubId, is_hub_id
from tasks.config.section import Section


class Task(StrEnum):
    """What the model is for; determines transformers' Auto class."""

    CAUSAL_LM = "causal-lm"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - no secret
    SEQ2SEQ = "seq2seq"


class Dtype(StrEnum):
    """Data type of the base's weights; adapter weights are always float32 in training."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantization(StrEnum):
    """How bitsandbytes quantizes the base's weights."""

    NONE = "none"
    NF4 = "4bit"
    INT8 = "8bit"


class BaseModelSettings(Section):
    """The base model and how it is loaded."""

    model_config = ConfigDict(title="Base model")

    source: str = Field(min_length=1)
    """A Hub id (`org/name`), a local folder, a GGUF file, or `package:NAME` for a GGUF file or a
    model's folder that an installed Python package contains."""

    quantization: Quantization = Quantization.NONE
    """Quantization of the base by bitsandbytes: `4bit` is NF4 with double quantization (QLoRA,
    https://arxiv.org/abs/2305.14314, section 3), `8bit` is LLM.int8()."""

    dtype: Dtype = Dtype.AUTO
    """Data type of the base's weights; `auto` is bfloat16 where the hardware computes it fast (an
    Nvidia GPU, or a CPU with AMX or AVX512-BF16), otherwise float32."""

    revision: str | None = None
    """Branch, tag or commit of a Hub id; it is resolved to a commit, which is recorded."""

    hub_id: HubId | None = None
    """The Hub id of a base that `source` names as a file or folder. It is written to
    `adapter_config.json`, so that the adapter loads on other machines."""

    task: Task = Task.CAUSAL_LM
    """`causal-lm` continues a text; `seq2seq` reads a text and writes another, as T5 and BART do;
    `sequence-classification` assigns a text to one of several classes, `token-classification` each
    of its words. The two classifiers have a new output layer, which is trained fully beside the
    adapter."""

    labels: tuple[str, ...] = ()
    """The classes, in the order of the model's outputs, for the classification tasks; by default
    those of the training rows, sorted."""

    new_tokens: tuple[str, ...] = Field(default=(), max_length=1000)
    """Tokens to add to the base, such as `[<|part|>]`, for `task: causal-lm` and LoRA: each becomes
    one token, whose embedding starts as the mean of the others and is trained with the adapter."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: needs less memory and more time."""

    @model_validator(mode="after")
    def _revision_needs_a_hub_id(self) -> Self:
        is_on_hub = is_hub_id(self.source) and not self.source.endswith(".gguf")
        if self.revision and not is_on_hub:
            raise ValueError(
                f"revision {self.revision!r} was given, but {self.source!r} is not a Hub id; "
                "remove revision"
            )
        return self

    @field_validator("new_tokens")
    @classmethod
    def _are_tokens(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        for token in tokens:
            if not token:
                raise ValueError("a new token is empty; remove it")
            if len(token.split()) != 1 or token != token.strip():
                raise ValueError(f"the new token {token!r} contains whitespace; write it without")
            if tokens.count(token) > 1:
                raise ValueError(f"the new token {token!r} is given twice; remove one")
        return tokens

    @model_validator(mode="after")
    def _tokens_are_generated(self) -> Self:
        if self.new_tokens and self.task is not Task.CAUSAL_LM:
            raise ValueError(
                f"new_tokens were given, but task is {self.task.value}; they can be added for "
                "causal-lm only"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_classes(self) -> Self:
        if not self.labels:
            return self
        if self.task not in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION):
            raise ValueError(f"labels were given, but task is {self.task.value}; remove one")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"labels are {', '.join(self.labels)}; give two or more distinct ones")
        return self
