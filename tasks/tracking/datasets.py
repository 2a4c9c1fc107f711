"""The rows a run was trained on, as MLflow shows them: source, digest and counts, no content."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config.hub_ids import is_hub_id
from tasks.records import SplitRecord

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

# mlflow 3.17 (MAX_DATASET_DIGEST_SIZE); a full sha256 has 64.
_MAX_DIGEST_CHARACTERS = 36


def describe(split: SplitRecord, context: str) -> dict[str, str]:
    """Describe a split as MLflow's fields of a dataset, as far as this machine knows it.

    mlflow's own dataset classes compute a digest of the head of the data only; this one is the
    split's sha256, cut to MLflow's length.
    """
    kind, source = _source(split.source)
    return {
        "name": f"{Path(split.source).name or split.source} ({context})",
        "digest": split.sha256[:_MAX_DIGEST_CHARACTERS],
        "source_type": kind,
        "source": json.dumps(source),
        "profile": json.dumps(split.model_dump(exclude={"source"})),
    }


def dataset_input(described: dict[str, str], context: str, sha256: str) -> "DatasetInput":
    """Give what `describe` gave as MLflow's input of a run, with the whole sha256 as a tag."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag("mlflow.data.context", context), InputTag("sha256", sha256)]
    return DatasetInput(Dataset(**described), tags)


def _source(source: str) -> tuple[str, dict[str, object]]:
    """Give MLflow's kind of source and its fields, so that `mlflow.data.get_source` finds it."""
    path = Path(source).expanduser()
    if path.exists():
        return "local", {"uri": str(path.resolve())}
    if is_hub_id(source):
        return "hf", {"path": source}
    return "code", {"tags": {"source": source}}
