"""Tasks of lm-evaluation-harness for tests: YAML files and rows in a folder, without a network."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from tasks.config import HarnessSettings

Row = Mapping[str, object]


def own_task(folder: Path, name: str, rows: Iterable[Row], **settings: object) -> Path:
    """Write a task and its rows; it asks for `question`, and knows the continuation `answer`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    given: dict[str, object] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [perplexity, {"metric": "acc"}],
        "metadata": {"version": 2.5},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(given | settings))
    return folder


def harness_settings(folder: Path, *names: str, **settings: object) -> HarnessSettings:
    """Configure tasks of a folder."""
    given = {"tasks": list(names), "include_path": str(folder)}
    return HarnessSettings.model_validate(given | settings)
