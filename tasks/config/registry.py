"""The registry's settings: the registered model whose versions compete."""

from pydantic import ConfigDict, Field

from tasks.config.section import Section


class RegistrySettings(Section):
    """The registered model in MLflow, whose versions compete."""

    model_config = ConfigDict(title="Registry")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the registered model in MLflow. Its aliases are `champion`, `challenger` and
    `previous` (the former champion), so that the best adapter is `models:/NAME@champion`."""

    continue_champion: bool = False
    """Begin with the champion, where there is one, instead of a fresh adapter: the rows are learned
    in addition to what it has learned."""
