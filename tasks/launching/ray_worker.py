"""A process of a group on a Ray cluster: what Ray Train's `TorchTrainer` calls in each worker.

Ray has the processes meet, and nothing else of Ray Train is used in them: gradients are added up,
rows dealt out and checkpoints written as by the processes of one machine.
"""

import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.launching.work import Work, WorkFolder

if TYPE_CHECKING:
    from tasks.engine.training import Group

_SECONDS_FOR_RAY = 10.0
"""In which Ray finds out which process a lost one is."""
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
"""Variables that Ray Train sets, by which accelerate would take the training for one by DDP."""


def train_on_ray(given: Mapping[str, str]) -> list[str]:
    """Train a share of the rows; return why hosts can't train, before anything is loaded there.

    Args:
        given: `folder`, of the work, and `work`, as the parent wrote it there.

    Raises:
        Exception: as `train_share` raises; it is also left in the folder.
    """
    from tasks.engine import workbench
    from tasks.launching.share import train_share

    folder = WorkFolder(Path(given["folder"]))
    group = _group()
    if problems := [one for one in group.gather(missing(folder, given["work"])) if one]:
        return sorted(set(problems))
    _report_places(folder, group)
    work = Work.model_validate_json(given["work"])
    try:
        train_share(folder, work, workbench.take(work.injected), group)
    except BaseException as error:
        folder.log(group.rank).write_text(traceback.format_exc())
        folder.leave_failure(group.rank, error)
        _wait_for_the_cause(error)
        raise
    return []


def missing(folder: WorkFolder, written: str) -> str:
    """Return which file of the run, its data or its base this host does not see; empty if none.

    Args:
        folder: of the work.
        written: what the parent wrote there as the work.
    """
    from tasks.engine.base import find_base

    work = Work.model_validate_json(written)
    base = work.injected.lora.base
    try:
        if folder.work.read_text() != written:
            return _unseen([folder.work], "the home folder")
        if spoiled := work.data.spoiled_files():
            return _unseen(spoiled, "the home folder")
        if spoiled := work.injected.spoiled_files():
            return _unseen(spoiled, "the base and the home folder")
        if not base.files:  # of the Hub, whose cache each host has
            find_base(base.settings, base.labels)
    except FileNotFoundError:
        return _unseen([folder.work], "the home folder")
    except Exception as error:  # noqa: BLE001 - whatever keeps this host from the base
        return f"the host {socket.gethostname()} can't find the base: {error}"
    return ""


def _unseen(files: Sequence[Path], what: str) -> str:
    return (
        f"the host {socket.gethostname()} does not see {files[0]} as this machine does; mount the "
        f"folders of {what} under the same paths on all nodes of the cluster"
    )


def _group() -> "Group":
    from torch import distributed

    from tasks.engine.base import device
    from tasks.engine.training import ProcessGroup

    for name in _OF_TORCHRUN:
        os.environ.pop(name, None)
    on_gpus = distributed.new_group(backend="nccl") if device().type == "cuda" else None
    return ProcessGroup(on_gpus)


def _report_places(folder: WorkFolder, group: "Group") -> None:
    from tasks.launching.reports import Reporter
    from tasks.runtime.ray_connection import import_ray

    address = import_ray("launch.cluster is ray").util.get_node_ip_address()
    places = group.gather(f"process {os.getpid()} on {socket.gethostname()} ({address})")
    if group.rank == 0:
        Reporter(folder.reports).on_places(places)


def _wait_for_the_cause(error: BaseException) -> None:
    """Let Ray find a process that died before it hears of those that only lost it."""
    from tasks.engine.training import LostPeerError

    if isinstance(error, LostPeerError):
        time.sleep(_SECONDS_FOR_RAY)
