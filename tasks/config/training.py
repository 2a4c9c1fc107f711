"""Step 4's settings: the optimisation and its schedule."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from tasks.config.section import Section


class Scheduler(StrEnum):
    """How the learning rate falls after the warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class Batching(StrEnum):
    """How rows are laid out in a batch."""

    AUTO = "auto"
    PADDED = "padded"
    PACKED = "packed"
    SHARED_PREFIX = "shared-prefix"


class Optimizer(StrEnum):
    """The form of AdamW."""

    ADAMW_TORCH = "adamw_torch"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"


class TrainingSettings(Section):
    """How the adapter is trained."""

    model_config = ConfigDict(title="Training")
    former_names: ClassVar[Mapping[str, str]] = {
        "optimizer": "optim",
        "lr_scheduler": "lr_scheduler_type",
        "keep_best": "load_best_model_at_end",
    }
    former_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"optim": {"adamw": "adamw_torch"}}

    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the training rows."""

    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps, whatever the number of passes."""

    batch_size: int = Field(default=16, ge=1)
    """Rows a forward pass, on each device."""

    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes an optimiser step."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW; adapters want about ten times that of full fine-tuning."""

    optim: Optimizer = Optimizer.ADAMW_TORCH
    """`paged_adamw_8bit` (bitsandbytes) keeps its state in 8 bits, and in the computer's memory
    where the GPU's does not suffice; it needs a GPU, and has not been measured here."""

    lr_scheduler_type: Scheduler = Scheduler.COSINE
    """How the learning rate falls after the warm-up."""

    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero; a training of one step has
    no warm-up."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""

    batching: Batching = Batching.AUTO
    """`padded` rows of similar length; `packed` rows one after another in one sequence, without
    padding, each of which sees itself only; `shared-prefix` packs them and computes what all of
    them begin with once; `auto` is the last of these that pays and that the model allows."""

    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Most tokens that are computed at once: the rows of a batch are cut into parts of at most so
    many, whose gradients add up to the batch's. Memory grows with it, the result stays the same."""

    eval_steps: int | None = Field(default=None, ge=1)
    """Evaluate, and save a checkpoint, every so many steps; once a pass unless set."""

    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop when the evaluation loss has not fallen for so many evaluations."""

    load_best_model_at_end: bool = True
    """End with the checkpoint of the lowest evaluation loss, not with the last one."""

    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """Save a checkpoint, too, once the last one is so old: what an interruption costs at most."""

    save_total_limit: int = Field(default=2, ge=1)
    """How many checkpoints stay on disk."""

    logging_steps: int = Field(default=1, ge=1)
    """Record loss, learning rate and gradient norm every so many steps."""
