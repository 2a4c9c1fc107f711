"""A training by six settings: the short form in Prefect's UI. All others have their defaults."""

import re
from typing import Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tasks.config.adapter_name import AdapterName
from tasks.config.section import Section
from tasks.config.train_adapter import TrainAdapterConfig

_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)
_LIKE_A_SHARE = re.compile(r"[.,]?\d[\d\s.,/]*(%+|percent|per cent)?", re.IGNORECASE)
"""What is meant as a share, though only some of it can be read as one."""


class QuickTraining(Section):
    """The settings of the short form; the deployment `every-setting` has them all."""

    model_config = ConfigDict(title="Quick training")

    base: str = Field(title="Base model", min_length=1)
    """A Hub id (`org/name`), a local folder, a GGUF file, or `package:NAME`, as in
    `base_model.source`."""

    train: str = Field(title="Data", min_length=1)
    """Training rows: a file, a folder, or the id of a Hub dataset, as in `data.train`."""

    held_out: str = Field(title="Held-out data or share", default="0.1", min_length=1)
    """Rows to evaluate on, from the same kinds of sources (`data.eval`), or the share of the
    training rows to hold out for it (`data.eval_fraction`), such as `0.1` or `10 %`."""

    adapter_name: AdapterName = "default"
    """The adapter's name, as in `lora.adapter_name`."""

    epochs: float = Field(default=1.0, gt=0, le=1_000_000)
    """Number of epochs, as in `training.num_train_epochs`; may be a fraction."""

    experiment: str = Field(default="adapterflow", min_length=1)
    """The MLflow experiment, as in `tracking.experiment`."""

    @field_validator("base", "train", "held_out", "adapter_name", "experiment", mode="before")
    @classmethod
    def _without_spaces_around(cls, given: object) -> object:
        """Remove what is copied along with a value into a form."""
        return given.strip() if isinstance(given, str) else given

    def expanded(self) -> TrainAdapterConfig:
        """Return all settings of the training."""
        share = _share(self.held_out)
        held_out = {"eval": self.held_out} if share is None else {"eval_fraction": share}
        given: dict[str, Any] = {
            "base_model": {"source": self.base},
            "data": {"train": self.train, **held_out},
            "lora": {"adapter_name": self.adapter_name},
            "training": {"num_train_epochs": self.epochs},
            "tracking": {"experiment": self.experiment},
        }
        return TrainAdapterConfig.model_validate(given)

    @model_validator(mode="after")
    def _is_a_training(self) -> Self:
        share = _share(self.held_out)
        is_refused = _LIKE_A_SHARE.fullmatch(self.held_out) if share is None else not 0 <= share < 1
        if is_refused:
            raise ValueError(
                f"held_out is {self.held_out}; a share of the training rows is at least 0 and "
                "below 1, such as 0.1 or 10 %"
            )
        self.expanded()
        return self


def _share(held_out: str) -> float | None:
    """Return the share of the rows that a text names; None if it names rows."""
    number = held_out.removesuffix("%").rstrip()
    if not _NUMBER.fullmatch(number):
        return None
    return float(number.replace(",", ".")) / (100 if held_out.endswith("%") else 1)
