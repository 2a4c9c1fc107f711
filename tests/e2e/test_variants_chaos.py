"""A set of variants survives kills of its processes and of itself."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import psutil
import pytest
from prefect.settings import get_current_settings
from variant_sets import completed_steps, set_config, tenants, variant_runs, written

from flows.cli.run_list import unfinished_runs
from tasks.config import TrainVariantsConfig
from tasks.config.reading import with_settings
from tasks.inference.variant_sets import read_set
from tasks.records import VariantsRecord

pytestmark = pytest.mark.slow

T = TypeVar("T")

_NUM_TENANTS = 12
_SECONDS = 600
_FILES = ("adapter_model.safetensors", "adapter_config.json")


def test_no_variant_is_lost_or_trained_twice(
    tiny_base: Path,
    tmp_path: Path,
    prefect_server: None,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Three workers and the set's own process are killed: each adapter is there, trained once."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    data = tenants(tmp_path / "rows.jsonl", _NUM_TENANTS)
    config = set_config(tiny_base, data, {"split_by": "tenant", "num_processes": 2})
    file = written(config, tmp_path / "set.yaml")
    draw = random.Random(7)  # noqa: S311 - moments, no secret

    first = _started(request, "variants", file)
    set_id = _waited_for(_begun, first)
    for num_done in (1, 4):
        _kill_a_worker(first, set_id, num_done, draw)
    _waited_for(lambda: _num_done(set_id) >= 6, first)
    time.sleep(draw.uniform(0, 2))
    orphans = _workers(first)
    first.kill()
    first.wait()
    psutil.wait_procs(orphans, timeout=60)
    assert not any(one.is_running() for one in orphans)

    second = _started(request, "resume", str(set_id))
    _kill_a_worker(second, set_id, 8, draw)
    assert second.wait(_SECONDS) == 0

    record = read_set(next((tmp_path / "home/outputs").glob(f"*-{str(set_id)[:8]}")))
    _check(record, set_id)
    for one in draw.sample(record.variants, 4):
        alone = _trained_alone(config, one.settings, tmp_path / "alone")
        for name in _FILES:
            assert (record.run.folder / str(one.adapter) / name).read_bytes() == (
                alone / name
            ).read_bytes()


def _check(record: VariantsRecord, set_id: UUID) -> None:
    assert not record.failed
    assert len(record.variants) == _NUM_TENANTS
    assert all((record.run.folder / str(one.adapter)).is_dir() for one in record.variants)
    runs = variant_runs(set_id)
    assert len(runs) == _NUM_TENANTS
    for counts in completed_steps(runs).values():
        assert counts["train_adapter"] == 1
        assert counts["publish_report"] == 1


def _trained_alone(config: TrainVariantsConfig, settings: dict[str, object], folder: Path) -> Path:
    """Train a variant as `adapterflow train` does, and return the adapter's folder."""
    from flows.cli.runs import create_run, execute

    changes = {**settings, "output.folder": str(folder)}
    report = execute(create_run(with_settings(config.alone, changes, "alone")))
    return report.saved.folder


def _started(request: pytest.FixtureRequest, *arguments: object) -> "subprocess.Popen[bytes]":
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    process = subprocess.Popen(
        [Path(sys.executable).with_name("adapterflow"), *map(str, arguments)],
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
    )
    request.addfinalizer(process.kill)
    return process


def _begun() -> UUID | None:
    return next(map(UUID, unfinished_runs()), None)


def _num_done(set_id: UUID) -> int:
    return sum(bool(run.state and run.state.is_completed()) for run in variant_runs(set_id))


def _kill_a_worker(
    process: "subprocess.Popen[bytes]", set_id: UUID, num_done: int, draw: random.Random
) -> None:
    """Kill one of a set's workers at a drawn moment, once so many variants are done."""
    _waited_for(lambda: _num_done(set_id) >= num_done and _workers(process), process)
    time.sleep(draw.uniform(0, 2))
    workers = _waited_for(lambda: _workers(process), process)
    draw.choice(workers).send_signal(signal.SIGKILL)


def _workers(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    found = psutil.Process(process.pid).children()
    return [one for one in found if "flows.variants.worker" in one.cmdline()]


def _waited_for(condition: Callable[[], T], process: "subprocess.Popen[bytes]") -> T:
    deadline = time.monotonic() + _SECONDS
    while not (found := condition()):
        assert process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found
