"""Sets of variants on the workers of a Prefect pool, and on a Ray cluster of two nodes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import get_current_settings
from variant_sets import (
    SECONDS,
    all_ended,
    begun,
    cancel_one,
    completed_steps,
    set_config,
    started,
    variant_runs,
    waited_for,
    written,
)

from benchmarks.harness.variant_rows import tenant_rows
from flows.cli.runs import create_run, execute
from flows.train_adapter import train_adapter
from tasks.config import TrainVariantsConfig
from tasks.config.reading import with_settings
from tasks.inference.variant_sets import read_set
from tasks.records import VariantsRecord, variants_in
from tasks.tracking import recorded_runs

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
PREFECT = Path(sys.executable).with_name("prefect")
_FILES = ("adapter_model.safetensors", "adapter_config.json")
_NUM_TENANTS = 4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> Path:
    """Return a home of the test's own, on a real Prefect server."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    # What Ray's actors compute with, so that the single training has it, too.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "home"


def _environment(**more: str) -> dict[str, str]:
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    paths = {"PYTHONPATH": str(CHECKOUT)}
    return {**os.environ, **settings, **paths, **more}


def _is_training(set_id: UUID) -> bool:
    return any(run.state and run.state.is_running() for run in variant_runs(set_id))


def _stopped(
    process: "subprocess.Popen[bytes]", set_id: UUID, trainings: Callable[[], list[psutil.Process]]
) -> None:
    """Send SIGTERM to a set once a variant is trained: the others end as cancelled, everywhere."""
    waited_for(lambda: _is_training(set_id) and "Completed" in _states(set_id), process)
    found = trainings()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert told.decode().splitlines()[-1].endswith(f"resume {set_id}")
    assert _states(set_id) == {"Completed", "Cancelled"}
    assert found
    waited_for(lambda: all_ended(found) and not trainings())
    [folder] = Path(os.environ["ADAPTERFLOW_HOME"]).glob(f"outputs/*-{str(set_id)[:8]}")
    told_mlflow = {one.status for one in recorded_runs([variants_in(folder)])}
    assert told_mlflow <= {"FINISHED", "KILLED"}


def _states(set_id: UUID) -> set[str | None]:
    return {run.state_name for run in variant_runs(set_id)}


def _ended(process: "subprocess.Popen[bytes]", set_id: UUID) -> VariantsRecord:
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    [folder] = Path(os.environ["ADAPTERFLOW_HOME"]).glob(f"outputs/*-{str(set_id)[:8]}")
    return read_set(folder)


def _check(record: VariantsRecord, set_id: UUID, config: TrainVariantsConfig) -> None:
    """Each variant has an adapter, trained once; one has the bytes of a training of its own."""
    assert not record.failed
    assert len(record.variants) == _NUM_TENANTS
    runs = variant_runs(set_id)
    assert len(runs) == _NUM_TENANTS
    for counts in completed_steps(runs).values():
        assert counts["train_adapter"] == 1
    one = record.variants[-1]
    alone = execute(create_run(with_settings(config.alone, one.settings, "alone"))).saved.folder
    for name in _FILES:
        found = record.run.folder / str(one.adapter) / name
        assert found.read_bytes() == (alone / name).read_bytes()


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """Return the address of a cluster of two nodes on this machine."""
    pytest.importorskip("ray")
    from ray_cluster import ray_cluster

    with ray_cluster() as cluster:
        yield str(cluster.address)


