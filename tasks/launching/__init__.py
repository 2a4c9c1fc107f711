"""One training in several processes: of this machine, or on the nodes of a Ray cluster.

The process of step 4 starts them with its input record, by torch's elastic launcher or by Ray
Train, relays what the first of them reports, and gets the trained adapter's record. It holds no
model meanwhile, and is the only one that signals, Prefect and MLflow reach.
"""

from tasks.launching.launcher import GroupResult, train_in_processes
from tasks.launching.processes import (
    check_processes,
    check_room,
    gpus,
    is_alone,
    num_gpus_here,
    num_processes,
)

__all__ = [
    "GroupResult",
    "check_processes",
    "check_room",
    "gpus",
    "is_alone",
    "num_gpus_here",
    "num_processes",
    "train_in_processes",
]
