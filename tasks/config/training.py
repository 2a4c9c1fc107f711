"""Step 4's settings: the optimization and its schedule."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from tasks.config.preferences import LearningObjective, LossType, PreferenceSettings
from tasks.config.section import Section


class Scheduler(StrEnum):
    """How the learning rate changes after the warmup."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class Batching(StrEnum):
    """How the rows of a micro-batch are laid out in memory."""

    AUTO = "auto"
    PADDED = "padded"
    PACKED = "packed"
    SHARED_PREFIX = "shared-prefix"


class Optimizer(StrEnum):
    """Variants of AdamW, by transformers' names, and PEFT's for LoRA."""

    ADAMW_TORCH = "adamw_torch"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    LORA_FA = "lora_fa"


class TrainingSettings(Section):
    """How the adapter is trained."""

    model_config = ConfigDict(title="Training")
    former_names: ClassVar[Mapping[str, str]] = {
        "optimizer": "optim",
        "lr_scheduler": "lr_scheduler_type",
        "keep_best": "load_best_model_at_end",
    }
    former_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"optim": {"adamw": "adamw_torch"}}

    num_train_epochs: float = Field(default=1.0, gt=0, le=1_000_000)
    """Number of epochs; may be a fraction."""

    learning_rate: float = Field(default=2e-4, gt=0, le=100)
    """Peak learning rate of AdamW; adapters need about ten times that of full fine-tuning.
    Preferences need less than answers, about 5e-6 to 5e-5."""

    batch_size: int = Field(default=16, ge=1, le=1_000_000)
    """Rows per batch, of all processes together (with one, transformers'
    `per_device_train_batch_size`); a pair of answers is one row."""

    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1_000_000)
    """Batches per optimizer step."""

    max_steps: int | None = Field(default=None, ge=1, le=10**9)
    """Stop after this many optimizer steps; overrides `num_train_epochs`."""

    objective: LearningObjective = LearningObjective.SFT
    """What is learned: the answers or labels of the rows (`sft`); from pairs of a chosen and a
    rejected answer to prefer the one, with a reference (`dpo`, direct preference optimization) or
    without (`orpo`, https://arxiv.org/abs/2403.07691, and `simpo`,
    https://arxiv.org/abs/2405.14734); or from answers that are each judged, good or bad (`kto`,
    https://arxiv.org/abs/2402.01306)."""

    preferences: PreferenceSettings | None = None
    """How the loss is computed, with any objective but `sft`; by default as TRL does."""

    optim: Optimizer = Optimizer.ADAMW_TORCH
    """`adamw_torch`; bitsandbytes' `paged_adamw_8bit`, which keeps its state in 8 bits, moves it to
    host memory when GPU memory runs out, needs a GPU and has not been benchmarked; or PEFT's
    `lora_fa` (https://arxiv.org/abs/2308.03303), which keeps LoRA's A as initialized and trains B
    alone, with half the state."""

    loraplus_lr_ratio: float | None = Field(
        title="LoRA+ learning rate ratio", default=None, ge=1, le=10_000
    )
    """Train LoRA's B at this many times the learning rate, which then is A's (LoRA+, section 4 of
    https://arxiv.org/abs/2402.12354); the paper suggests 16 with a lower learning rate."""

    neftune_noise_alpha: float | None = Field(
        title="NEFTune noise alpha", default=None, gt=0, le=1000
    )
    """In training, add uniform noise of up to alpha/sqrt(tokens of the row x embedding size) to the
    embeddings of causal language models (NEFTune, section 2 of https://arxiv.org/abs/2310.05914);
    rows then share no prefix."""

    lr_scheduler_type: Scheduler = Scheduler.COSINE
    """How the learning rate changes after the warmup: `linear` or `cosine` decay to zero, or
    `constant`."""

    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero to its peak; a training of one
    step has no warmup."""

    weight_decay: float = Field(default=0.0, ge=0, le=100)
    """AdamW's decoupled weight decay."""

    max_grad_norm: float = Field(default=1.0, gt=0, le=1e9)
    """Gradients are clipped to this Euclidean norm."""

    batching: Batching = Batching.AUTO
    """How rows are laid out: `padded` groups rows of similar length; `packed` puts several rows in
    one sequence, without padding, where each attends to itself only; `shared-prefix` is `packed`
    and computes once what all rows begin with, and what the rows of a conversation begin with.
    `auto` is the last of these that saves time and that the model supports."""

    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1, le=10**9)] = "auto"
    """Maximum tokens of a micro-batch: a batch is split into micro-batches within this limit, whose
    gradients add up to that of the batch. More tokens need more memory; the result is the same.
    `auto` depends on the device."""

    eval_steps: int | None = Field(default=None, ge=1, le=10**9)
    """Number of steps between evaluations, each with a checkpoint; by default one per epoch."""

    early_stopping_patience: int | None = Field(default=None, ge=1, le=10**9)
    """Stop after this many evaluations without a lower evaluation loss; by default never."""

    load_best_model_at_end: bool = True
    """Keep the checkpoint with the lowest evaluation loss instead of the last one."""

    checkpoint_minutes: float = Field(default=5.0, ge=0, le=525_600)
    """Also save a checkpoint when the last one is this many minutes old; an interruption costs at
    most that long."""

    termination_seconds: float = Field(default=25.0, ge=0, le=86_400)
    """On SIGTERM, Ctrl-C or Cancel, the seconds for completing the step and saving a checkpoint; a
    step that takes longer is lost. Prefect's worker kills a run after 30 seconds."""

    save_total_limit: int = Field(default=2, ge=1, le=1_000_000)
    """Maximum number of checkpoints on disk."""

    logging_steps: int = Field(default=1, ge=1, le=10**9)
    """Number of steps between logs of loss, learning rate and gradient norm."""

    @property
    def preference_settings(self) -> PreferenceSettings:
        """The settings of the loss of preferences, with the objective's defaults."""
        return (self.preferences or PreferenceSettings()).of(self.objective)

    def with_defaults(self) -> dict[str, Any]:
        """Return all settings as JSON values, with the objective's defaults in `preferences`.

        Settings and records are compared by these, whether a default was given or not.
        """
        settings = self.model_dump(mode="json")
        if self.preferences:
            settings["preferences"] = self.preference_settings.model_dump(mode="json")
        return settings

    @field_validator("preferences")
    @classmethod
    def _preferences_are_of_the_objective(
        cls, given: PreferenceSettings | None, info: ValidationInfo
    ) -> PreferenceSettings | None:
        # What is given stays as it is: a variant with another objective has other defaults.
        if given and (objective := info.data.get("objective")):
            given.of(objective)
        return given

    @model_validator(mode="after")
    def _preferences_take_effect(self) -> Self:
        if self.objective is LearningObjective.SFT and self.preferences is not None:
            raise ValueError(
                "preferences were given, but objective is sft, which learns from one answer a row; "
                "set another objective, or remove preferences"
            )
        return self

    @model_validator(mode="after")
    def _comparisons_have_no_noise(self) -> Self:
        if self.objective is not LearningObjective.SFT and self.neftune_noise_alpha:
            raise ValueError(
                f"neftune_noise_alpha was given, but objective is {self.objective}: noise would "
                "differ between the answers that are compared; remove it"
            )
        return self

    @model_validator(mode="after")
    def _divergence_needs_other_rows(self) -> Self:
        if self.objective is not LearningObjective.KTO:
            return self
        is_estimated = self.preference_settings.loss_type == [LossType.KTO]
        if is_estimated and self.batch_size * self.gradient_accumulation_steps == 1:
            raise ValueError(
                "batch_size is 1, but the loss kto estimates how far the model has moved from the "
                "reference by mismatching the rows of an optimizer step; raise batch_size or "
                "gradient_accumulation_steps, or set preferences.loss_type to apo_zero_unpaired"
            )
        return self
