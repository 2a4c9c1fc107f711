"""The registry's settings: under which name versions are kept."""

from pydantic import ConfigDict, Field

from tasks.config.section import Section


class RegistrySettings(Section):
    """The registered model in MLflow whose versions compete."""

    model_config = ConfigDict(title="Registry")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """The registered model. Its aliases are `champion`, `challenger` and `previous`, the champion
    before; adapters are then had as `models:/name@champion`."""
