"""The configuration of `adapterflow corrections`: judged answers in, rows of preferences out."""

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, model_validator

from tasks.config.columns import ColumnNames
from tasks.config.predict_batch import ROW_SUFFIXES
from tasks.config.section import Section

_LEARNED = ("prompt", "messages", "system", "tools", "chosen", "rejected", "completion", "label")
"""Columns of the rows that are written, beside the version."""


class CorrectionForm(StrEnum):
    """What judged answers become."""

    PAIRS = "pairs"
    LABELS = "labels"


class CorrectionsConfig(Section):
    """All settings of `adapterflow corrections`."""

    model_config = ConfigDict(title="Learn from corrections")

    input: str = Field(min_length=1)
    """A file that `adapterflow predict` has written, with a column of corrections, of verdicts, or
    both."""

    output: str = Field(min_length=1)
    """A JSONL, CSV, TSV or Parquet file for the rows."""

    form: CorrectionForm = CorrectionForm.PAIRS
    """`pairs` are rows with `prompt`, `chosen` (the correction) and `rejected` (the answer), for
    `training.objective: dpo`. `labels` are rows with `prompt`, `completion` and `label` (whether it
    is good), for KTO."""

    columns: ColumnNames = Field(default_factory=dict)
    """Columns of the questions that have other names in the input, as in `data.columns`."""

    answer_column: str = Field(default="answer", min_length=1)
    """The column of the answers."""

    error_column: str = Field(default="error", min_length=1)
    """The column of the reasons why a row has no answer."""

    version_column: str = Field(default="adapter_version", min_length=1)
    """The column of the adapter that answered, in the input and in the output."""

    accepted_column: str = Field(default="accepted", min_length=1)
    """The column of verdicts: true or false, or empty where nobody judged."""

    correction_column: str = Field(default="correction", min_length=1)
    """The column of corrections: the right answer as text or as messages, or empty."""

    overwrite: bool = False
    """Replace an existing output file."""

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> Self:
        columns = (
            self.answer_column,
            self.error_column,
            self.version_column,
            self.accepted_column,
            self.correction_column,
        )
        if len(set(columns)) != len(columns):
            raise ValueError(f"the columns are {', '.join(columns)}; they must differ")
        if self.version_column in _LEARNED:
            raise ValueError(
                f"version_column is {self.version_column}, which is a column of the rows that are "
                "written; rename it in the file"
            )
        return self

    @model_validator(mode="after")
    def _files_are_of_known_kinds(self) -> Self:
        for name, file in (("input", self.input), ("output", self.output)):
            if Path(file).suffix.lower() not in ROW_SUFFIXES:
                raise ValueError(
                    f"{name} is {file}; its suffix must be one of {', '.join(ROW_SUFFIXES)}"
                )
        return self
