"""Log the rows of a run as MLflow datasets: source, digest and counts, without their content."""

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
    """Return MLflow's fields of a dataset for a split.

    mlflow's own dataset classes compute a digest of the first rows only; this one is the split's
    sha256, truncated to MLflow's limit.
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
    """Return a described split as an input of an MLflow run, with the full sha256 as a tag."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag("mlflow.data.context", context), InputTag("sha256", sha256)]
    return DatasetInput(Dataset(**described), tags)


def _source(source: str) -> tuple[str, dict[str, object]]:
    """Return MLflow's type of source and its fields, as `mlflow.data.get_source` expects them."""
    path = Path(source).expanduser()
    if path.exists():
        return "local", {"uri": str(path.resolve())}
    if is_hub_id(source):
        return "hf", {"path": source}
    return "code", {"tags": {"source": source}}
