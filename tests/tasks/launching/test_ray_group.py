"""On the nodes of a Ray cluster a training is what it is here, whatever happens to the nodes."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_steps import injected, prepared, training

from tasks.config import LaunchSettings, LoraSettings
from tasks.engine.training import TrainingProgress
from tasks.errors import StoppedError, UserError
from tasks.launching import train_in_processes
from tasks.launching.launcher import DeadProcessError
from tasks.launching.ray_group import check_room
from tasks.records import DataRecord, InjectedRecord, TrainedRecord

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[3]
_ACTORS = tuple(f"ray::{name}" for name in ("Supervisor", "Train", "RayTrain", "Sync", "Preempt"))
# Each step ends in a checkpoint, which also makes it last long enough to be interrupted.
SETTINGS = training(max_steps=60, eval_steps=20, checkpoint_minutes=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a cluster of two nodes on this machine, a core each."""
    pytest.importorskip("ray")
    from ray_cluster import ray_cluster

    with ray_cluster() as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CHECKOUT))
        yield started


class Given:
    """A training's inputs, and what two local processes make of them."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.injected: InjectedRecord = injected(base, folder, LoraSettings(r=4, lora_dropout=0.3))[
            1
        ]
        self.data: DataRecord = prepared(self.injected.lora.base, folder).record
        self.here = self.trained(folder / "here", LaunchSettings(num_processes=2))

    def trained(self, folder: Path, launch: LaunchSettings, **watching: Any) -> TrainedRecord:  # noqa: ANN401
        """Train in processes."""
        checkpoints = folder / "checkpoints"
        on_progress = watching.pop("on_progress", lambda _: None)
        return train_in_processes(
            self.injected, self.data, SETTINGS, checkpoints, launch, on_progress, **watching
        ).trained


@pytest.fixture(scope="module")
def given(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Train here once."""
    return Given(tiny_base, tmp_path_factory.mktemp("given"))


def on_ray(cluster: Any, num_processes: int = 2) -> LaunchSettings:  # noqa: ANN401
    """Return the settings of a training on the cluster."""
    return LaunchSettings.model_validate(
        {"cluster": "ray", "address": cluster.address, "num_processes": num_processes}
    )


def assert_nothing_is_left(cluster: Any) -> None:  # noqa: ANN401
    """Wait until no actor's process is there, and no placement group."""
    import ray

    until = time.monotonic() + 30
    while (left := _actors()) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        groups = ray.util.placement_group_table().values()
        assert {one["state"] for one in groups} <= {"REMOVED"}
        named = {one["name"] for one in ray.util.list_named_actors(all_namespaces=True)}
        assert named <= {"AutoscalingCoordinator"}  # Ray's own, one a cluster
    finally:
        ray.shutdown()


def _actors() -> list[str]:
    words: list[list[str]] = [p.info["cmdline"] or [""] for p in psutil.process_iter(["cmdline"])]
    return [one[0] for one in words if one[0].startswith(_ACTORS)]


def test_two_nodes_train_what_two_local_processes_do(
    cluster: Any,  # noqa: ANN401
    given: Given,
    tmp_path: Path,
) -> None:
    """The same bytes, also if it is stopped once; each step is reported, and nothing is left."""
    steps: list[int] = []

    def on_progress(now: TrainingProgress) -> None:
        steps.append(now.step)

    with pytest.raises(StoppedError):
        given.trained(
            tmp_path, on_ray(cluster), on_progress=on_progress, should_stop=lambda: bool(steps)
        )
    assert_nothing_is_left(cluster)
    record = given.trained(tmp_path, on_ray(cluster), on_progress=on_progress)

    assert record.weights.sha256 == given.here.weights.sha256
    assert record.loss_curve == given.here.loss_curve
    assert sorted(set(steps)) == list(range(1, 61))
    assert not (tmp_path / "launch").exists()
    assert_nothing_is_left(cluster)
    with pytest.raises(UserError, match="room for 2 processes of 1 CPU each"):
        check_room(on_ray(cluster, 3))


def test_a_training_outlives_a_node(
    cluster: Any,  # noqa: ANN401
    given: Given,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its loss is told, the next attempt waits for another, and ends with the same bytes."""
    caplog.set_level("INFO")

    def remove(now: TrainingProgress) -> None:
        if now.step == 5 and cluster.worker_nodes:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    with pytest.raises(DeadProcessError, match=r"rank \d of 2 died: process \d+ on .* was killed"):
        given.trained(tmp_path, on_ray(cluster), on_progress=remove)
    waits = "waiting for capacity: the Ray cluster has room for 1 of 2 processes"

    def add() -> bool:
        """Be asked whether to stop, on the main thread, which alone can start a node."""
        if waits in caplog.messages and not cluster.worker_nodes:
            cluster.add_node(
                num_cpus=1, object_store_memory=100_000_000, node_ip_address="127.0.0.1"
            )
        return False

    resumed: list[int] = []
    record = given.trained(
        tmp_path,
        on_ray(cluster),
        on_progress=lambda now: resumed.append(now.step),
        should_stop=add,
    )

    assert waits in caplog.messages
    assert any(one.startswith("the Ray cluster has room now") for one in caplog.messages)
    assert resumed[0] > 5
    assert record.weights.sha256 == given.here.weights.sha256
    assert record.loss_curve == given.here.loss_curve
    assert_nothing_is_left(cluster)
