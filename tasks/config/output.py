"""Step 5's settings: where the adapter goes and what its model card says."""

from pydantic import ConfigDict, Field

from tasks.config.hub_ids import HubId
from tasks.config.section import Section


class OutputSettings(Section):
    """Where the adapter is saved and pushed, and how long files are kept."""

    model_config = ConfigDict(title="Output")

    push_to_hub: HubId | None = None
    """The Hub id (`org/name`) of the repository to push the adapter to; needs a token in
    `HF_TOKEN`."""

    private: bool = True
    """Make the repository private if the push creates it."""

    license: str | None = None
    """The adapter's license for its model card, such as `apache-2.0`; by default the one in the
    base's model card."""

    language: list[str] = Field(default_factory=list)
    """Languages for the model card, as codes such as `en`."""
    folder: str | None = Field(default=None, min_length=1)
    """The folder in which each run gets its own folder, relative to the home folder; by default
    `outputs/` there."""

    keep_runs: int | None = Field(default=None, ge=1, le=10**9)
    """Number of finished runs of the experiment whose folders are kept; by default all. Runs whose
    adapter is a version in MLflow's registry are always kept."""

    keep_checkpoints_days: float = Field(default=30.0, gt=0, le=36_500)
    """Days for which an interrupted run keeps the checkpoints that it is resumed from, and any run
    its tokenized rows. Checkpoints of finished runs are removed at once."""
