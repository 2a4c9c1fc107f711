"""The record's settings: which MLflow store and experiment."""

from pydantic import ConfigDict, Field

from tasks.config.section import Section


class TrackingSettings(Section):
    """Where the run is recorded."""

    model_config = ConfigDict(title="Tracking")

    uri: str | None = Field(title="MLflow URI", default=None, min_length=1)
    """An MLflow tracking URI, without a password; `MLFLOW_TRACKING_URI`, or the embedded store,
    unless set."""

    experiment: str = Field(default="adapterflow", min_length=1)
    """The MLflow experiment."""

    run_name: str | None = Field(default=None, min_length=1)
    """The MLflow run's name; the flow run's name unless set."""

    tags: dict[str, str] = Field(default_factory=dict)
    """Tags for the MLflow run."""
