"""The validated data: what was read, how it was tokenized, and what was lost on the way."""

import hashlib
import json

from tasks.config import DataSettings, LearningObjective, Task
from tasks.records.chat import ChatOptions
from tasks.records.record import FileRecord, Record


class RowPlace(Record):
    """A row, by its number from 1 in the source of this name."""

    source: str
    row: int


class OddRows(Record):
    """Rows that are probably a mistake."""

    kind: str
    num_rows: int
    first: tuple[RowPlace, ...]
    """The first few of them."""


class ShownRow(Record):
    """A training row as the model sees it."""

    place: RowPlace
    text: str
    """With what is trained on between ⟦ and ⟧; long texts are shortened in the middle."""
    num_rows: int = 1
    """Rows that the conversation became; the text is that of the last."""


class SplitRecord(Record):
    """One split after tokenization. An answer is an assistant message or a completion."""

    source: str
    sha256: str
    """Of all rows in order, as canonical JSON."""
    num_examples: int = 0
    """Of which the rows are made: a conversation may become several rows, one for each answer."""
    num_rows: int
    """A pair of a chosen and a rejected answer is one row."""
    num_tokens: int
    num_trained_tokens: int
    """What the loss is computed on: tokens, or the labels of classified rows and words."""
    longest_tokens: int
    """Tokens of the longest row."""
    num_shortened_answers: int = 0
    """Answers truncated to `max_length`."""
    num_shortened_texts: int = 0
    """Texts truncated to `max_length` that contain no answer, as in classification."""
    num_untrained_answers: int = 0
    """Answers that are not trained on: by weight 0, `data.turns`, or as part of a prompt."""
    num_unwritten_messages: int = 0
    """Messages to the assistant, or results of tools, that the chat template omits or rewrites."""
    num_unwritten_reasonings: int = 0
    """Answers that are trained on without their reasoning, which the chat template omits."""
    num_unwritten_tools: int = 0
    """Examples whose tools the chat template omits."""
    num_stopped_answers: int = 0
    """Answers that contain the text of an end token, at which generation stops."""
    num_completed_answers: int = 0
    """Answers that an end token was appended to, as the chat template writes none."""
    num_endless_answers: int = 0
    """Answers followed by nothing that stops generation."""
    num_reopened_answers: int = 0
    """Answers whose opening differs between the chat template's text and its generation prompt."""
    num_dropped_rows: int = 0
    """Rows dropped because none of their answer is within `max_length`."""
    num_untrained_rows: int = 0
    """Rows dropped because none of their answers is trained on, by weight 0."""
    num_equal_pairs: int = 0
    """Pairs dropped because their answers are the same, as they are or as truncated."""
    num_empty_pairs: int = 0
    """Pairs dropped because one of their answers is empty."""
    num_chosen_tokens: int = 0
    """Those of the trained tokens that are of chosen or desirable answers, where there are any."""
    num_desirable_rows: int = 0
    """Rows with a desirable answer, where answers are judged one by one."""
    name: str = ""
    """Of the source, in metrics and reports."""
    row_format: str = ""
    template: str = ""
    is_replayed: bool = False
    """Whether the rows are some of those that an earlier adapter learned from."""
    parts: tuple["SplitRecord", ...] = ()
    """The same by source, where there are several."""

    @property
    def own(self) -> tuple["SplitRecord", ...]:
        """The sources that the run itself names, without rows that are replayed."""
        return tuple(part for part in self.by_source if not part.is_replayed)

    @property
    def own_sha256(self) -> str:
        """The sha256 of the rows of all sources that the run itself names."""
        own = [part.sha256 for part in self.own]
        return own[0] if len(own) == 1 else hashlib.sha256(json.dumps(own).encode()).hexdigest()

    @property
    def by_source(self) -> tuple["SplitRecord", ...]:
        """The parts; the split itself where it has only one source."""
        return self.parts or (self,)

    @property
    def made_of(self) -> str:
        """` of 10 examples`, where conversations became several rows; else empty."""
        is_split = 0 < self.num_examples < self.num_rows
        return f" of {self.num_examples:,} examples" if is_split else ""

    @property
    def answer_lengths(self) -> tuple[float, float] | None:
        """The mean tokens of chosen and of rejected answers; None where answers have no kinds."""
        if not self.num_chosen_tokens:
            return None
        num_chosen = self.num_desirable_rows or self.num_rows
        num_rejected = self.num_rows - self.num_desirable_rows
        rejected_tokens = self.num_trained_tokens - self.num_chosen_tokens
        return self.num_chosen_tokens / num_chosen, rejected_tokens / max(1, num_rejected)


class LearnedData(Record):
    """How the rows that an adapter learned from are read again, and known to be the same."""

    settings: DataSettings
    seed: int
    task: Task
    objective: LearningObjective = LearningObjective.SFT
    """What was learned from them, as the task is what for."""
    labels: tuple[str, ...]
    sources: tuple[str, ...]
    """The sha256 of the training rows of each source."""
    replayed: "LearnedData | None" = None
    """Of the adapter that it began as, if it replayed `settings.replay` of those rows."""


class DataRecord(Record):
    """The data as validated and tokenized before step 1."""

    settings: DataSettings
    objective: LearningObjective = LearningObjective.SFT
    """What is learned from the rows; of pairs, two tokenized rows are one."""
    seed: int
    row_format: str
    """Of all sources, in the order of the first with each, separated by commas."""
    template: str
    """Of the conversations, if there are any, else of the plain texts."""
    chat_template: str | None = None
    """The content of the file `data.chat_template`, if one was given."""
    unread_chat_template_kwargs: tuple[str, ...] = ()
    """Those of `data.chat_template_kwargs` that the chat template never reads."""
    train: SplitRecord
    eval: SplitRecord | None
    replayed: LearnedData | None = None
    """What the adapter to begin with learned from, where rows of that are replayed."""
    num_eval_rows_in_train: int
    labels: tuple[str, ...] = ()
    """The classes in the order of the model's outputs, where rows or words are classified."""
    untrained_labels: tuple[str, ...] = ()
    """Classes that no training row has."""
    unread: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it
    """Columns that are not read, each with the number of rows that have a value there."""
    odd: tuple[OddRows, ...] = ()
    """What is probably a mistake, by kind."""
    shown: tuple[ShownRow, ...] = ()
    """The first training row of each source."""
    base_sha256: str
    """Of the base whose tokenizer made the tokens: its weights and its configuration."""
    tokens: tuple[FileRecord, ...]
    """The tokenized rows: the training rows and, if there are any, the held-out rows."""

    def learned(self, task: Task) -> LearnedData:
        """Return how the training rows can be read again.

        Args:
            task: what was learned from them.
        """
        return LearnedData(
            settings=self.settings,
            seed=self.seed,
            task=task,
            objective=self.objective,
            labels=self.labels,
            sources=tuple(part.sha256 for part in self.train.own),
            replayed=self.replayed,
        )

    @property
    def rows_per_item(self) -> int:
        """The tokenized rows of what a batch counts: two of a pair, else one."""
        return 2 if self.objective.learns_pairs else 1

    @property
    def chat(self) -> ChatOptions:
        """What the chat template is given beside a conversation."""
        return ChatOptions.of(self.settings)
