"""Retrainings of a tiny base on sums, for the tests of the loop."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tasks.config import RetrainAdapterConfig


def rows_of(file: Path, numbers: range, *, right: bool = True) -> Path:
    """Write sums, or nonsense in their place."""
    rows = (
        {"prompt": f"What is {n} plus {n}?", "completion": str(2 * n) if right else "fox dog fox"}
        for n in numbers
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


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
