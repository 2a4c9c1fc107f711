"""Names of flow runs that say which adapter and which data they are about.

A name is `<adapter>-<data>-<name given by Prefect or a person>`, so it stays as distinct as it was,
and naming a run that is named already changes nothing. Run folders and MLflow runs carry it, too.
"""

import re
from collections.abc import Callable
from pathlib import PurePath

from prefect.runtime import flow_run
from pydantic import ValidationError

from tasks.config import PredictBatchConfig, RetrainAdapterConfig, TrainAdapterConfig
from tasks.durability.run_folder import run_folder

_LONGEST_PART = 32
_LONGEST_NAME = 80
_OF_ANY_DATA = {"train", "training", "data", "rows"}
"""File names that say nothing; their folder's does."""
_FILE_ENDINGS = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gguf"}
"""What follows a point in a model's name is part of it."""


def full_name(config: TrainAdapterConfig | PredictBatchConfig, given: str) -> str:
    """Put adapter and data before a given name, unless it begins with them."""
    match config:
        case PredictBatchConfig():
            adapter, data = "+".join(one.name for one in config.adapters), config.input
        case RetrainAdapterConfig():
            adapter, data = config.registry.name, config.data.train
        case _:
            name = config.lora.adapter_name
            source = config.base_model.hub_id or config.base_model.source
            adapter, data = _last_part(source) if name == "default" else name, config.data.train
    subject = f"{_slug(adapter)}-{_slug(_last_part(data))}-"
    return given if given.startswith(subject) else subject + _slug(given, _LONGEST_NAME)


def namer(kind: type[TrainAdapterConfig | PredictBatchConfig]) -> Callable[[], str]:
    """Give what names the runs of a flow, once they begin, by their parameter `config`."""

    def name() -> str:
        given = str(flow_run.get_name())
        try:
            config = kind.model_validate(flow_run.get_parameters().get("config"))
        except ValidationError:  # the flow says what is wrong with it
            return given
        # A run that an earlier adapterflow began is gone on with in its folder.
        began = isinstance(config, TrainAdapterConfig) and run_folder(
            config, given, str(flow_run.get_id())
        )
        return given if began and began.exists() else full_name(config, given)

    return name


def _last_part(source: str) -> str:
    """Name a file without its folder and ending, a package, or a Hub id without its owner."""
    path = PurePath(source.removeprefix("package:"))
    name = path.name.removesuffix(path.suffix) if path.suffix in _FILE_ENDINGS else path.name
    return path.parent.name if name in _OF_ANY_DATA and path.parent.name else name


def _slug(name: str, longest: int = _LONGEST_PART) -> str:
    """Keep what is safe in a folder's name on every system."""
    return re.sub(r"[^A-Za-z0-9.+_]+", "-", name)[:longest].strip("-.") or "unnamed"
