"""The run that records belong to, and where its files are."""

from pathlib import Path

from tasks.records.record import Record


class RunRecord(Record):
    """The MLflow run of a flow run, and the folder that the flow run writes to.

    MLflow finds the run by the flow run's id: the MLflow run's own id is unknown while the server
    is down.
    """

    tracking_uri: str
    experiment: str
    run_name: str
    flow_run_id: str
    folder: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of the training's checkpoints, which exists once there is one."""
        return checkpoints_in(self.folder)


def checkpoints_in(run_folder: Path) -> Path:
    """Return the folder of the checkpoints in a run's folder."""
    return run_folder / "checkpoints"


def tokens_in(run_folder: Path) -> Path:
    """Return the folder of the tokenized rows in a run's folder."""
    return run_folder / "tokens"


def source_in(run_folder: Path) -> Path:
    """Return the folder of the adapter that a run begins with in the run's folder."""
    return run_folder / "source"


def variants_in(set_folder: Path) -> Path:
    """Return the folder of the variants' run folders in the folder of a set."""
    return set_folder / "variants"
