"""The configuration of the retraining flow: a training's, and how its adapter is judged."""

import hashlib
import json
from typing import Self

from pydantic import ConfigDict, model_validator

from tasks.config.base_model import Task
from tasks.config.decision import DecisionSettings
from tasks.config.evaluation import EvaluationSettings
from tasks.config.registry import RegistrySettings
from tasks.config.train_adapter import TrainAdapterConfig

# Where things are and how they are told of changes no adapter and no score; the base and the rows
# themselves are known by hashes of their own.
_WITHOUT_EFFECT: dict[str, bool | set[str]] = {
    "base_model": {"source", "revision", "hub_id"},
    "data": {"train", "eval"},
    "evaluation": {"rows", "batch_size"},
    "decision": {"approval"},
    "inference": True,
    "output": True,
    "tracking": True,
    "registry": True,
}


class RetrainAdapterConfig(TrainAdapterConfig):
    """All that a user may set for an adapter that is retrained, compared and promoted."""

    model_config = ConfigDict(title="Retrain an adapter")

    evaluation: EvaluationSettings
    """The rows that decide."""

    decision: DecisionSettings = DecisionSettings()
    """What a challenger must show."""

    registry: RegistrySettings
    """Where versions are kept."""

    @model_validator(mode="after")
    def _answers_are_generated(self) -> Self:
        if self.base_model.task is not Task.CAUSAL_LM:
            raise ValueError(
                f"a retraining compares generated answers, and base_model.task is "
                f"{self.base_model.task.value}; use {Task.CAUSAL_LM.value}, or train-adapter"
            )
        return self

    def sha256(self) -> str:
        """Hash the settings that an adapter and its scores are a function of."""
        settings = self.model_dump(mode="json", exclude={**_WITHOUT_EFFECT})
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
