"""A Ray cluster of two nodes on this machine, reachable from this machine only."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NODE: dict[str, Any] = {
    "num_cpus": 1,
    "object_store_memory": 100_000_000,
    "include_dashboard": False,
    "node_ip_address": "127.0.0.1",
}
# Read when Ray is imported, also by the processes that tests start.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DISABLE_MEMORY_MONITOR"] = "1"  # it would kill on a busy machine
# At Ray's 15, actors starve on a busy machine. The name is Ray's.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
# Ray's switch for systems with a firewall: this machine's address is 127.0.0.1.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Start a cluster whose nodes have a core each, and stop it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=_NODE)
    try:
        cluster.add_node(**{k: v for k, v in _NODE.items() if k != "include_dashboard"})
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
