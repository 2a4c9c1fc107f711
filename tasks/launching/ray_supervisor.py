"""The actor that runs Ray Train on the parent's node, and the failures that Ray knows of.

`TorchTrainer.fit` takes the handler of Ctrl-C and returns at the end. In an actor, the parent
watches the training meanwhile, and by killing the actor ends all that Ray started for it.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tasks.launching.ray_worker import train_on_ray

_LEFT_BY_KILLS = "PlacementGroupCleanerCallback"
"""Starts a detached actor, which outlives a training that is killed, where the cluster has no
dashboard for ever. The placement group ends with the actor that made it, without this."""


class FitResult(NamedTuple):
    """How `fit` ended."""

    problems: tuple[str, ...] = ()
    """Why hosts can't train."""
    died: Mapping[int, str] = {}
    """By rank, what Ray says of processes that failed."""
    error: str = ""
    """Why Ray could not run the processes at all."""


class Supervisor:
    """Runs a training's processes, from their placement to their end."""

    def fit(
        self, given: Mapping[str, str], size: int, resources: Mapping[str, float], folder: str
    ) -> FitResult:
        """Train in `size` processes that are started together, and never again.

        Args:
            given: what each process is given.
            size: the number of processes.
            resources: of each process.
            folder: of the training, on a disk of this node.
        """
        from ray.train import TrainingFailedError, WorkerGroupError

        try:
            result = _trainer(given, size, resources, folder).fit()
        except WorkerGroupError as error:
            told = {rank: _last_line(one) for rank, one in error.worker_failures.items()}
            return FitResult(died=told)
        except TrainingFailedError as error:
            return FitResult(error=_last_line(error))
        return FitResult(problems=tuple(result.return_value))


def _trainer(
    given: Mapping[str, str], size: int, resources: Mapping[str, float], folder: str
) -> Any:  # noqa: ANN401 - of Ray
    # Its types are those of an older interface.
    ray_train: Any = import_module("ray.train")
    of_torch: Any = import_module("ray.train.torch")
    place = Path(folder)
    trainer = of_torch.TorchTrainer(
        train_on_ray,
        train_loop_config=dict(given),
        torch_config=of_torch.TorchConfig(backend="gloo"),
        scaling_config=ray_train.ScalingConfig(
            num_workers=size,
            use_gpu="GPU" in resources,
            resources_per_worker=dict(resources),
        ),
        run_config=ray_train.RunConfig(
            name=place.name,
            storage_path=str(place.parent),
            # The step's next attempt resumes from the checkpoint, with its own log and limits.
            failure_config=ray_train.FailureConfig(max_failures=0, max_preemption_failures=0),
        ),
    )
    made = trainer._create_default_callbacks  # noqa: SLF001 - see docs/fragile-reaches.md

    def wanted() -> list[Any]:
        return [one for one in made() if type(one).__name__ != _LEFT_BY_KILLS]

    trainer._create_default_callbacks = wanted  # noqa: SLF001
    return trainer


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].strip()
