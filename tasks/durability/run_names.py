"""Names of flow runs, which include the adapter and the data.

A name is `<adapter>-<data>-<name given by Prefect or a person>`, so it stays as unique as the given
name. Naming a run twice changes nothing. Run folders and MLflow runs have the same name.
"""

import re
from collections.abc import Callable
from pathlib import PurePath

from prefect.runtime import flow_run
from pydantic import ValidationError

from tasks.config import (
    DataSettings,
    PredictBatchConfig,
    QuickTraining,
    RetrainAdapterConfig,
    TrainAdapterConfig,
)
from tasks.durability.run_folder import run_folder

_LONGEST_PART = 32
_LONGEST_NAME = 80
_GENERIC_NAMES = {"train", "training", "data", "rows"}
"""File names that do not identify the data; the folder's name is used instead."""
_FILE_ENDINGS = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gguf"}
"""Only these suffixes are removed, as model names may contain dots."""


def full_name(config: TrainAdapterConfig | PredictBatchConfig, given: str) -> str:
    """Return a given name with adapter and data in front, unless it already begins with them."""
    match config:
        case PredictBatchConfig():
            adapter, data = "+".join(one.name for one in config.adapters), config.input
        case RetrainAdapterConfig():
            adapter, data = config.registry.name, _rows_of(config.data)
        case _:
            name = config.lora.adapter_name
            source = config.base_model.hub_id or config.base_model.source
            adapter = _last_part(source) if name == "default" else name
            data = _rows_of(config.data)
    subject = f"{_slug(adapter)}-{_slug(_last_part(data))}-"
    return given if given.startswith(subject) else subject + _slug(given, _LONGEST_NAME)


def namer(
    kind: type[TrainAdapterConfig | QuickTraining | PredictBatchConfig],
) -> Callable[[], str]:
    """Return a function for Prefect that names a starting flow run by its parameter `config`."""

    def name() -> str:
        given = str(flow_run.get_name())
        try:
            parsed = kind.model_validate(flow_run.get_parameters().get("config"))
        except ValidationError:  # the flow reports it
            return given
        config = parsed.expanded() if isinstance(parsed, QuickTraining) else parsed
        # A run that an earlier version began is resumed in its folder, under its old name.
        began = isinstance(config, TrainAdapterConfig) and run_folder(
            config, given, str(flow_run.get_id())
        )
        return given if began and began.exists() else full_name(config, given)

    return name


def _rows_of(data: DataSettings) -> str:
    """Return what the training rows are called: the source, or the names of several."""
    if isinstance(data.train, str):
        return data.train
    return "+".join(source.short_name for source in data.sources)


def _last_part(source: str) -> str:
    """Return a file's name without folder and suffix, a package's, or a Hub id's without owner."""
    path = PurePath(source.removeprefix("package:"))
    name = path.name.removesuffix(path.suffix) if path.suffix in _FILE_ENDINGS else path.name
    return path.parent.name if name in _GENERIC_NAMES and path.parent.name else name


def _slug(name: str, longest: int = _LONGEST_PART) -> str:
    """Return the name with only characters that are safe in folder names on every system."""
    return re.sub(r"[^A-Za-z0-9.+_]+", "-", name)[:longest].strip("-.") or "unnamed"
