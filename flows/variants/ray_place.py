"""The place 'Ray': actors of a cluster, each of which trains one variant after the other.

An actor has a device of its own and keeps the base in memory. One that dies is replaced on whatever
node has room, and its variant goes to the next free one, which resumes it from its records.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run as this_run
from prefect.settings import get_current_settings
from prefect.states import Cancelling

from flows.variants.lost_processes import MOST_DEATHS, LostProcesses
from flows.variants.variant_runs import STOPPED
from tasks.config import VariantsSettings
from tasks.durability.shared_storage import leave_proof
from tasks.errors import UserError
from tasks.records import variants_in
from tasks.runtime.progress import logger
from tasks.runtime.ray_connection import (
    check_address,
    environment_of,
    has_gpus,
    import_ray,
    join,
    room,
)

_ADDRESS, _REASON = "variants.ray_address", "variants.run_on is ray"
_import_ray = partial(import_ray, _REASON)
_SECONDS_BETWEEN_LOOKS = 1.0
"""An interruption of this process is noticed so often: Ray's own wait does not notice it."""
_SECONDS_TO_STOP = 15.0
"""For active runs to write their state, when the set is stopped."""
_OF_OURS = ("ADAPTERFLOW_", "MLFLOW_", "PREFECT_", "HF_", "OMP_", "DO_NOT_TRACK", "PYTHONPATH")
"""Variables of this process that its actors have, too."""


def check_ray(address: str) -> None:
    """Check that Ray is installed, and that a cluster answers at the address.

    Raises:
        UserError: it isn't, or none does.
    """
    check_address(address, _ADDRESS, _REASON)


@contextmanager
def open_ray(settings: VariantsSettings, folder: Path) -> Iterator["RayPlace"]:
    """Join the cluster for a while; its actors of this process end with it.

    Raises:
        UserError: there is no cluster, or it has no device for an actor.
    """
    check_ray(settings.ray_address)
    ray = _import_ray()
    join(ray, settings.ray_address, _ADDRESS, _environment())
    try:
        set_id = str(this_run.get_id())
        leave_proof(variants_in(folder), set_id)
        yield RayPlace(ray, settings, variants_in(folder), set_id)
    finally:
        ray.shutdown()


def _environment() -> dict[str, str]:
    """Return what actors have of this process's environment: its Prefect, MLflow and home."""
    own = environment_of(_OF_OURS)
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    threads = {"OMP_NUM_THREADS"}  # Ray sets it to the cores that an actor has
    return {k: v for k, v in {**own, **settings}.items() if k not in threads}


class TrainingActor:
    """Executes flow runs in a process of the cluster, with the base in memory."""

    def __init__(self) -> None:
        self._while_it_lives = ExitStack()
        self._execute: Callable[[UUID], None] | None = None

    def prepare(self, folder: str, set_id: str) -> str | None:
        """Import what trainings need; return why this process can't be used, if it can't."""
        from flows.variants.execution import executing
        from tasks.durability.shared_storage import check_proof

        try:
            check_proof(Path(folder), set_id)
        except UserError as mistake:
            return str(mistake)
        self._execute = self._while_it_lives.enter_context(executing())
        return None

    def execute(self, flow_run_id: UUID) -> None:
        """Execute a flow run on the process's main thread."""
        assert self._execute  # noqa: S101 - it was prepared
        self._execute(flow_run_id)


