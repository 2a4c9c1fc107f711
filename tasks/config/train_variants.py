"""The configuration of many trainings over one base: that of a training, and what differs."""

from typing import ClassVar, Self

from pydantic import ConfigDict, model_validator

from tasks.config.base_model import Task
from tasks.config.mistakes import unknown_setting
from tasks.config.train_adapter import TrainAdapterConfig
from tasks.config.variants import RunOn, Score, VariantsSettings

_OF_ALL = ("output.folder", "output.keep_runs", "tracking.uri", "tracking.experiment")
"""Settings that the variants of a set share: their runs are found together."""
_CLASSIFIED = {
    Score.ACCURACY: (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION),
    Score.MACRO_F1: (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION),
    Score.ENTITY_F1: (Task.TOKEN_CLASSIFICATION,),
}
_OF_THE_LOSS = ("training.objective", "training.preferences")
"""Settings that make the loss another one."""


class TrainVariantsConfig(TrainAdapterConfig):
    """All settings of `adapterflow variants`."""

    model_config = ConfigDict(title="Train variants of an adapter")

    _without_effect: ClassVar[dict[str, bool | set[str]]] = {
        **TrainAdapterConfig._without_effect,  # noqa: SLF001 - its own class's
        "variants": True,
    }

    variants: VariantsSettings
    """How the variants differ, and where they are trained."""

    @property
    def alone(self) -> TrainAdapterConfig:
        """The configuration without the variants, as `adapterflow train` takes it."""
        given = self.model_dump(mode="json", exclude={"variants"})
        return TrainAdapterConfig.model_validate(given)

    @model_validator(mode="after")
    def _settings_exist(self) -> Self:
        for path, where in self.variants.key_paths.items():
            if problem := unknown_setting(TrainAdapterConfig, path):
                raise ValueError(f"{where}: {problem}")
            shared = [one for one in _OF_ALL if f"{path}.".startswith(f"{one}.")]
            if shared or path in {"output", "tracking"}:
                raise ValueError(
                    f"{where}: {path} is the same for all variants; set it beside them"
                )
        return self

    @model_validator(mode="after")
    def _losses_can_be_compared(self) -> Self:
        for path, where in self.variants.key_paths.items():
            if self.variants.metric.is_loss and f"{path}.".startswith(
                tuple(f"{one}." for one in _OF_THE_LOSS)
            ):
                of_pairs = "rewards/accuracies or " * self.training.objective.learns_pairs
                raise ValueError(
                    f"{where}: variants that differ in {path} have different losses, so "
                    f"variants.metric {self.variants.metric} can't compare them; set it to "
                    f"{of_pairs}exact_match"
                )
        return self

    @model_validator(mode="after")
    def _can_be_a_variant(self) -> Self:
        self.check_variant(self)
        return self

    def check_variant(self, own: TrainAdapterConfig) -> None:
        """Check that a variant would be scored by the metric, and trained where the others are.

        Args:
            own: configuration of the variant.

        Raises:
            ValueError: it would not.
        """
        _check_measured(self.variants.metric, own)
        count, place = own.launch.num_processes, self.variants.run_on
        if place is not RunOn.WORK_POOL and own.launch.cluster:
            raise ValueError(
                f"launch.cluster is {own.launch.cluster}, but with variants.run_on {place.value} "
                "each variant is trained in a process of its own; remove launch.cluster, and set "
                "variants.run_on and num_processes, or set run_on: work-pool"
            )
        if place is not RunOn.WORK_POOL and count not in (1, "auto"):
            raise ValueError(
                f"launch.num_processes is {count}, but with variants.run_on {place.value} several "
                "variants are trained at once, each in one process; set variants.num_processes"
            )

    @model_validator(mode="after")
    def _split_needs_one_source(self) -> Self:
        if self.variants.split_by and not isinstance(self.data.train, str):
            raise ValueError(
                "variants.split_by reads its column from one source, but data.train is a list; "
                "write the rows into one file"
            )
        return self


def _check_measured(metric: Score, config: TrainAdapterConfig) -> None:
    task, data = config.base_model.task, config.data
    has_held_out = data.eval or data.eval_split or data.eval_fraction
    if metric is not Score.TRAIN_LOSS and not has_held_out:
        raise ValueError(
            f"variants.metric {metric} is of held-out rows, but none are held out; set "
            "data.eval or data.eval_fraction, or variants.metric: train_loss"
        )
    if metric in _CLASSIFIED and task not in _CLASSIFIED[metric]:
        raise ValueError(
            f"variants.metric {metric} is for {' and '.join(_CLASSIFIED[metric])}, but "
            f"base_model.task is {task}; choose another metric"
        )
    objective = config.training.objective
    if metric is Score.REWARD_ACCURACY and not objective.learns_pairs:
        raise ValueError(
            f"variants.metric {metric} is of pairs, but training.objective is {objective}; choose "
            "another metric"
        )
    if metric is Score.EXACT_MATCH and not config.inference.sample_rows:
        raise ValueError(
            "variants.metric exact_match is of the sample answers, but inference.sample_rows "
            "is 0; raise it, or choose another metric"
        )
