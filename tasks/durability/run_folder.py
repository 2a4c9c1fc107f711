"""Where a run writes: the folder of all runs, and the run's own below it."""

import os
from pathlib import Path

from tasks.config import TrainAdapterConfig
from tasks.errors import UserError
from tasks.runtime import home


def output_folder(config: TrainAdapterConfig) -> Path:
    """Give the folder that run folders go into."""
    wanted = config.output.folder
    # Against the home and not the working directory, which a retry may not share.
    return home.outputs() if wanted is None else home.home() / Path(wanted).expanduser()


def check_output_folder(config: TrainAdapterConfig) -> None:
    """Check that run folders can be made.

    Raises:
        UserError: they cannot.
    """
    folder = output_folder(config)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"output.folder {folder} can't be written: {existing} is not writable")


def run_folder(config: TrainAdapterConfig, name: str, flow_run_id: str) -> Path:
    """Give the folder that a flow run writes to."""
    return output_folder(config) / f"{name}-{flow_run_id[:8]}"