class RayPlace:
    """Up to `num_processes` actors, started as they are needed."""

    needs_device = False
    deployment_id: UUID | None = None

    def __init__(
        self,
        ray: Any,  # noqa: ANN401 - the module
        settings: VariantsSettings,
        folder: Path,
        set_id: str,
    ) -> None:
        self._ray, self._folder, self._set_id = ray, folder, set_id
        self._options = self._reserved(settings)
        self._num_actors = self._room(settings)
        self._lost, self._num_unprepared = LostProcesses(), 0
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, UUID | None]] = {}
        """By what is waited for: the actor, and its run; None while it prepares itself."""

    def _reserved(self, settings: VariantsSettings) -> dict[str, Any]:
        gpus = {"num_gpus": 1} if has_gpus(self._ray) else {}
        return {"num_cpus": settings.cpus_each, "scheduling_strategy": "SPREAD", **gpus}

    def _room(self, settings: VariantsSettings) -> int:
        """Return the number of actors that there is room for, at most those of the settings."""
        needed = {"CPU": settings.cpus_each, **({"GPU": 1} if "num_gpus" in self._options else {})}
        most = room(self._ray, needed)
        if not most:
            raise UserError(
                f"no node of the Ray cluster has {settings.cpus_each} CPU cores "
                "(variants.cpus_each); lower it, or add nodes"
            )
        if most < settings.num_processes:
            logger().info("the Ray cluster has room for %d processes", most)
        return min(most, settings.num_processes)

    def execute(self, flow_run_ids: Sequence[UUID], on_ended: Callable[[UUID], None]) -> None:
        """Execute flow runs; see `flows.variants.places.Place`.

        Raises:
            UserError: a node has other storage.
        """
        waiting = deque(flow_run_ids)
        try:
            while waiting or any(run for _, run in self._busy.values()):
                self._fill(waiting)
                ready, _ = self._ray.wait(list(self._busy), timeout=_SECONDS_BETWEEN_LOOKS)
                for one in ready:
                    if (ended := self._heard(one, waiting)) is not None:
                        on_ended(ended)
        except BaseException:
            self._stop()
            raise

    def _fill(self, waiting: deque[UUID]) -> None:
        """Assign each idle actor a run; start actors while there are fewer than runs for them."""
        while waiting and self._idle:
            actor, run = self._idle.pop(), waiting.popleft()
            self._busy[actor.execute.remote(run)] = (actor, run)
        num_preparing = sum(run is None for _, run in self._busy.values())
        while len(self._busy) < self._num_actors and num_preparing < len(waiting):
            actor = self._ray.remote(TrainingActor).options(**self._options).remote()
            self._busy[actor.prepare.remote(str(self._folder), self._set_id)] = (actor, None)
            num_preparing += 1

    def _heard(self, ready: Any, waiting: deque[UUID]) -> UUID | None:  # noqa: ANN401
        """Take an actor's answer; return the run that ended, if one did.

        Raises:
            UserError: the actor has other storage.
        """
        actor, run = self._busy.pop(ready)
        try:
            problem = self._ray.get(ready)
        except self._ray.exceptions.RayActorError as error:
            return self._died(run, str(error).splitlines()[0], waiting)
        if problem is not None:
            raise UserError(problem)
        self._idle.append(actor)
        return run

    def _died(self, run: UUID | None, how: str, waiting: deque[UUID]) -> UUID | None:
        """Let another actor have the run of one that died; return a run that is given up.

        Raises:
            UserError: actors die before they get a run.
        """
        if run is None:
            self._num_unprepared += 1
            logger().warning("a process of the Ray cluster died before it trained: %s", how)
            if self._num_unprepared == MOST_DEATHS:
                raise UserError(f"the processes of the Ray cluster die before they train: {how}")
            return None
        if self._lost.may_be_replaced(run, how):
            waiting.appendleft(run)
            return None
        return run

    def _stop(self) -> None:
        """Stop active runs, and kill all actors: their runs resume from their records.

        Ray can only kill an actor: that its run is to stop, the actor sees in Prefect.
        """
        with get_client(sync_client=True) as client:
            for _, run in self._busy.values():
                if run:
                    client.set_flow_run_state(run, Cancelling(message=STOPPED))
        active = [ready for ready, (_, run) in self._busy.items() if run]
        if active:
            self._ray.wait(active, num_returns=len(active), timeout=_SECONDS_TO_STOP)
        for actor in (*self._idle, *(actor for actor, _ in self._busy.values())):
            self._ray.kill(actor)
        self._idle.clear()
        self._busy.clear()
