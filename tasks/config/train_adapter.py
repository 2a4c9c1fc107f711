"""The configuration of the training flow: one section per step, data, output and tracking."""

import hashlib
import json
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from tasks.config.base_model import BaseModelSettings, Quantization, Task
from tasks.config.data import DataSettings, LossOn
from tasks.config.inference import InferenceSettings
from tasks.config.launch import LaunchSettings
from tasks.config.lora import LoraInit, LoraSettings
from tasks.config.output import OutputSettings
from tasks.config.preferences import LearningObjective
from tasks.config.section import Section
from tasks.config.tracking import TrackingSettings
from tasks.config.training import TrainingSettings


class TrainAdapterConfig(Section):
    """All settings of `adapterflow train`."""

    model_config = ConfigDict(title="Train an adapter")

    # Locations and reporting don't change the adapter; what files contain is identified by hashes.
    _without_effect: ClassVar[dict[str, Any]] = {
        "data": {"train", "eval", "where", "chat_template"},
        "training": {"termination_seconds"},
        "launch": True,
        "lora": {"from_"},
        "inference": True,
        "output": True,
        "tracking": True,
    }

    base_model: BaseModelSettings
    """The base model and how it is loaded."""

    data: DataSettings
    """The rows to train and to evaluate on."""

    lora: LoraSettings = Field(title="LoRA", default=LoraSettings())
    """The adapter's rank, scale, targets and variants."""

    training: TrainingSettings = TrainingSettings()
    """How the adapter is trained."""

    launch: LaunchSettings = LaunchSettings()
    """In how many processes it is trained."""

    inference: InferenceSettings = InferenceSettings()
    """The sample answers after training."""

    output: OutputSettings = OutputSettings()
    """Where the adapter is saved and pushed."""

    tracking: TrackingSettings = TrackingSettings()
    """Where in MLflow the run is recorded."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split, the adapter's initial weights, the order of the rows and dropout."""

    def sha256(self) -> str:
        """Return the sha256 of the settings that the trained adapter depends on."""
        settings = self.model_dump(mode="json", exclude={**self._without_effect})
        settings["training"] |= {"preferences": self.training.with_defaults()["preferences"]}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @property
    def continues(self) -> bool:
        """Whether the training may begin with an adapter instead of a fresh one."""
        return self.lora.from_ is not None

    @model_validator(mode="after")
    def _replay_needs_a_beginning(self) -> Self:
        if self.data.replay and not self.continues:
            raise ValueError(
                f"data.replay {self.data.replay:g} is a share of the rows that the adapter of "
                "lora.from learned from, and lora.from is not set (nor, in a retraining, "
                "registry.continue_champion); set it, or remove data.replay"
            )
        return self

    @model_validator(mode="after")
    def _quantized_weights_cannot_be_changed(self) -> Self:
        quantization, init = self.base_model.quantization, self.lora.init_lora_weights
        if quantization is not Quantization.NONE and init is LoraInit.PISSA:
            raise ValueError(
                f"lora.init_lora_weights {init.value} changes the base's weights, which "
                f"base_model.quantization {quantization.value} makes read-only; use "
                "init_lora_weights default, or quantization none"
            )
        return self

    @model_validator(mode="after")
    def _sharded_weights_have_parts(self) -> Self:
        if self.launch.shards and self.base_model.quantization is Quantization.INT8:
            raise ValueError(
                "launch.strategy is fsdp, but base_model.quantization is 8bit, whose weights "
                "bitsandbytes changes when they are first computed with; use quantization 4bit or "
                "none"
            )
        return self

    @model_validator(mode="after")
    def _preferences_are_of_answers(self) -> Self:
        if self.training.objective is LearningObjective.SFT:
            return self
        task, objective = self.base_model.task, self.training.objective.value
        if task is not Task.CAUSAL_LM:
            raise ValueError(
                f"training.objective is {objective}, but base_model.task is {task.value}; "
                "preferences are learned by causal language models only: set task: causal-lm, or "
                "objective: sft"
            )
        if self.data.loss_on is LossOn.ALL:
            raise ValueError(
                f"training.objective is {objective}, which compares answers, but data.loss_on is "
                "all; use completion"
            )
        return self
