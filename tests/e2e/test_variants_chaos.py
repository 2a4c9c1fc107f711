"""A set of variants survives kills of its processes and of itself."""

import random
import signal
import subprocess
import time
from pathlib import Path
from uuid import UUID

import pytest
from variant_sets import (
    SECONDS,
    all_ended,
    begun,
    completed_steps,
    set_config,
    started,
    variant_runs,
    waited_for,
    workers,
    written,
)

from benchmarks.harness.variant_rows import tenant_rows
from tasks.config import TrainVariantsConfig
from tasks.config.reading import with_settings
from tasks.inference.variant_sets import read_set
from tasks.records import VariantsRecord

pytestmark = pytest.mark.slow

_NUM_TENANTS = 12
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
    data = tenant_rows(tmp_path / "rows.jsonl", _NUM_TENANTS)
    config = set_config(tiny_base, data, {"split_by": "tenant", "num_processes": 2})
    file = written(config, tmp_path / "set.yaml")
    draw = random.Random(7)  # noqa: S311 - moments, no secret

    first = started(request, "variants", file)
    set_id = waited_for(begun, first)
    for num_done in (1, 4):
        _kill_a_worker(first, set_id, num_done, draw)
    waited_for(lambda: _num_done(set_id) >= 6, first)
    time.sleep(draw.uniform(0, 2))
    orphans = workers(first)
    first.kill()
    first.wait()
    waited_for(lambda: all_ended(orphans))

    second = started(request, "resume", str(set_id))
    _kill_a_worker(second, set_id, 8, draw)
    assert second.wait(SECONDS) == 0

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


def _num_done(set_id: UUID) -> int:
    return sum(bool(run.state and run.state.is_completed()) for run in variant_runs(set_id))


def _kill_a_worker(
    process: "subprocess.Popen[bytes]", set_id: UUID, num_done: int, draw: random.Random
) -> None:
    """Kill one of a set's workers at a drawn moment, once so many variants are done."""
    waited_for(lambda: _num_done(set_id) >= num_done and workers(process), process)
    time.sleep(draw.uniform(0, 2))
    draw.choice(waited_for(lambda: workers(process), process)).send_signal(signal.SIGKILL)
