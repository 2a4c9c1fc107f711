"""A deployment's parameters, from a YAML file that is read as the command line reads it.

`deployments/prefect.yaml` names `read_parameters` as a build step, so plain `prefect deploy` checks
the file and refuses it with the same message.
"""

from pathlib import Path
from typing import Any

from tasks.config import PredictBatchConfig, RetrainAdapterConfig, TrainAdapterConfig
from tasks.config.reading import read_settings
from tasks.config.section import Section

CONFIGURATIONS: dict[str, type[Section]] = {
    "train-adapter": TrainAdapterConfig,
    "retrain-adapter": RetrainAdapterConfig,
    "predict-batch": PredictBatchConfig,
}
"""What each flow's parameter `config` is, by the flow's name."""


def read_parameters(flow: str, file: str) -> dict[str, Any]:
    """Give the parameters of a flow, whole, so that its form shows every value that is used.

    Args:
        flow: the flow's name.
        file: the YAML file; relative paths in it stand for files beside it.

    Returns:
        `config`, and in `data_paths` what an event about the data's change may name: the files of
        rows, and all below those that are folders.

    Raises:
        UserError: the file is no valid configuration of the flow.
    """
    config = read_settings(CONFIGURATIONS[flow], Path(file))
    data_paths: list[str] = []
    if isinstance(config, TrainAdapterConfig):
        given = (config.data.train, config.data.eval)
        data_paths = [path for one in given if one for path in (one, f"{one}/*")]
    return {"config": config.model_dump(mode="json"), "data_paths": data_paths}
