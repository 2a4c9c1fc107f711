"""Answers that are judged one by one, good or bad, as the items of a training.

How far the model has moved from the reference is estimated from mismatched rows: prompts with the
answers of others (https://arxiv.org/abs/2402.01306, section 4.1). TRL cycles the answers of a
micro-batch. Here the seed draws them among the rows that the loss is a mean over, those of an
optimizer step or all held-out ones, so that they are the same in whatever micro-batches, batches
and processes these are computed.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from tasks.engine.batching import Answers, Batch
from tasks.engine.data.tokens import IGNORED, TokenizedRow, conversation_starts, row_lengths
from tasks.engine.training.compared import Compared
from tasks.engine.training.items import Sharing

if TYPE_CHECKING:
    from torch import Tensor


class JudgedRows(NamedTuple):
    """Rows, each with an answer that is desirable or not."""

    rows: Sequence[TokenizedRow]
    are_desirable: "np.ndarray"
    """bool [rows]."""
    most_tokens: int
    """Of a row; mismatched ones are truncated to it, as others are."""

    def mismatched(self, number: int, other: int) -> TokenizedRow:
        """Return the prompt of a row with the answer of another."""
        row, answered = self.rows[number], self.rows[other]
        asked, start = row.input_ids[: _answer_at(row)], _answer_at(answered)
        ids = asked + answered.input_ids[start:]
        labels = [IGNORED] * len(asked) + answered.labels[start:]
        most = self.most_tokens
        return TokenizedRow(ids[:most], labels[:most], row.conversation)


def _answer_at(row: TokenizedRow) -> int:
    """Return where a row's answer begins; its first token is of the prompt, as none predicts it."""
    found = (at for at, label in enumerate(row.labels) if at and label != IGNORED)
    return next(found)


def mismatches(numbers: Sequence[int], seed: int) -> dict[int, int]:
    """Return whose answer the prompt of each row is mismatched with: each answer is taken once.

    They depend on which rows are given, and not on their order. A single row has its own answer.

    Args:
        numbers: of the rows.
        seed: of the run.
    """
    ordered = sorted(numbers)
    circle = np.random.default_rng([seed, *ordered]).permutation(ordered)
    return dict(zip(circle.tolist(), np.roll(circle, 1).tolist(), strict=True))


class Mismatched(Compared):
    """Prompts with the answers of other rows.

    Args:
        judged: the rows.
        sharing: how they become batches, and who shares them.
        pairs: the number of the row of each prompt, and that of its answer.
        reference: see `Compared`, float32 [pairs, 1].
    """

    num_answers: ClassVar[int] = 1

    def __init__(
        self,
        judged: JudgedRows,
        sharing: Sharing,
        pairs: Sequence[tuple[int, int]],
        reference: "Tensor | None" = None,
    ) -> None:
        super().__init__(len(pairs), sharing, reference)
        self._judged, self._pairs = judged, pairs
        self._places = {pair: place for place, pair in enumerate(pairs)}

    def rows_of(self, number: int) -> Sequence[TokenizedRow]:
        """Return a prompt with the other row's answer."""
        return (self._judged.mismatched(*self._pairs[number]),)

    def batch(self, pairs: Sequence[tuple[int, int]]) -> Batch:
        """Return some of them, by the numbers of their rows, as a batch."""
        return self.sharing.collate([self[self._places[pair]] for pair in pairs])

    @property
    def identity(self) -> list[int]:
        """The numbers of all rows, in pairs."""
        return [number for pair in self._pairs for number in pair]

    @cached_property
    def lengths(self) -> "np.ndarray":
        """The number of tokens of each prompt's own row, about that of the mismatched one."""
        prompts = np.array([number for number, _ in self._pairs], dtype=int)
        lengths: np.ndarray = row_lengths(self._judged.rows)[prompts]
        return lengths

    @cached_property
    def starts(self) -> "np.ndarray":
        """Each item."""
        return np.arange(len(self))


class Judged(Compared):
    """Rows to train on, each of them an item; a step's batches have its mismatched rows, too.

    Args:
        judged: the rows.
        sharing: how they become batches, and who shares them.
        seed: of the run.
        mismatched: all that the training will draw; None where the loss needs none.
        reference: see `Compared`, float32 [rows, 1].
        places: of the rows among all; all of them unless given.
    """

    num_answers: ClassVar[int] = 1

    def __init__(  # noqa: PLR0913 - what a row is compared with
        self,
        judged: JudgedRows,
        sharing: Sharing,
        seed: int,
        mismatched: Mismatched | None = None,
        reference: "Tensor | None" = None,
        places: Sequence[int] | None = None,
    ) -> None:
        super().__init__(len(judged.rows), sharing, reference, places)
        self._judged, self._seed, self._mismatched = judged, seed, mismatched

    def __getitem__(self, index: int) -> Answers:
        label = bool(self._judged.are_desirable[self.places[index]])
        return {**super().__getitem__(index), "label": label}

    def rows_of(self, number: int) -> Sequence[TokenizedRow]:
        """Return a prompt with its answer."""
        return (self._judged.rows[number],)

    def _batch(self, indices: Sequence[int], step: Sequence[int]) -> Batch:
        batch = super()._batch(indices, step)
        if self._mismatched is None:
            return batch
        of_step = mismatches(step, self._seed)
        drawn = self._mismatched.batch([(index, of_step[index]) for index in indices])
        return {**batch, "mismatched": drawn["micro_batches"]}

    @cached_property
    def lengths(self) -> "np.ndarray":
        """The number of tokens of each row, int64 [rows]."""
        lengths: np.ndarray = row_lengths(self._judged.rows)[np.asarray(self.places, dtype=int)]
        return lengths

    @cached_property
    def starts(self) -> "np.ndarray":
        """The first row of each conversation, int64 [conversations]."""
        if len(self) < self.num_in_all:
            return np.arange(len(self))
        return conversation_starts(self._judged.rows)


class HeldOutJudged(Judged):
    """Held-out rows: each prompt with its own answer, and with that of another."""

    num_answers: ClassVar[int] = 2

    @cached_property
    def _others(self) -> dict[int, int]:
        return mismatches(range(self.num_in_all), self._seed)

    def rows_of(self, number: int) -> Sequence[TokenizedRow]:
        """Return a prompt with its answer, and with another row's."""
        return self._judged.rows[number], self._judged.mismatched(number, self._others[number])
