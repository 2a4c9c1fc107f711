"""The configuration of the retraining flow: a training's, and how its adapter is judged."""

from typing import ClassVar

from pydantic import ConfigDict

from tasks.config.decision import DecisionSettings
from tasks.config.evaluation import EvaluationSettings
from tasks.config.registry import RegistrySettings
from tasks.config.train_adapter import TrainAdapterConfig


class RetrainAdapterConfig(TrainAdapterConfig):
    """All that a user may set for an adapter that is retrained, compared and promoted."""

    model_config = ConfigDict(title="Retrain an adapter")

    # The base is known by its fingerprint, whatever it was called.
    _without_effect: ClassVar[dict[str, bool | set[str]]] = {
        **TrainAdapterConfig._without_effect,  # noqa: SLF001 - its own class's
        "base_model": {"source", "revision", "hub_id"},
        "evaluation": {"rows", "batch_size"},
        "decision": {"approval"},
        "registry": True,
    }

    evaluation: EvaluationSettings
    """The rows that decide."""

    decision: DecisionSettings = DecisionSettings()
    """What a challenger must show."""

    registry: RegistrySettings
    """Where versions are kept."""
