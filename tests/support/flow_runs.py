"""Runs of the training flow on a tiny base, for the tests of what a run leaves behind."""

import json
from pathlib import Path

from tasks.config import TrainAdapterConfig


def sums(file: Path, count: int = 24) -> Path:
    """Write a file of small sums to learn from."""
    rows = ({"prompt": f"What is {i} plus {i}?", "completion": str(2 * i)} for i in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def tiny_config(base: Path, data: Path, **sections: dict[str, object]) -> TrainAdapterConfig:
    """Configure two passes over a file of sums; sections change single settings."""
    settings: dict[str, dict[str, object]] = {
        "base_model": {"source": str(base), "hub_id": "tests/tiny-llama", "dtype": "float32"},
        "data": {"train": str(data), "eval_fraction": 0.25},
        "lora": {"r": 8},
        "training": {"batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2},
        "inference": {"sample_rows": 3, "max_new_tokens": 4},
    }
    for name, changed in sections.items():
        settings[name] = {**settings.get(name, {}), **changed}
    return TrainAdapterConfig.model_validate(settings)
