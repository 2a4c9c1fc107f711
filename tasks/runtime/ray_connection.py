"""The connection of this process to a Ray cluster."""

import os
import signal
import socket
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from tasks.errors import UserError

_SECONDS_TO_ANSWER = 10.0


def check_address(address: str, setting: str, reason: str) -> None:
    """Check that Ray is installed, and that a cluster answers at the address.

    Args:
        address: `HOST:PORT`, or `auto`.
        setting: the address is given by.
        reason: why Ray is needed, such as `variants.run_on is ray`.

    Raises:
        UserError: it isn't, or none does.
    """
    import_ray(reason)
    if address == "auto":
        return  # Ray finds out at once
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(
            f"{setting} {address!r} is no HOST:PORT; give that of the cluster's head, "
            "such as 10.0.0.5:6379, or auto"
        )
    # Ray itself tries for minutes.
    try:
        with closing(socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER)):
            pass
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({setting}): {error}; start one with "
            "ray start --head, or correct the address"
        ) from None


def import_ray(reason: str) -> Any:  # noqa: ANN401 - it has no types that mypy could follow
    """Return the module.

    Args:
        reason: why Ray is needed.

    Raises:
        UserError: it is not installed.
    """
    # Ray would report its use to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # At Ray 2.60's 20 it tries for 14 minutes where something else answers.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")
    try:
        import ray
    except ImportError:
        raise UserError(
            f"{reason}, but Ray is not installed; install it with: pip install 'adapterflow[ray]'"
        ) from None
    return ray


def join(
    ray: Any,  # noqa: ANN401 - the module
    address: str,
    setting: str,
    environment: Mapping[str, str],
    namespace: str | None = None,
) -> None:
    """Connect this process to the cluster; a stop meanwhile is the flow's, as at any time.

    Args:
        ray: the module.
        address: of the cluster.
        setting: the address is given by.
        environment: variables of the processes that this one starts there.
        namespace: of named actors; one of this process's own unless given.

    Raises:
        UserError: there is no cluster.
    """
    of_prefect = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            namespace=namespace,
            runtime_env={"env_vars": dict(environment)},
        )
    except SystemExit:  # SIGTERM, of which Ray 2.60 makes this
        signal.signal(signal.SIGTERM, of_prefect)
        signal.raise_signal(signal.SIGTERM)
        raise
    except ConnectionError:
        there = f"what answers at {address} is no Ray cluster ({setting})"
        here = f"no Ray cluster runs on this machine ({setting}: auto)"
        raise UserError(
            f"{here if address == 'auto' else there}; start one with ray start, or give the "
            "address of the cluster's head"
        ) from None
    finally:
        # Ray 2.60 replaces it. By Prefect's, the worker of a cancelled set knows that it ends so.
        signal.signal(signal.SIGTERM, of_prefect)


def environment_of(prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of this process that begin with one of the prefixes."""
    return {key: value for key, value in os.environ.items() if key.startswith(prefixes)}


def has_gpus(ray: Any) -> bool:  # noqa: ANN401 - the module
    """Return whether any node of the cluster that this process joined has a GPU."""
    return bool(ray.cluster_resources().get("GPU", 0))


def room(ray: Any, needed: Mapping[str, float]) -> int:  # noqa: ANN401 - the module
    """Return how many processes that need so much the nodes have room for, if they are idle.

    Args:
        ray: the module; this process joined the cluster.
        needed: by Ray's name of a resource.
    """
    nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    return sum(min(int(one.get(name, 0) // n) for name, n in needed.items()) for one in nodes)
