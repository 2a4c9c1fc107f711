"""Step 6's settings: the sample answers of base and adapter."""

from pydantic import ConfigDict, Field

from tasks.config.section import Section


class InferenceSettings(Section):
    """The held-out rows that base and adapter answer after training."""

    model_config = ConfigDict(title="Inference")

    sample_rows: int = Field(default=8, ge=0, le=1_000_000)
    """Number of held-out rows that base and adapter answer after training, decoded greedily; 0 to
    skip this."""

    max_new_tokens: int = Field(default=128, ge=1, le=10_000_000)
    """Maximum length of an answer in tokens."""

    batch_size: int = Field(default=16, ge=1, le=1_000_000)
    """Prompts answered per batch; up to four times as many where that takes little memory, unless
    it is 1."""
