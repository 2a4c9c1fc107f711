"""Configurations as `init` writes them, for tests."""

from pathlib import Path

from flows.cli.starting_data import starting_data
from flows.cli.starting_point import given_settings, rendered
from tasks.config import TrainAdapterConfig


def starting_configuration(data: Path, base_model: str) -> str:
    """Return the text of a configuration that trains `base_model` on `data`."""
    found = starting_data(str(data))
    return rendered(TrainAdapterConfig, given_settings(found, base_model), found)
