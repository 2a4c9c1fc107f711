"""Step 5's settings: where the adapter goes and what is said about it."""

from pydantic import ConfigDict, Field

from tasks.config.hub_ids import HubId
from tasks.config.section import Section


class OutputSettings(Section):
    """Where the saved adapter goes."""

    model_config = ConfigDict(title="Output")

    folder: str | None = Field(default=None, min_length=1)
    """Folder for all run folders, relative to the home; its `outputs/` unless set. Each run has
    its own below."""

    keep_runs: int | None = Field(default=None, ge=1)
    """How many finished runs of the experiment keep their folder here; all unless set. One whose
    adapter is a version in MLflow's registry always does."""

    keep_checkpoints_days: float = Field(default=30.0, gt=0)
    """How many days an interrupted run keeps the checkpoints that it goes on from (a finished one
    needs none), and any run its tokenised rows."""

    push_to_hub: HubId | None = None
    """A Hub id (`org/name`) to push the adapter to; needs a token in `HF_TOKEN`."""

    private: bool = True
    """Whether a repository that the push creates is private."""

    license: str | None = None
    """The adapter's licence for its model card, such as `apache-2.0`; the one that the base's own
    card names, unless set."""

    language: list[str] = Field(default_factory=list)
    """Languages for the model card, such as `en`."""
