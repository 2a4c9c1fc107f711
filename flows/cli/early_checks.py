"""What can be checked of a training in a second or two, before heavy libraries are imported."""

from tasks.config import TrainAdapterConfig
from tasks.durability.run_folder import check_output_folder
from tasks.engine.data.examples import check_first_rows
from tasks.tracking import check_store


def check_before_libraries(config: TrainAdapterConfig) -> None:
    """Check the output folder, MLflow's address and the first rows.

    Raises:
        UserError: one of them can't work.
        UnwritableError: the disk is full.
    """
    check_output_folder(config)
    check_store(config.tracking)
    wanted = config.base_model
    check_first_rows(config.data, wanted.task, wanted.labels)
