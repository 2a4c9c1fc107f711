"""The configuration of the retraining flow: a training's, and how its adapter is judged."""

from typing import ClassVar, Self

from pydantic import ConfigDict, model_validator

from tasks.config.decision import DecisionSettings
from tasks.config.evaluation import EvaluationSettings
from tasks.config.lora import Bias
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

    @model_validator(mode="after")
    def _base_stays_as_it_is(self) -> Self:
        if self.lora.bias is not Bias.NONE:
            raise ValueError(
                f"lora.bias {self.lora.bias.value} trains biases of the base, beside which neither "
                "base nor champion could be scored; use bias none, or `adapterflow train`"
            )
        return self
