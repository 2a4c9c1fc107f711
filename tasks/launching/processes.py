"""How many processes train an adapter, and on which devices."""

import os

from tasks.config import LaunchSettings, TrainingSettings
from tasks.errors import UserError


def num_processes(launch: LaunchSettings) -> int:
    """Return the number of processes of a training."""
    if launch.num_processes != "auto":
        return launch.num_processes
    return max(1, len(gpus()))


def is_alone(launch: LaunchSettings) -> bool:
    """Return whether the training is in the process of the flow itself."""
    return launch.cluster is None and num_processes(launch) == 1


def num_gpus_here(launch: LaunchSettings) -> int:
    """Return the number of this machine's GPUs that a run uses, if it has any.

    On a cluster it is the one of the steps beside the training, whose GPUs the cluster reserves.
    """
    return 1 if launch.cluster else num_processes(launch)


def check_processes(
    launch: LaunchSettings, training: TrainingSettings, num_rows: int | None = None
) -> None:
    """Refuse more processes than this machine has devices, or than a step has rows.

    Of a cluster it is checked that one answers.

    Args:
        launch: the number of processes, and where they are.
        training: the rows of an optimizer step.
        num_rows: the training rows, once they are known.

    Raises:
        UserError: there are too many, or there is no such cluster.
    """
    if launch.cluster:
        from tasks.launching.ray_group import check_cluster

        check_cluster(launch)
    if launch.num_processes == 1:
        return
    count = num_processes(launch)
    given = f"launch.num_processes is {launch.num_processes}"
    if launch.num_processes == "auto":
        given = f"launch.num_processes is auto, which is {count} on this machine"
    if launch.shards and count == 1:
        raise UserError(
            f"{given}, but launch.strategy is fsdp, which spreads the base over several processes; "
            "set num_processes to 2 or more, or remove strategy"
        )
    most, what = _devices()
    if count > most and not launch.cluster:
        raise UserError(f"{given}, but this machine has {what}; set it to at most {most}")
    rows = training.batch_size * training.gradient_accumulation_steps
    if count > rows:
        raise UserError(
            f"{given}, more than the rows of an optimizer step, {rows} (training.batch_size "
            f"{training.batch_size} x gradient_accumulation_steps "
            f"{training.gradient_accumulation_steps}); set it to at most {rows}, or raise these"
        )
    if num_rows is not None and count > num_rows:
        raise UserError(
            f"{given}, but there are {num_rows} training rows; set it to at most {num_rows}"
        )


def check_room(launch: LaunchSettings) -> None:
    """Refuse more processes than the nodes of the cluster have room for, if it is on one.

    Raises:
        UserError: a training would wait for ever, or there is no such cluster.
    """
    if launch.cluster:
        from tasks.launching.ray_group import check_room as check_room_on_ray

        check_room_on_ray(launch)


def _devices() -> tuple[int, str]:
    """Return the number of devices that processes can train on, and its text."""
    import torch

    if count := len(gpus()):
        return count, f"{count} GPU{'s' if count > 1 else ''}"
    if torch.backends.mps.is_available():
        return 1, "one GPU"
    has_affinity = hasattr(os, "sched_getaffinity")  # not on a Mac
    count = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return count, f"no GPU and {count} CPU core{'s' if count > 1 else ''}"


def gpus() -> list[str]:
    """Return the Nvidia GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]
