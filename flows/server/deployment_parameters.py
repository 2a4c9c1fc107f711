"""A deployment's parameters, from a YAML file that is read as the command line reads it.

`deployments/prefect.yaml` names `read_parameters` as a build step, so that plain `prefect deploy`
checks the file, too, and refuses it with the same message.
"""

from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from tasks.config import (
    PredictBatchConfig,
    RetrainAdapterConfig,
    TrainAdapterConfig,
    TrainVariantsConfig,
)
from tasks.config.reading import read_settings
from tasks.config.section import Section, settings_in

CONFIGURATIONS: dict[str, type[Section]] = {
    "train-adapter": TrainAdapterConfig,
    "train-variants": TrainVariantsConfig,
    "retrain-adapter": RetrainAdapterConfig,
    "predict-batch": PredictBatchConfig,
}
"""The class of each flow's parameter `config`, by the flow's name."""


def read_parameters(flow: str, file: str) -> dict[str, Any]:
    """Return the parameters of a flow with all defaults, so that its form shows every value used.

    Args:
        flow: the flow's name.
        file: the YAML file; relative paths in it are relative to it.

    Returns:
        `config`; and `data_paths`, the paths that an event about changed data may name: each file
        of rows and, if it is a folder, everything below it.

    Raises:
        UserError: the file is not a valid configuration of the flow.
    """
    config = read_settings(CONFIGURATIONS[flow], Path(file))
    data_paths: list[str] = []
    if isinstance(config, TrainAdapterConfig):
        given = (*(source.path for source in config.data.sources), config.data.eval)
        data_paths = [path for one in given if one for path in (one, f"{one}/*")]
    return {"config": config.model_dump(mode="json"), "data_paths": data_paths}


def default_parameters(flow: str) -> dict[str, Any]:
    """Return the defaults of a flow's settings, so that its form shows every value used.

    What has no default is left out: the form asks for it.

    Args:
        flow: the flow's name.
    """
    return {"config": _defaults(CONFIGURATIONS[flow])}


def _defaults(section: type[Section]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in settings_in(section).items():
        kind = field.annotation
        if not field.is_required():
            found[name] = to_jsonable_python(field.get_default(call_default_factory=True))
        elif isinstance(kind, type) and issubclass(kind, Section):
            found[name] = _defaults(kind)
    return found
