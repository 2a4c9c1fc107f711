"""Both splits of a run's data as tokens, and how they were rendered."""

from dataclasses import dataclass

from tasks.engine.data.rendering import Renderer
from tasks.engine.data.tokenization import TokenizedSplit
from tasks.records import DataRecord


@dataclass(frozen=True)
class PreparedData:
    """Both splits as tokens, with the renderer and the record of how they were made."""

    renderer: Renderer
    train: TokenizedSplit
    eval: TokenizedSplit | None
    record: DataRecord
