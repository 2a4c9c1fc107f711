"""The configuration of the batch inference flow: rows in, the same rows with answers out."""

from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, model_validator

from tasks.config.adapter import AdapterSettings
from tasks.config.base_model import BaseModelSettings
from tasks.config.section import Section

ROW_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Extensions of the files that rows are read from and written to."""


class PredictBatchConfig(Section):
    """All that a user may set for answering a file of rows."""

    model_config = ConfigDict(title="Answer a file of rows")

    adapters: list[AdapterSettings] = Field(min_length=1)
    """The adapters, all of them on one base in memory."""

    input: str = Field(min_length=1)
    """A JSONL, CSV, TSV or Parquet file of rows as in training; their answers need not be there."""

    output: str | None = Field(default=None, min_length=1)
    """A file of the same kind, which gets the rows in their order with new columns: the answer,
    and what was wrong with a row that has none; `answers-` and the input's name in the home's
    `outputs/` unless set."""

    base_model: BaseModelSettings | None = None
    """The base; the one that the first adapter says it was made for, unless set."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer in tokens."""

    batch_size: int = Field(default=16, ge=1)
    """Prompts answered at once; those of similar length are put together."""

    chunk_rows: int = Field(default=256, ge=1)
    """Rows after which the answers so far are safe: what a kill costs at most."""

    adapter_column: str = Field(default="adapter", min_length=1)
    """The column that names a row's adapter, where there are several."""

    answer_column: str = Field(default="answer", min_length=1)
    """The new column of the answers."""

    probability_column: str = Field(default="probability", min_length=1)
    """A new column beside it where rows are classified: the probability of the class."""

    error_column: str = Field(default="error", min_length=1)
    """The new column that says why a row has no answer."""

    overwrite: bool = False
    """Replace an output file that is there."""

    tracking_uri: str | None = Field(default=None, min_length=1)
    """Where MLflow is, for adapters that it keeps, without a password; `MLFLOW_TRACKING_URI`, or
    the embedded store, unless set."""

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [adapter.name for adapter in self.adapters]
        if len(set(names)) != len(names):
            raise ValueError(
                f"the adapters are named {', '.join(names)}; give each a `name` of its own"
            )
        columns = (
            self.adapter_column,
            self.answer_column,
            self.probability_column,
            self.error_column,
        )
        if len(set(columns)) != len(columns):
            raise ValueError(f"the columns are {', '.join(columns)}; they must differ")
        return self

    @model_validator(mode="after")
    def _files_are_of_one_kind(self) -> Self:
        kinds = [Path(file).suffix.lower() for file in (self.input, self.output or self.input)]
        if kinds[0] not in ROW_SUFFIXES or kinds[0] != kinds[1]:
            raise ValueError(
                f"input is {self.input} and output {self.output}; both must be of one of the kinds "
                f"{', '.join(ROW_SUFFIXES)}"
            )
        return self
