"""The settings of learning from preferences: how pairs and judged answers become a loss."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Self

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from tasks.config.section import Section


class LearningObjective(StrEnum):
    """What is learned from the rows."""

    SFT = "sft"
    DPO = "dpo"
    KTO = "kto"
    ORPO = "orpo"
    SIMPO = "simpo"

    @property
    def learns_pairs(self) -> bool:
        """Whether a row is a pair of a chosen and a rejected answer."""
        return self in (LearningObjective.DPO, LearningObjective.ORPO, LearningObjective.SIMPO)

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares the model with what it was before training."""
        return self in (LearningObjective.DPO, LearningObjective.KTO)


class LossType(StrEnum):
    """Losses of a pair, and then of a judged answer, by TRL's names."""

    SIGMOID = "sigmoid"
    HINGE = "hinge"
    IPO = "ipo"
    ROBUST = "robust"
    APO_ZERO = "apo_zero"
    APO_DOWN = "apo_down"
    SFT = "sft"
    KTO = "kto"
    APO_ZERO_UNPAIRED = "apo_zero_unpaired"


_JUDGED = (LossType.KTO, LossType.APO_ZERO_UNPAIRED)
_LOSSES = {
    LearningObjective.DPO: tuple(one for one in LossType if one not in _JUDGED),
    LearningObjective.KTO: _JUDGED,
}
_DEFAULTS: Mapping[LearningObjective, Mapping[str, Any]] = {
    LearningObjective.DPO: {
        "loss_type": [LossType.SIGMOID],
        "loss_weights": None,
        "label_smoothing": 0.0,
    },
    LearningObjective.KTO: {
        "loss_type": [LossType.KTO],
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
    },
    LearningObjective.ORPO: {},
    LearningObjective.SIMPO: {"simpo_gamma": 0.5, "cpo_alpha": 1.0, "label_smoothing": 0.0},
}
"""The settings that each objective has beside beta, by TRL's names, with TRL's defaults."""
_LATER = ("desirable_weight", "undesirable_weight", "simpo_gamma", "cpo_alpha")
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
    """How the loss of a pair, or of a judged answer, is computed."""

    model_config = ConfigDict(title="Preferences")

    beta: float = Field(default=0.1, le=1000)
    """How much the adapter may deviate from the reference, the model before training: less with a
    larger beta. Of the loss `ipo`, the paper's regularization tau; of `orpo`, the weight of the
    odds ratio (the paper's lambda); of `simpo`, the scale of the rewards."""

    loss_type: list[LossType] | None = Field(default=None, min_length=1)
    """Of `dpo`, the losses, whose weighted sum is minimized: `sigmoid` (the default, DPO,
    https://arxiv.org/abs/2305.18290), `hinge` (https://arxiv.org/abs/2305.10425), `ipo`
    (https://arxiv.org/abs/2310.12036), `robust` (https://arxiv.org/abs/2403.00409), `apo_zero` and
    `apo_down` (https://arxiv.org/abs/2408.06266), and beside one of these `sft`, the chosen
    answers' cross entropy. Of `kto`, one of `kto` (the default, https://arxiv.org/abs/2402.01306)
    and `apo_zero_unpaired`."""

    loss_weights: list[float] | None = None
    """Of `dpo`, the weight of each loss, in their order; by default 1."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Of the loss `robust` and of `simpo`: the probability that a pair is the wrong way round."""

    desirable_weight: float | None = Field(default=None, gt=0, le=1e6)
    """Of `kto`, the weight of rows whose label is true; by default 1."""

    undesirable_weight: float | None = Field(default=None, gt=0, le=1e6)
    """Of `kto`, the weight of rows whose label is false; by default 1."""

    simpo_gamma: float | None = Field(default=None, ge=0, le=1e6)
    """Of `simpo`, how much larger the chosen answer's reward should be; by default 0.5."""

    cpo_alpha: float | None = Field(default=None, ge=0, le=1e6)
    """Of `simpo`, the weight of the chosen answers' cross entropy; by default 1, as in TRL. With 0
    it is SimPO as in its paper (https://arxiv.org/abs/2405.14734)."""

    def of(self, objective: LearningObjective) -> Self:
        """Return the settings of an objective, with its defaults in place of what is not given.

        Raises:
            ValueError: a setting, or a loss, is of another objective.
        """
        if objective is LearningObjective.SFT:
            return self
        own = _DEFAULTS[objective]
        for name, field in type(self).model_fields.items():
            if name not in ("beta", *own) and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} was given, but objective is {objective}, whose settings are "
                    f"{', '.join(('beta', *own))}; remove {name}"
                )
        given = {name: getattr(self, name) for name in own}
        update = {name: own[name] for name, value in given.items() if value is None}
        found = self.model_copy(update=update)
        found.check_losses(objective)
        return found

    def check_losses(self, objective: LearningObjective) -> None:
        """Check that the losses are those of an objective, and that each setting has one to affect.

        Raises:
            ValueError: they are not.
        """
        possible, losses = _LOSSES.get(objective, ()), self.loss_type or []
        if other := [one for one in losses if one not in possible]:
            raise ValueError(
                f"loss_type {other[0]} is not a loss of objective {objective}; possible: "
                f"{', '.join(possible)}"
            )
        if objective is LearningObjective.KTO and len(losses) > 1:
            raise ValueError(f"loss_type has {len(losses)} losses, but kto has one; choose one")
        is_dpo = objective is LearningObjective.DPO
        if is_dpo and self.label_smoothing and LossType.ROBUST not in losses:
            raise ValueError(
                "label_smoothing is for the loss robust, which is not in loss_type; remove it, or "
                "set loss_type to robust"
            )

    def written(self, objective: LearningObjective) -> dict[str, Any]:
        """Return the settings that an objective has, as JSON values."""
        own = {"beta", *_DEFAULTS[objective]}
        return self.model_dump(mode="json", include=own)

    @property
    def weights(self) -> tuple[tuple[LossType, float], ...]:
        """The losses of pairs with their weights."""
        losses = self.loss_type or [LossType.SIGMOID]
        weights = self.loss_weights or [1.0] * len(losses)
        return tuple(zip(losses, weights, strict=True))

    @property
    def text(self) -> str:
        """The losses, beta, and what else is set, as text for people."""
        losses = [
            str(kind) if weight == 1 else f"{weight:g} {kind}"
            for kind, weight in (self.weights if self.loss_type else ())
        ]
        others = {name: getattr(self, name) for name in ("beta", *_LATER, "label_smoothing")}
        plain = {"desirable_weight": 1, "undesirable_weight": 1, "label_smoothing": 0}
        told = [
            f"{name} {value:g}"
            for name, value in others.items()
            if value is not None and value != plain.get(name)
        ]
        return ", ".join([*([" + ".join(losses)] if losses else []), *told])

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what other objectives have, so that earlier trainings keep their identity."""
        dumped: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in dumped.items()
            if value is not None or name not in (*_LATER, "loss_type")
        }

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
                f"it is {beta:g}, but must be above 0: with 0 the loss would not depend on which "
                "answer is preferred, and below 0 the rejected one would be learned"
            )
        return beta

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        weights, losses = self.loss_weights, self.loss_type or [LossType.SIGMOID]
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
        return self


def _repeated(losses: Sequence[LossType]) -> LossType | None:
    return next((one for one in losses if losses.count(one) > 1), None)
