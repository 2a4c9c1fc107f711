"""How many processes may train an adapter is found out before any weight is loaded."""

import os
import socket
import sys

import pytest
from pydantic import ValidationError

from tasks.config import LaunchSettings, TrainAdapterConfig, TrainingSettings
from tasks.errors import UserError
from tasks.launching import check_processes, num_processes
from tasks.launching import processes as module


@pytest.mark.parametrize(("gpus", "expected"), [([], 1), (["2", "5"], 2)])
def test_auto_is_one_process_a_gpu(
    gpus: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without GPUs, one process uses all cores."""
    monkeypatch.setattr(module, "gpus", lambda: gpus)
    assert num_processes(LaunchSettings(num_processes="auto")) == expected


@pytest.mark.parametrize(
    ("count", "training", "num_rows", "message"),
    [
        (1000, {"batch_size": 1000}, None, r"is 1000, but this machine has no GPU and \d+ CPU cor"),
        (2, {"batch_size": 1}, None, "more than the rows of an optimizer step, 1 .* raise these"),
        (2, {}, 1, "is 2, but there are 1 training rows"),
    ],
)
def test_too_many_processes_are_refused(
    count: int,
    training: dict[str, int],
    num_rows: int | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process needs a device of its own and a row of each step."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    settings = TrainingSettings.model_validate(training)
    with pytest.raises(UserError, match=message):
        check_processes(LaunchSettings(num_processes=count), settings, num_rows)


def test_as_many_as_devices_and_rows_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, two rows."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    settings = TrainingSettings(batch_size=1, gradient_accumulation_steps=2)
    check_processes(LaunchSettings(num_processes=2), settings, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cluster": "ray", "num_processes": "auto"}, "set num_processes to a number"),
        ({"cluster": "ray", "address": "ray://head:10001"}, "start the run on a node"),
        ({"address": "10.0.0.5:6379"}, "but cluster is not set"),
        ({"cpus_each": 4}, "cpus_each is 4.* set cluster: ray"),
    ],
)
def test_settings_that_a_cluster_excludes_are_refused(
    given: dict[str, str | int], message: str
) -> None:
    """And those that mean something on a cluster only."""
    with pytest.raises(ValidationError, match=message):
        LaunchSettings.model_validate(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 1}, "num_processes is 1; set num_processes: auto, or 2 or more"),
        ({}, "num_processes is 1"),
        ({"num_processes": 2, "cluster": "ray"}, "but cluster is ray; remove one"),
        ({"num_processes": 2, "strategy": "ddp"}, "'replicate' or 'fsdp'"),
    ],
)
def test_what_sharding_excludes_is_refused(given: dict[str, object], message: str) -> None:
    """A base is spread over several processes of one machine."""
    with pytest.raises(ValidationError, match=message):
        LaunchSettings.model_validate({"strategy": "fsdp"} | given)


def test_sharding_needs_several_processes_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `auto` is one process, this is told before anything is loaded."""
    monkeypatch.setattr(module, "gpus", list)
    launch = LaunchSettings.model_validate({"strategy": "fsdp", "num_processes": "auto"})
    with pytest.raises(UserError, match=r"which is 1 on this machine, but launch.strategy is fsdp"):
        check_processes(launch, TrainingSettings())


def test_8bit_weights_are_not_sharded() -> None:
    """The message names both settings, and what is possible."""
    given = {
        "base_model": {"source": "org/model", "quantization": "8bit"},
        "data": {"train": "rows.jsonl"},
        "launch": {"num_processes": 2, "strategy": "fsdp"},
    }
    with pytest.raises(ValidationError, match=r"strategy is fsdp, but .* 8bit.* 4bit or none"):
        TrainAdapterConfig.model_validate(given)


def test_the_default_strategy_is_not_recorded() -> None:
    """Step 4's record is found by its settings: those of runs before there was sharding are."""
    assert LaunchSettings(num_processes=2).model_dump() == {"num_processes": 2}
    sharded = LaunchSettings.model_validate({"num_processes": 2, "strategy": "fsdp"})
    assert LaunchSettings.model_validate_json(sharded.model_dump_json()) == sharded


def test_without_a_cluster_its_settings_are_not_recorded() -> None:
    """Step 4's record is found by its settings: those of runs before there were clusters are."""
    assert LaunchSettings(num_processes=2).model_dump() == {"num_processes": 2}
    on_ray = LaunchSettings.model_validate({"cluster": "ray", "cpus_each": 4})
    assert LaunchSettings.model_validate_json(on_ray.model_dump_json()) == on_ray


def test_a_cluster_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray that is not installed, and an address where nobody answers; its cores don't count."""
    settings = TrainingSettings(batch_size=1000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        launch = LaunchSettings.model_validate(
            {"cluster": "ray", "address": address, "num_processes": 1000}
        )
        pytest.importorskip("ray")
        check_processes(launch, settings)
    with pytest.raises(UserError, match=rf"no Ray cluster answers at {address} \(launch.address"):
        check_processes(launch, settings)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"launch\.cluster is ray, but Ray is not"):
        check_processes(launch, settings)
