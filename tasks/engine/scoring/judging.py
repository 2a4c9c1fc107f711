"""Judge sample answers by the metric that fits them.

Free text is hardly ever exactly right: two good answers differ in words. It is judged by ROUGE-L,
and everything else by exact match.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.config import AnswerKind
from tasks.engine.base import traits_of
from tasks.engine.scoring.row_metrics import resolve_kind
from tasks.engine.scoring.token_overlap import rouge_l
from tasks.records import LoadedRecord, SampleRecord

_FEW_WORDS = 5
"""Answers of more words than this can be right in other words."""


@dataclass(frozen=True)
class Judged:
    """How well base and adapter answered the sampled rows."""

    base: float
    adapter: float
    """Of ROUGE-L the mean, of exact matches the share; 0 to 1."""
    num_rows: int
    is_free_text: bool
    """Whether ROUGE-L judges, and not exact match."""

    @property
    def text(self) -> str:
        """The scores in one line, the same in logs, reports and summaries."""
        name = "ROUGE-L" if self.is_free_text else "exact matches"
        scores = f"base {self._score(self.base)}, adapter {self._score(self.adapter)}"
        return f"{name} on {self.num_rows} held-out rows: {scores}"

    def mark(self, answer: str, expected: str, *, is_exact: bool) -> str:
        """Return a sign of how good one answer is."""
        if self.is_free_text:
            return f"{rouge_l(answer, expected):.2f}"
        return "✓" if is_exact else "✗"

    def _score(self, score: float) -> str:
        return f"{score:.3f}" if self.is_free_text else f"{100 * score:.0f} %"


def judge(loaded: LoadedRecord) -> Judged | None:
    """Return the scores of the sample answers; None if no row was sampled."""
    samples = loaded.samples
    if not samples:
        return None
    generates = traits_of(loaded.saved.base.settings.task).generates
    if generates and _are_free_text(samples):
        base = [rouge_l(one.base_answer, one.expected) for one in samples]
        adapter = [rouge_l(one.adapter_answer, one.expected) for one in samples]
        return Judged(_mean(base), _mean(adapter), len(samples), is_free_text=True)
    base = [float(one.base_matches) for one in samples]
    adapter = [float(one.adapter_matches) for one in samples]
    return Judged(_mean(base), _mean(adapter), len(samples), is_free_text=False)


def _are_free_text(samples: Sequence[SampleRecord]) -> bool:
    """Return whether exact match says nothing about such answers.

    They are neither JSON nor labels, and most of those expected have more than a few words, or none
    of base and adapter is exactly right.
    """
    expected = [one.expected for one in samples]
    if resolve_kind(AnswerKind.AUTO, expected) is not AnswerKind.TEXT:
        return False
    num_long = sum(len(text.split()) > _FEW_WORDS for text in expected)
    return 2 * num_long > len(samples) or not any(
        one.base_matches or one.adapter_matches for one in samples
    )


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
