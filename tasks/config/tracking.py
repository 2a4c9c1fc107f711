"""The tracking settings: which MLflow store and experiment."""

from pydantic import ConfigDict, Field

from tasks.config.section import Section


class TrackingSettings(Section):
    """Where in MLflow the run is recorded."""

    model_config = ConfigDict(title="Tracking")

    experiment: str = Field(default="adapterflow", min_length=1)
    """The MLflow experiment."""

    run_name: str | None = Field(default=None, min_length=1)
    """The MLflow run's name; by default the flow run's name."""

    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of the MLflow run."""

    uri: str | None = Field(title="MLflow URI", default=None, min_length=1)
    """The MLflow tracking URI, without a password; by default `MLFLOW_TRACKING_URI`, the server of
    `adapterflow up` where it runs, or else the embedded store."""
