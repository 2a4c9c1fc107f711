"""Retrainings of a tiny base on sums, for the tests of the loop."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from flows.cli import runs
from tasks.config import RetrainAdapterConfig
from tasks.records import RetrainedRecord
from tasks.tracking import Registry, tracking_uri


def rows_of(file: Path, numbers: range, *, right: bool = True) -> Path:
    """Write sums, or nonsense in their place."""
    rows = (
        {"prompt": f"What is {n} plus {n}?", "completion": str(2 * n) if right else "fox dog fox"}
        for n in numbers
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def fixed(file: Path) -> dict[str, object]:
    """Return a file of rows with its sha256."""
    return {"rows": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def retraining(
    base: Path, folder: Path, name: str, **sections: Mapping[str, object]
) -> RetrainAdapterConfig:
    """Configure a retraining of seconds whose loss decides; sections change single settings."""
    held_out = rows_of(folder / "held_out.jsonl", range(100, 112))
    settings: dict[str, Mapping[str, object]] = {
        "base_model": {"source": str(base), "hub_id": "tests/tiny-llama", "dtype": "float32"},
        "data": {
            "train": str(rows_of(folder / "first.jsonl", range(24))),
            "eval_fraction": 0.25,
        },
        "lora": {"r": 8},
        "training": {"batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2},
        "inference": {"sample_rows": 0},
        "evaluation": {
            "rows": str(held_out),
            "sha256": hashlib.sha256(held_out.read_bytes()).hexdigest(),
            "max_new_tokens": 4,
        },
        "decision": {"metric": "loss", "min_rows": 10, "bootstrap_samples": 200},
        "registry": {"name": name},
    }
    for section, changed in sections.items():
        settings[section] = {**settings.get(section, {}), **changed}
    return RetrainAdapterConfig.model_validate(settings)


def retrained(config: RetrainAdapterConfig, *, force: bool = False) -> RetrainedRecord:
    """Run a retraining to its end."""
    return executed(runs.create_run(config, force=force))


def executed(flow_run: FlowRun) -> RetrainedRecord:
    """Execute a run of the retraining flow."""
    record = runs.execute_any(flow_run)
    assert isinstance(record, RetrainedRecord)
    return record


def aliases(config: RetrainAdapterConfig) -> dict[str, int]:
    """Return which version each alias means."""
    versions = Registry(tracking_uri(config.tracking), config.registry.name).versions()
    return {alias: one.version for one in versions for alias in one.aliases}


def events_of(name: str) -> list[tuple[str, int]]:
    """Return the events that Prefect has of a registered model, each with its version."""
    wanted = {"filter": {"event": {"prefix": ["adapterflow."]}}}
    with get_client(sync_client=True) as client:
        found = client._client.post("/events/filter", json=wanted).json()["events"]
    return [
        (event["event"], event["payload"]["version"])
        for event in found
        if event["resource"]["prefect.resource.name"] == name
    ]