def _actors() -> list[psutil.Process]:
    """Return the actors' processes, which Ray names by what they do."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words: Any = process.info["cmdline"] or [""]
        if words[0].startswith("ray::TrainingActor.execute"):
            found.append(process)
    return found


def test_ray_cluster_trains_each_variant_once(
    tiny_base: Path,
    tmp_path: Path,
    home: Path,
    ray_address: str,
    request: pytest.FixtureRequest,
) -> None:
    """A stopped set resumes; an actor that is killed is replaced, and the others go on.

    So they do when a variant is cancelled, which the next resume trains.
    """
    data = tenant_rows(tmp_path / "rows.jsonl", _NUM_TENANTS)
    place = {"run_on": "ray", "ray_address": ray_address, "num_processes": 2}
    # Longer than the seconds between an actor's questions whether its variant is cancelled.
    steps: dict[str, object] = {"max_steps": 150}
    config = set_config(tiny_base, data, {"split_by": "tenant", **place}, training=steps)
    process = started(request, "variants", written(config, tmp_path / "set.yaml"))
    set_id = waited_for(begun, process)
    _stopped(process, set_id, _actors)
    process = started(request, "resume", set_id)
    cancelled = cancel_one(set_id, process)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    ended = {run.id: run.state_name for run in variant_runs(set_id)}
    assert ended.pop(cancelled) == "Cancelled"
    assert set(ended.values()) == {"Completed"}
    process = started(request, "resume", set_id)
    actor = waited_for(lambda: _actors() if _is_training(set_id) else [], process)[0]
    actor.send_signal(signal.SIGKILL)

    _check(_ended(process, set_id), set_id, config)


@pytest.fixture
def pool(
    home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Start two workers of a pool with a deployment, as two machines would have them."""
    flow: Flow[..., Any] = train_adapter
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="two-machines", type="process"))
        client.create_deployment(
            client.create_flow(flow),
            "variant",
            work_pool_name="two-machines",
            path=str(CHECKOUT),
            entrypoint="flows.train_adapter.train_adapter",
            job_variables={"working_dir": str(CHECKOUT)},
        )
    workers = [_worker(tmp_path, number) for number in range(2)]
    waited_for(lambda: _num_online() == len(workers))
    yield workers
    for worker in workers:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _num_online() -> int:
    """Return how many workers the pool has heard of: a set without any is refused."""
    with get_client(sync_client=True) as client:
        return len(client.read_workers_for_work_pool("two-machines"))


def _worker(folder: Path, number: int) -> "subprocess.Popen[bytes]":
    environment = _environment(
        ADAPTERFLOW_DEVICE=f"machine-{number}",
        PREFECT_WORKER_QUERY_SECONDS="1",
        PREFECT_RUNNER_POLL_FREQUENCY="1",
    )
    words = ["worker", "start", "--pool=two-machines", f"--name=machine-{number}", "--limit=1"]
    with (folder / f"worker-{number}.log").open("ab") as log:
        return subprocess.Popen(
            [PREFECT, *words], env=environment, stdout=log, stderr=log, start_new_session=True
        )


def _trainings(workers: list["subprocess.Popen[bytes]"]) -> list[psutil.Process]:
    """Return the processes that workers started for flow runs."""
    found = []
    for worker in workers:
        for process in psutil.Process(worker.pid).children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                words = " ".join(process.cmdline())
                if "prefect" in words and "engine" in words:
                    found.append(process)
    return found


def test_work_pool_trains_each_variant_once(
    tiny_base: Path,
    tmp_path: Path,
    home: Path,
    pool: list["subprocess.Popen[bytes]"],
    request: pytest.FixtureRequest,
) -> None:
    """Two workers share the variants of a set, stopped and resumed; a killed one is taken again."""
    data = tenant_rows(tmp_path / "rows.jsonl", _NUM_TENANTS)
    config = set_config(tiny_base, data, {"split_by": "tenant", "run_on": "work-pool"})
    process = started(request, "variants", written(config, tmp_path / "set.yaml"))
    set_id = waited_for(begun, process)
    _stopped(process, set_id, lambda: _trainings(pool))
    process = started(request, "resume", set_id)
    training = waited_for(lambda: _trainings(pool) if _is_training(set_id) else [], process)[0]
    training.send_signal(signal.SIGKILL)

    _check(_ended(process, set_id), set_id, config)
