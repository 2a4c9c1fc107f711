"""Step 6's settings: the sample answers, base beside adapter."""

from pydantic import ConfigDict, Field

from tasks.config.section import Section


class InferenceSettings(Section):
    """How many held-out rows are answered by base and adapter, and how long an answer may get."""

    model_config = ConfigDict(title="Inference")

    sample_rows: int = Field(default=8, ge=0)
    """Held-out rows that base and adapter both answer, greedily, after training; 0 for none."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer in tokens."""

    batch_size: int = Field(default=16, ge=1)
    """Prompts answered at once."""
