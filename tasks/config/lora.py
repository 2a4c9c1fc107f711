"""Step 2's settings: the shape of the adapter (LoRA, https://arxiv.org/abs/2106.09685)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from tasks.config.adapter_name import AdapterName
from tasks.config.section import Section


class Bias(StrEnum):
    """Which bias terms are trained beside the adapter."""

    NONE = "none"
    ALL = "all"
    LORA_ONLY = "lora_only"


class LoraInit(StrEnum):
    """How the matrices A and B are initialized."""

    DEFAULT = "default"
    GAUSSIAN = "gaussian"
    ORTHOGONAL = "orthogonal"
    PISSA = "pissa"


LayerNumber = Annotated[int, Field(le=100_000)]

DEFAULT_RANK = 16
"""Of LoRA."""
_LEFT_OPEN: tuple[object, ...] = (None, "auto", [], {})
"""Values of settings that leave the choice to what is resolved later."""


class LoraSettings(Section):
    """The adapter's rank, scale, targets and variants."""

    model_config = ConfigDict(title="LoRA")
    former_names: ClassVar[Mapping[str, str]] = {"init": "init_lora_weights"}

    adapter_name: AdapterName = "default"
    """The adapter's name in the model, and the name of its folder."""

    from_: str | None = Field(title="Begin with", alias="from", default=None, min_length=1)
    """An adapter to begin with instead of a fresh one: a folder, a Hub id (`org/name`, or
    `org/name@revision`), or an MLflow URI, as `source` of `predict`. Settings of this section that
    are not set are taken from it; those that are set must be as it has them."""

    method: str = Field(default="lora", pattern=r"^\w{1,40}$")
    """`lora`, or another method of the installed PEFT that replaces layers, such as `ia3`, `loha`,
    `oft` or `randlora`; one that can't be used is refused with those that can. Settings below that
    are LoRA's alone are refused for another method."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a method other than LoRA, by the names of the fields of its PEFT configuration,
    such as `{alpha: 8}` for `loha`; others keep PEFT's defaults."""

    r: int | None = Field(title="Rank (r)", default=None, ge=1, le=16_384)
    """Rank of the update, by default 16 with LoRA and PEFT's default with another method; 8 to 64
    suit most tasks."""

    lora_alpha: float | None = Field(title="Alpha", default=None, gt=0, le=1e6)
    """The update is scaled by alpha/r (alpha/sqrt(r) with rsLoRA); by default alpha is 2r."""

    lora_dropout: float = Field(title="Dropout", default=0.0, ge=0, lt=1)
    """Dropout probability of the adapter's inputs in training."""

    target_modules: str | list[str] = "auto"
    """`auto` (all linear layers; with another method than LoRA, PEFT's default), `all-linear` (with
    the experts of a mixture), `peft-default` (PEFT's default for the architecture), names of linear
    layers or `experts`, or a regular expression for whole dotted names; what matches nothing is an
    error."""

    target_parameters: list[str] = Field(default_factory=list)
    """Names of parameters that are adapted in addition, such as `experts.down_proj` or
    `gate.weight`; not needed for experts and routers, which `target_modules` takes, too."""

    exclude_modules: str | list[str] | None = None
    """What is not adapted of the targets: names, or a regular expression for whole names."""

    layers_to_transform: LayerNumber | list[LayerNumber] | None = None
    """The numbers of the layers that are adapted, from 0; all of them unless set."""

    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=16_384)]] = Field(default_factory=dict)
    """Ranks other than `r`, by names or regular expressions that match the end of a name."""

    alpha_pattern: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default_factory=dict)
    """Alphas other than `lora_alpha`, by names or regular expressions as in `rank_pattern`."""

    modules_to_save: list[str] = Field(default_factory=list)
    """Modules that are trained and saved fully beside the adapter, such as `lm_head`."""

    bias: Bias = Bias.NONE
    """Which bias terms are trained; with anything but `none`, disabling the adapter does not
    restore the base's outputs."""

    use_rslora: bool = Field(title="rsLoRA", default=False)
    """Scale by alpha/sqrt(r) (rsLoRA, https://arxiv.org/abs/2312.03732)."""

    use_dora: bool = Field(title="DoRA", default=False)
    """Train magnitude and direction separately (DoRA, https://arxiv.org/abs/2402.09353)."""

    init_lora_weights: LoraInit = LoraInit.DEFAULT
    """`default`: A Kaiming-uniform, B zero. `gaussian` and `orthogonal` are PEFT's. `pissa`
    (https://arxiv.org/abs/2404.02948) moves the base's principal directions into the adapter, which
    is saved as a plain LoRA of twice the rank. `orthogonal` and `pissa` need a base in float32."""

    @property
    def rank(self) -> int | None:
        """The rank that `r` stands for; None if another method than LoRA has its own default."""
        return self.r or (DEFAULT_RANK if self.method == "lora" else None)

    @property
    def chosen(self) -> frozenset[str]:
        """The settings that are set, and not to what leaves the choice open."""
        return frozenset(n for n in self.model_fields_set if getattr(self, n) not in _LEFT_OPEN)

    @model_serializer(mode="wrap")
    def _only_what_was_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what `from` determines, so that it is still unset where this is read again."""
        written: dict[str, Any] = handler(self)
        if self.from_ is None:
            return written
        unset = type(self).model_fields.keys() - self.model_fields_set
        return {name: value for name, value in written.items() if name not in unset}

    @model_validator(mode="after")
    def _a_start_has_no_initialization(self) -> Self:
        if self.from_ is not None and self.init_lora_weights is not LoraInit.DEFAULT:
            raise ValueError(
                f"init_lora_weights is {self.init_lora_weights.value}, which says how a fresh "
                f"adapter begins, and from is {self.from_!r}; remove one of them"
            )
        return self

    @field_validator("method")
    @classmethod
    def _is_lower_case(cls, method: str) -> str:
        return method.lower()
