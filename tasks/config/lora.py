"""Step 2's settings: the shape of the adapter (LoRA, https://arxiv.org/abs/2106.09685)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

from pydantic import ConfigDict, Field

from tasks.config.adapter_name import AdapterName
from tasks.config.section import Section


class Bias(StrEnum):
    """Which bias terms train along with the adapter."""

    NONE = "none"
    ALL = "all"
    LORA_ONLY = "lora_only"


class LoraInit(StrEnum):
    """How A and B start."""

    DEFAULT = "default"
    GAUSSIAN = "gaussian"
    ORTHOGONAL = "orthogonal"
    PISSA = "pissa"
    OLORA = "olora"


class LoraSettings(Section):
    """The adapter's rank, scale, targets and variants."""

    model_config = ConfigDict(title="LoRA")
    former_names: ClassVar[Mapping[str, str]] = {"init": "init_lora_weights"}

    adapter_name: AdapterName = "default"
    """The adapter's name in the model and of its folder."""

    r: int = Field(title="Rank (r)", default=16, ge=1)
    """Rank of the update; 8 to 64 suits most tasks."""

    lora_alpha: float | None = Field(title="Alpha", default=None, gt=0)
    """The update is scaled by alpha/r (alpha/sqrt(r) with rsLoRA); 2r unless set."""

    lora_dropout: float = Field(title="Dropout", default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs zeroed in training."""

    target_modules: str | list[str] = "auto"
    """`auto` (what PEFT knows for the architecture, else all linear layers), `all-linear`, or
    names of linear layers; a name that matches nothing is an error."""

    modules_to_save: list[str] = Field(default_factory=list)
    """Modules trained and saved whole beside the adapter, such as `lm_head`."""

    bias: Bias = Bias.NONE
    """Which bias terms train; any but `none` means that disabling the adapter does not give the
    base's outputs back."""

    use_rslora: bool = Field(title="rsLoRA", default=False)
    """Scale by alpha/sqrt(r) (rsLoRA, https://arxiv.org/abs/2312.03732)."""

    use_dora: bool = Field(title="DoRA", default=False)
    """Train magnitude and direction apart (DoRA, https://arxiv.org/abs/2402.09353)."""

    init_lora_weights: LoraInit = LoraInit.DEFAULT
    """`default`: A Kaiming-uniform, B zero. `pissa` and `olora` move the base's main directions
    into the adapter, and are saved as a plain LoRA of twice the rank."""
