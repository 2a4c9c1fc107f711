"""The settings of learning from preferences: how a pair of answers becomes a loss."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tasks.config.section import Section


class LossType(StrEnum):
    """Losses of a pair, by TRL's names."""

    SIGMOID = "sigmoid"
    HINGE = "hinge"
    IPO = "ipo"
    ROBUST = "robust"
    APO_ZERO = "apo_zero"
    APO_DOWN = "apo_down"
    SFT = "sft"


_SORTS = (
    "sorts all pairs of a batch, so it would be another loss with another batch_size or number of "
    "processes"
)
_NOT_OFFERED = {
    "aot": _SORTS,
    "aot_pair": _SORTS,
    "aot_unpaired": _SORTS,
    **dict.fromkeys(
        ("bco_pair", "exo_pair", "nca_pair", "sppo_hard", "discopop", "sigmoid_norm"),
        "is a loss of TRL that is not offered here",
    ),
}
"""Losses that TRL 1.16 has beside those of `LossType`."""


class PreferenceSettings(Section):
    """How the loss of a pair is computed."""

    model_config = ConfigDict(title="Preferences")

    beta: float = Field(default=0.1, le=1000)
    """How much the adapter may deviate from the reference, the model before training: less with a
    larger beta. Of the loss `ipo`, the paper's regularization tau."""

    loss_type: list[LossType] = Field(default=[LossType.SIGMOID], min_length=1)
    """The losses, whose weighted sum is minimized: `sigmoid` (DPO, https://arxiv.org/abs/2305.18290),
    `hinge` (https://arxiv.org/abs/2305.10425), `ipo` (https://arxiv.org/abs/2310.12036), `robust`
    (https://arxiv.org/abs/2403.00409), `apo_zero` and `apo_down`
    (https://arxiv.org/abs/2408.06266), and beside one of these `sft`, the chosen answers' cross
    entropy."""

    loss_weights: list[float] | None = None
    """The weight of each loss, in their order; by default 1."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Of the loss `robust`: the probability that a pair is the wrong way round."""

    @property
    def weights(self) -> tuple[tuple[LossType, float], ...]:
        """The losses with their weights."""
        weights = self.loss_weights or [1.0] * len(self.loss_type)
        return tuple(zip(self.loss_type, weights, strict=True))

    @property
    def text(self) -> str:
        """The losses and beta, as text for people."""
        losses = [
            str(kind) if weight == 1 else f"{weight:g} {kind}" for kind, weight in self.weights
        ]
        return f"{' + '.join(losses)}, beta {self.beta:g}"

    @field_validator("loss_type", mode="before")
    @classmethod
    def _accept_one(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        named = [given] if isinstance(given, str) else given
        for one in named if isinstance(named, list) else []:
            if isinstance(one, str) and (reason := _NOT_OFFERED.get(one)):
                raise ValueError(f"{one} {reason}; possible: {', '.join(LossType)}")
        return named

    @field_validator("beta")
    @classmethod
    def _beta_has_an_effect(cls, beta: float) -> float:
        if beta <= 0:
            raise ValueError(
                f"it is {beta:g}, but must be above 0: with 0 the loss of a pair would not depend "
                "on its answers, and below 0 the rejected answer would be learned"
            )
        return beta

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        weights, losses = self.loss_weights, self.loss_type
        if weights is not None and len(weights) != len(losses):
            raise ValueError(
                f"loss_weights has {len(weights)} numbers and loss_type {len(losses)} losses; give "
                "one for each"
            )
        if bad := [one for one in weights or () if one <= 0]:
            raise ValueError(f"loss_weights has {bad[0]:g}; weights must be above 0")
        if doubled := _repeated(losses):
            raise ValueError(f"loss_type has {doubled} twice; give it once, with a weight")
        return self

    @model_validator(mode="after")
    def _losses_compare(self) -> Self:
        if self.loss_type == [LossType.SFT]:
            raise ValueError(
                "loss_type is sft alone, which learns nothing from the rejected answers; add one "
                "that does, or train with objective: sft"
            )
        if self.label_smoothing and LossType.ROBUST not in self.loss_type:
            raise ValueError(
                "label_smoothing is for the loss robust, which is not in loss_type; remove it, or "
                "set loss_type to robust"
            )
        return self


def _repeated(losses: Sequence[LossType]) -> LossType | None:
    return next((one for one in losses if losses.count(one) > 1), None)
