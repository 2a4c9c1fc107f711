"""Where a run writes: the folder of all runs, and the run's own folder in it."""

from pathlib import Path

from tasks.config import TrainAdapterConfig
from tasks.runtime import home
from tasks.runtime.paths import check_folder


def output_folder(config: TrainAdapterConfig) -> Path:
    """Return the folder of all run folders."""
    wanted = config.output.folder
    # Relative to the home and not the working directory, which a retry may not share.
    return home.outputs() if wanted is None else home.home() / Path(wanted).expanduser()


def check_output_folder(config: TrainAdapterConfig) -> None:
    """Check that run folders can be created.

    Raises:
        UserError: they can't.
        UnwritableError: the disk is full.
    """
    check_folder(output_folder(config), "output.folder")


def run_folder(config: TrainAdapterConfig, name: str, flow_run_id: str) -> Path:
    """Return the folder that a flow run writes to."""
    return output_folder(config) / f"{name}-{flow_run_id[:8]}"
