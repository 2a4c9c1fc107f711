"""The configuration of the retraining flow: that of a training, and how its adapter is judged."""

from typing import Any, ClassVar, Self

from pydantic import ConfigDict, model_validator

from tasks.config.base_model import Task
from tasks.config.decision import DecisionSettings
from tasks.config.evaluation import EvaluationSettings
from tasks.config.lora import Bias, LoraInit
from tasks.config.registry import RegistrySettings
from tasks.config.serving import ServingSettings
from tasks.config.train_adapter import TrainAdapterConfig


class RetrainAdapterConfig(TrainAdapterConfig):
    """All settings of `adapterflow retrain`."""

    model_config = ConfigDict(title="Retrain an adapter")

    # The base is identified by its fingerprint, which does not depend on its name.
    _without_effect: ClassVar[dict[str, Any]] = {
        **TrainAdapterConfig._without_effect,  # noqa: SLF001 - its own class's
        "base_model": {"source", "revision", "hub_id"},
        "evaluation": {
            "rows": True,
            "batch_size": True,
            "harness": {"include_path", "batch_size"},
        },
        "decision": {"approval": True, "older": {"rows"}},
        "registry": {"name"},
        "serving": True,
    }

    evaluation: EvaluationSettings
    """The held-out rows and the metrics that decide."""

    decision: DecisionSettings = DecisionSettings()
    """What a challenger must achieve to be promoted."""

    registry: RegistrySettings
    """The registered model in MLflow."""

    serving: ServingSettings = ServingSettings()
    """Where a promoted adapter is served."""

    @property
    def continues(self) -> bool:
        """Whether the training may begin with an adapter instead of a fresh one."""
        return super().continues or self.registry.continue_champion

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if not self.registry.continue_champion:
            return self
        if self.lora.from_ is not None:
            raise ValueError(
                f"registry.continue_champion begins with the champion, and lora.from with "
                f"{self.lora.from_!r}; remove one of them"
            )
        if self.lora.init_lora_weights is LoraInit.PISSA:
            raise ValueError(
                f"lora.init_lora_weights {self.lora.init_lora_weights.value} saves an adapter of "
                "twice the rank, so that a challenger continued from it would not have the rank "
                "that is configured; remove it, or registry.continue_champion"
            )
        return self

    @model_validator(mode="after")
    def _harness_has_its_guards(self) -> Self:
        task, harness = self.base_model.task, self.evaluation.harness
        if harness and task is not Task.CAUSAL_LM:
            raise ValueError(
                f"evaluation.harness is set, but base_model.task is {task.value}; "
                "lm-evaluation-harness scores causal language models: remove it"
            )
        named = next(iter(self.decision.harness_guards), None)
        if named and not harness:
            raise ValueError(
                f"decision.guards names {named!r}, a score of evaluation.harness, which is not "
                "set; set it, or remove the guard"
            )
        return self

    @model_validator(mode="after")
    def _can_be_served(self) -> Self:
        if self.serving.url is None:
            return self
        base, lora = self.base_model, self.lora
        problems = {
            f"base_model.task {base.task.value}": base.task is not Task.CAUSAL_LM,
            "base_model.new_tokens": base.new_tokens,
            f"lora.method {lora.method}": lora.method != "lora",
            "lora.use_dora": lora.use_dora,
            "lora.modules_to_save": lora.modules_to_save,
        }
        if named := [name for name, is_set in problems.items() if is_set]:
            raise ValueError(
                f"serving.url is set, but vLLM can't serve adapters with {' and '.join(named)}; "
                "remove one of the two (`adapterflow export --merged` writes a servable model)"
            )
        return self

    @model_validator(mode="after")
    def _base_stays_as_it_is(self) -> Self:
        bias = self.lora.options.get("bias", self.lora.bias)
        if bias not in (Bias.NONE, None, False):
            raise ValueError(
                f"lora.bias {bias} trains biases of the base, so neither base nor champion could "
                "be scored on it; use bias none, or `adapterflow train`"
            )
        return self
