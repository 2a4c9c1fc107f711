"""Storage that several machines see: proven by each before it trains anything.

The process of a set of variants leaves a file in the folder of the variants, and one beside
Prefect's results. A process on another machine that does not find both would train into folders
that nobody reads.
"""

import socket
from pathlib import Path

from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from tasks.config import TrainAdapterConfig
from tasks.durability.run_folder import output_folder
from tasks.errors import UserError
from tasks.runtime.atomic_files import write_atomically

_TAG = "adapterflow-storage-"
UNSEEN = "does not see the storage of this set of variants"
"""Part of each message about it."""


def storage_tag(set_id: str) -> str:
    """Return the tag of flow runs that must find the files of a set."""
    return f"{_TAG}{set_id}"


def leave_proof(folder: Path, set_id: str) -> None:
    """Leave the files that others must find.

    Args:
        folder: of the variants' run folders.
        set_id: the flow run of the set.
    """
    for file in _files(folder, set_id):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, set_id)


def check_own_proof(config: TrainAdapterConfig) -> None:
    """Check the storage if this flow run is of a set whose process left files to find.

    Raises:
        UserError: this machine has other storage.
    """
    for tag in flow_run.get_tags():
        if tag.startswith(_TAG):
            check_proof(output_folder(config), tag.removeprefix(_TAG))


def check_proof(folder: Path, set_id: str) -> None:
    """Check that this process finds the files that `leave_proof` left.

    Raises:
        UserError: it does not; the message names this host.
    """
    for file in _files(folder, set_id):
        if not file.is_file() or file.read_text() != set_id:
            raise UserError(
                f"{socket.gethostname()} {UNSEEN}: {file} is missing there; mount the same folders "
                "on all machines, and set ADAPTERFLOW_HOME and PREFECT_RESULTS_LOCAL_STORAGE_PATH "
                "to the same paths"
            )


def _files(folder: Path, set_id: str) -> list[Path]:
    results = get_current_settings().results
    is_local = results.default_storage_block is None  # a block is the same everywhere
    folders = [folder, Path(results.local_storage_path)] if is_local else [folder]
    return [one / f".storage-{set_id}" for one in folders]
