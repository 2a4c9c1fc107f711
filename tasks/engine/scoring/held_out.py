"""The held-out rows of a comparison: one file, fixed by its sha256."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.config import (
    AnswerKind,
    DataSettings,
    EvaluationSettings,
    LossOn,
    OlderRowsSettings,
    OnLostAnswer,
    RowFormat,
    Task,
)
from tasks.config.reading import missing_file
from tasks.engine.base import limits_of
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.rows import Example
from tasks.engine.data.splits import Split
from tasks.engine.data.tokens import TokenizedRow, TokenizedSplit
from tasks.engine.objectives import Objective, objective_of
from tasks.engine.scoring.exact_match import read_answered
from tasks.engine.scoring.row_metrics import RowMetric, resolve_kind, row_metrics
from tasks.errors import UserError
from tasks.records import BaseSource, FileRecord
from tasks.runtime import home

_KINDS = {RowFormat.LABELLED: AnswerKind.LABELS, RowFormat.TAGGED: AnswerKind.TAGS}
"""The kind of answers, where the rows' format alone determines it."""


@dataclass(frozen=True)
class HeldOut:
    """The rows that a comparison is decided on, and the metrics computed on them."""

    task: Objective
    file: FileRecord
    row_format: RowFormat
    examples: Sequence[Example]
    data: DataSettings
    evaluation: EvaluationSettings
    kind: AnswerKind
    metrics: Mapping[str, RowMetric]
    unread: Mapping[str, int]
    """The number of rows with content in a column that is not read, by the column's name."""

    @property
    def source(self) -> str:
        """The path of the file."""
        return str(self.file.path)

    @property
    def metric_names(self) -> list[str]:
        """The names of all metrics that a decision can be based on."""
        return ["loss", "perplexity", *["macro_f1"] * self.kind.are_classes, *self.metrics]

    @property
    def expected(self) -> list[str]:
        """The expected answers."""
        return [example.answer for example in self.examples]

    def tokenized(self, renderer: Renderer, base: BaseSource) -> Sequence[TokenizedRow]:
        """Return the rows tokenized as in training, with labels on the final answer only.

        Raises:
            UserError: the chat template rejects a row, or `data.max_length` leaves nothing of an
                answer.
        """
        settings = self.data.model_copy(update={"on_lost_answer": OnLostAnswer.ERROR})
        if self.task.traits.generates:
            settings = settings.model_copy(update={"loss_on": LossOn.COMPLETION})
            renderer = replace(renderer, trains_last_only=True)
        split = Split(self.source, self.evaluation.sha256, tuple(self.examples))
        tokenized = self.task.tokenize(split, renderer, settings, base)
        return TokenizedSplit.of(split, tokenized).rows

    def check(self, renderer: Renderer, base: BaseSource) -> None:
        """Check that all rows can be answered and scored.

        Raises:
            UserError: as `tokenized`; or a row has a label that the model does not know, or a
                prompt and its answer exceed the model's positions.
        """
        self._check_classes(base.labels)
        self.tokenized(renderer, base)
        limit = limits_of(base).positions
        # Texts to classify are truncated, as in training.
        if not limit or not self.task.traits.generates:
            return
        for example in self.examples:
            tokens = self.task.prompt(renderer, example).tokens(renderer.tokenizer)
            if len(tokens) + self.evaluation.max_new_tokens > limit:
                raise UserError(
                    f"{self.source}, row {example.row}: the prompt has {len(tokens)} tokens; with "
                    f"evaluation.max_new_tokens {self.evaluation.max_new_tokens} the model takes "
                    f"at most {limit - self.evaluation.max_new_tokens}; shorten the row or lower "
                    "evaluation.max_new_tokens"
                )

    def _check_classes(self, known: Sequence[str]) -> None:
        if spaced := [name for name in known if self.kind is AnswerKind.TAGS and " " in name]:
            raise UserError(
                f"the tag {spaced[0]!r} contains a space, which separates the tags of an answer; "
                "rename the tag"
            )
        for example in self.examples:
            if unknown := [label for label in example.labels if label not in known]:
                raise UserError(
                    f"{self.source}, row {example.row}: the label {unknown[0]!r} is not among the "
                    f"{len(known)} classes of the training rows or of base_model.labels; correct "
                    "it, or train on rows with it"
                )


def open_older(
    older: OlderRowsSettings, evaluation: EvaluationSettings, data: DataSettings, task: Task
) -> HeldOut:
    """Read the older rows of a comparison, which are scored as those that decide.

    Args:
        older: the file of the rows, and its sha256.
        evaluation: the metrics.
        data: how rows are tokenized in training.
        task: the task of the models.

    Raises:
        UserError: as `open_held_out`.
    """
    place = {name: getattr(older, name) for name in ("rows", "columns", "sha256")}
    return open_held_out(evaluation.model_copy(update=place), data, task, "decision.older")


def open_held_out(
    evaluation: EvaluationSettings, data: DataSettings, task: Task, section: str = "evaluation"
) -> HeldOut:
    """Read the held-out rows of a comparison.

    Args:
        evaluation: the file of the rows, its sha256, and the metrics.
        data: how rows are tokenized in training.
        task: the task of the models.
        section: of the configuration that names the file, for messages.

    Raises:
        UserError: the file is missing or does not have the configured sha256, a row has no answer,
            or one of the user's metrics can't be imported.
    """
    # Relative to the home rather than the working directory, which a worker may not share.
    path = home.home() / Path(evaluation.rows).expanduser()
    if not path.is_file():
        raise UserError(f"{section}.rows: {missing_file(path)}")
    file = FileRecord.of(path)
    if file.sha256 != evaluation.sha256:
        raise UserError(
            f"{section}.rows {path} has the sha256 {file.sha256}, but {section}.sha256 is "
            f"{evaluation.sha256}; scores on different rows are not comparable: restore the file, "
            f"or set {section}.sha256 to the new value"
        )
    objective = objective_of(task)
    rows = read_answered(path, objective, evaluation.columns)
    expected = [example.answer for example in rows.examples]
    kind = resolve_kind(_KINDS.get(rows.row_format, evaluation.answers), expected)
    return HeldOut(
        task=objective,
        file=file,
        row_format=rows.row_format,
        examples=rows.examples,
        data=data,
        evaluation=evaluation,
        kind=kind,
        metrics=row_metrics(kind, expected, evaluation.metrics),
        unread=rows.unread,
    )
