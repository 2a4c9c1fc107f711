"""The processes of a training on a Ray cluster, watched by the process of the flow."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tasks.config import LaunchSettings
from tasks.errors import StoppedError, UserError
from tasks.launching.reports import Reports
from tasks.launching.work import Failure, Work, WorkFolder, causes
from tasks.runtime.atomic_files import write_atomically
from tasks.runtime.progress import logger
from tasks.runtime.ray_connection import (
    check_address,
    environment_of,
    has_gpus,
    import_ray,
    join,
    room,
)

_ADDRESS, _REASON = "launch.address", "launch.cluster is ray"
_OF_OURS = ("ADAPTERFLOW_HOME", "HF_", "GLOO_", "NCCL_", "DO_NOT_TRACK", "PYTHONPATH")
"""Variables of this process that those of the cluster have, too."""
_FOR_RAY = {
    "TQDM_DISABLE": "1",
    # Each process sees its own GPU alone, as on one machine.
    "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
_NAMESPACE = "adapterflow"
_SECONDS_BETWEEN_LOOKS = 0.2
"""A signal to this process is noticed so often: Ray's own wait does not notice it."""
_SECONDS_BETWEEN_LOOKS_FOR_ROOM = 2.0
_SECONDS_FOR_THE_LAST = 30.0
"""For what a killed run has left on the cluster to end."""


def check_cluster(launch: LaunchSettings) -> None:
    """Check that Ray is installed, and that a cluster answers.

    Raises:
        UserError: it isn't, or none does.
    """
    check_address(launch.address, _ADDRESS, _REASON)


def check_room(launch: LaunchSettings) -> None:
    """Check that the cluster has nodes for all processes, or may be given them.

    Raises:
        UserError: it has not, however long a training would wait.
    """
    with _joined(launch) as ray:
        needed = _resources(ray, launch)
        most = room(ray, needed)
        if most >= launch.num_processes or _grows():  # type: ignore[operator]
            return
    each = " and ".join(f"{int(number)} {name}" for name, number in needed.items())
    raise UserError(
        f"launch.num_processes is {launch.num_processes}, but the nodes of the Ray cluster have "
        f"room for {most} processes of {each} each (launch.cpus_each {launch.cpus_each}); lower "
        "one of them, or add nodes"
    )


def _grows() -> bool:
    """Return whether an autoscaler may add nodes; Ray Train compares its limits with the need."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config() is not None


def _resources(ray: Any, launch: LaunchSettings) -> dict[str, float]:  # noqa: ANN401
    gpu = {"GPU": 1.0} if has_gpus(ray) else {}
    return {"CPU": float(launch.cpus_each), **gpu}


@contextmanager
def _joined(launch: LaunchSettings) -> Iterator[Any]:
    check_cluster(launch)
    ray = import_ray(_REASON)
    environment = {**environment_of(_OF_OURS), **_FOR_RAY}
    try:
        join(ray, launch.address, _ADDRESS, environment, _NAMESPACE)
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def ray_group(launch: LaunchSettings) -> Iterator["RayGroup"]:
    """Join the cluster for a while; all that this process started there ends with it.

    Raises:
        UserError: there is no cluster.
    """
    with _joined(launch) as ray:
        yield RayGroup(ray, _resources(ray, launch))


class RayGroup:
    """Runs processes of a training on the nodes of a cluster.

    Args:
        ray: the module; this process joined the cluster.
        resources: of each process.
    """

    def __init__(self, ray: Any, resources: Mapping[str, float]) -> None:  # noqa: ANN401
        self._ray, self._resources = ray, resources

    def __call__(
        self, folder: WorkFolder, work: Work, reports: Reports, should_stop: Callable[[], bool]
    ) -> dict[int, Failure]:
        """Run the processes to their end; return the failure of each that failed by itself.

        Raises:
            UserError: a host does not see the run's folder or the base, or the training is active.
            StoppedError: it was asked to stop before the cluster had room.
        """
        reports.places = []
        written = work.model_dump_json()
        write_atomically(folder.work, written)
        supervisor = self._supervisor(folder)
        given = {"folder": str(folder.folder), "work": written}
        try:
            running = supervisor.fit.remote(
                given, work.size, dict(self._resources), str(folder.of_ray)
            )
            self._watch(running, folder, work.size, reports, should_stop)
            result = self._ray.get(running)
        finally:
            self._ray.kill(supervisor)
        reports.relay()
        if result.problems:
            raise UserError("; ".join(result.problems))
        if result.error:
            return {0: Failure(kind="", message=f"Ray could not train: {result.error}")}
        return _failures(folder, result.died, reports.places)

    def _supervisor(self, folder: WorkFolder) -> Any:  # noqa: ANN401 - an actor
        """Start the actor, whose name is this training's lock in the cluster.

        Raises:
            UserError: another process trains in the folder.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from tasks.launching.ray_supervisor import Supervisor

        here = self._ray.get_runtime_context().get_node_id()
        actor = self._ray.remote(Supervisor).options(
            name=str(folder.folder),
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        until = time.monotonic() + _SECONDS_FOR_THE_LAST
        while True:
            try:
                return actor.remote()
            except ValueError:  # the name is taken
                if time.monotonic() > until:
                    raise UserError(
                        f"the training in {folder.folder} is active on the Ray cluster; wait for "
                        "its end, or stop the process that began it"
                    ) from None
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _watch(
        self,
        running: Any,  # noqa: ANN401 - what is waited for
        folder: WorkFolder,
        size: int,
        reports: Reports,
        should_stop: Callable[[], bool],
    ) -> None:
        wait = _WaitForRoom(self._ray, self._resources, size)
        is_asked = False
        while not self._ray.wait([running], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
            reports.relay()
            if reports.places:
                wait.end()
            else:
                wait.look()
            if should_stop() and not is_asked:
                if not reports.places:
                    raise StoppedError("stopped before the processes had met on the Ray cluster")
                folder.request_stop()
                is_asked = True


class _WaitForRoom:
    """Logs what a training that has not begun waits for."""

    def __init__(self, ray: Any, needed: Mapping[str, float], size: int) -> None:  # noqa: ANN401
        self._ray, self._needed, self._size = ray, dict(needed), size
        self._began = self._looked = time.monotonic()
        self._told = ""

    def look(self) -> None:
        """Log why there is no room, if that is new."""
        now = time.monotonic()
        if now - self._looked < _SECONDS_BETWEEN_LOOKS_FOR_ROOM:
            return
        self._looked = now
        if (reason := self._reason()) and reason != self._told:
            logger().info("waiting for capacity: %s", reason)
            self._told = reason

    def _reason(self) -> str:
        most = room(self._ray, self._needed)
        if most < self._size:
            return f"the Ray cluster has room for {most} of {self._size} processes"
        bundles = [self._needed] * self._size
        for one in self._ray.util.placement_group_table().values():
            if one["state"] == "PENDING" and list(one["bundles"].values()) == bundles:
                return "other work has what the Ray cluster has room for"
        return ""

    def end(self) -> None:
        """Log that the wait is over, if there was one."""
        if self._told:
            seconds = time.monotonic() - self._began
            logger().info("the Ray cluster has room now, after %.0f s", seconds)
            self._told = ""


def _failures(folder: WorkFolder, died: Mapping[int, str], places: list[str]) -> dict[int, Failure]:
    """Return what the processes left as their failures, else what Ray says of their end."""
    found = {}
    for rank, told in died.items():
        where = places[rank] if places else "a process"
        lost = Failure(kind="", message=f"{where} was killed, or lost with its node: {told}")
        found[rank] = folder.failure_of(rank) or lost
    return causes(found)
