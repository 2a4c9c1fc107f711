"""Both splits of a run's data as tokens, and how they were rendered."""

from dataclasses import dataclass
from itertools import islice

from tasks.engine.data.rendering import Renderer
from tasks.engine.data.rows import Example
from tasks.engine.data.tokens.token_files import conversation_starts
from tasks.engine.data.tokens.tokenization import TokenizedSplit
from tasks.records import DataRecord


@dataclass(frozen=True)
class PreparedData:
    """Both splits as tokens, with the renderer and the record of how they were made."""

    renderer: Renderer
    """Of the conversations, if there are any, else of the plain texts."""
    train: TokenizedSplit
    eval: TokenizedSplit | None
    record: DataRecord

    def questions(self, count: int) -> list[tuple[Renderer, Example]]:
        """Return the first held-out examples that have a good answer, each with its renderer.

        A conversation that became several rows is one example.
        """
        if self.eval is None:
            return []
        sources = self.eval.sources.tolist()
        formats = [part.row_format for part in self.eval.record.by_source]
        found = (
            (self.eval.renderers[sources[place]], self.eval.examples[place])
            for place in conversation_starts(self.eval.rows).tolist()
            if formats[sources[place]] != "text"
            and self.eval.examples[place].is_desirable is not False
        )
        return list(islice(found, count))
