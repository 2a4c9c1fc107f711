"""The configuration of the training flow: one section a concern."""

import hashlib
import json
from typing import ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from tasks.config.base_model import BaseModelSettings, Quantization
from tasks.config.data import DataSettings
from tasks.config.inference import InferenceSettings
from tasks.config.lora import LoraInit, LoraSettings
from tasks.config.output import OutputSettings
from tasks.config.section import Section
from tasks.config.tracking import TrackingSettings
from tasks.config.training import TrainingSettings


class TrainAdapterConfig(Section):
    """All that a user may set for one adapter."""

    model_config = ConfigDict(title="Train an adapter")

    # Where things are and how they are told of; rows are known by hashes of their own.
    _without_effect: ClassVar[dict[str, bool | set[str]]] = {
        "data": {"train", "eval"},
        "inference": True,
        "output": True,
        "tracking": True,
    }

    base_model: BaseModelSettings
    """The base model and how it is loaded."""

    data: DataSettings
    """The examples."""

    lora: LoraSettings = Field(title="LoRA", default=LoraSettings())
    """The adapter's shape."""

    training: TrainingSettings = TrainingSettings()
    """The optimisation."""

    inference: InferenceSettings = InferenceSettings()
    """The sample answers after training."""

    output: OutputSettings = OutputSettings()
    """Where the adapter goes."""

    tracking: TrackingSettings = TrackingSettings()
    """Where the run is recorded."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split, the adapter's initial weights, the order of rows and dropout."""

    def sha256(self) -> str:
        """Hash the settings that the result is a function of, wherever it and the rows are kept."""
        settings = self.model_dump(mode="json", exclude={**self._without_effect})
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _packed_weights_cannot_be_altered(self) -> Self:
        packing, init = self.base_model.quantization, self.lora.init_lora_weights
        if packing is not Quantization.NONE and init in (LoraInit.PISSA, LoraInit.OLORA):
            raise ValueError(
                f"lora.init_lora_weights {init.value} rewrites the base's weights, which "
                f"base_model.quantization {packing.value} has quantized; use init_lora_weights "
                "default, or quantization none"
            )
        return self
