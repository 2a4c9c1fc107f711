"""Places where flow runs of variants are executed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import UUID

from tasks.config import RunOn, TrainVariantsConfig

OnEnded = Callable[[UUID], None]


class Place(Protocol):
    """Executes flow runs of `train-adapter` that were created before.

    A place knows ids only: what a run is to do, and what came of it, is in Prefect. Its processes
    execute runs by what `flows.variants.execution.executing` yields: a run that was begun is
    resumed, and one that completed left alone.
    """

    needs_device: bool
    """Whether the variants use the device of this process, whose slot it then has to hold."""

    deployment_id: UUID | None
    """The deployment that the runs must be of, as its workers execute them; None for any runs."""

    def execute(self, flow_run_ids: Sequence[UUID], on_ended: OnEnded) -> None:
        """Execute flow runs; return once each has ended, whether it completed or failed.

        Called on the flow's main thread, and more than once: a search executes round after round.
        A run whose process or machine is lost is executed again elsewhere; one that is lost again
        and again ends, in Prefect, as crashed. One that is cancelled alone is stopped, and ends as
        cancelled. If this call is interrupted by any exception, as when the set is cancelled, no
        run is being executed once it has propagated.

        Args:
            flow_run_ids: the runs, each of which is pending, or awaits a retry.
            on_ended: called on this thread, once for each run as it ends.
        """
        ...


@contextmanager
def open_place(config: TrainVariantsConfig, folder: Path) -> Iterator[Place]:
    """Open the place that the configuration names; its processes end with the block.

    Args:
        config: of the set.
        folder: of the set, for the logs of processes.

    Raises:
        UserError: the place is not there.
    """
    match config.variants.run_on:
        case RunOn.HERE:
            from flows.variants.local_place import LocalPlace

            with LocalPlace(config.variants.num_processes, folder / "logs") as place:
                yield place
        case RunOn.WORK_POOL:
            from flows.variants.pool_place import open_pool

            with open_pool(config.variants, folder) as place:
                yield place
        case RunOn.RAY:
            from flows.variants.ray_place import open_ray

            with open_ray(config.variants, folder) as place:
                yield place


def check_place(config: TrainVariantsConfig) -> None:
    """Check that the place can be reached, before anything of the set is made.

    Raises:
        UserError: it can't.
    """
    match config.variants.run_on:
        case RunOn.WORK_POOL:
            from flows.variants.pool_place import find_deployment

            find_deployment(config.variants.deployment)
        case RunOn.RAY:
            from flows.variants.ray_place import check_ray

            check_ray(config.variants.ray_address)
