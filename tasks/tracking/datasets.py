"""The rows a run was trained on, as MLflow shows them: source, digest and counts, no content."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.records import SplitRecord

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

# mlflow 3.17 (MAX_DATASET_DIGEST_SIZE); a full sha256 has 64.
_MAX_DIGEST_CHARACTERS = 36


def dataset_of(split: SplitRecord, context: str) -> "DatasetInput":
    """Describe a split as a dataset input.

    mlflow's own dataset classes compute a digest of the head of the data only; this one is the
    split's sha256, cut to MLflow's length, with the whole of it as the input's tag.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind, source = _source(split.source)
    dataset = Dataset(
        name=f"{Path(split.source).name or split.source} ({context})",
        digest=split.sha256[:_MAX_DIGEST_CHARACTERS],
        source_type=kind,
        source=json.dumps(source),
        profile=json.dumps(split.model_dump(exclude={"source"})),
    )
    tags = [InputTag("mlflow.data.context", context), InputTag("sha256", split.sha256)]
    return DatasetInput(dataset, tags)


def _source(source: str) -> tuple[str, dict[str, object]]:
    """Give MLflow's kind of source and its fields, so that `mlflow.data.get_source` finds it."""
    path = Path(source).expanduser()
    if path.exists():
        return "local", {"uri": str(path.resolve())}
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        return "hf", {"path": source}
    return "code", {"tags": {"source": source}}
