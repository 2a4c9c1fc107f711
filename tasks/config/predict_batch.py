"""The configuration of the batch inference flow: rows in, the same rows with answers out."""

from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, model_validator

from tasks.config.adapter import AdapterSettings
from tasks.config.base_model import BaseModelSettings
from tasks.config.columns import ColumnNames
from tasks.config.section import Section

ROW_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Suffixes of the files that rows are read from and written to."""


class PredictBatchConfig(Section):
    """All settings of `adapterflow predict`."""

    model_config = ConfigDict(title="Answer a file of rows")

    adapters: list[AdapterSettings] = Field(min_length=1)
    """The adapters, all loaded on one base in memory. Or one folder of `adapterflow variants`,
    which stands for the adapters of the set, and for the column that it was split by."""

    input: str = Field(min_length=1)
    """A JSONL, CSV, TSV or Parquet file of rows as in training; the answers may be missing."""

    columns: ColumnNames = Field(default_factory=dict)
    """Columns that have other names in the input, as in `data.columns`; the output keeps the
    input's names."""

    output: str | None = Field(default=None, min_length=1)
    """A file of the same kind for the rows, in their order, with new columns: the answer, or the
    error of a row that has none. By default `outputs/answers-INPUT_NAME` in the home folder."""

    base_model: BaseModelSettings | None = None
    """The base model; by default the one that the first adapter was trained on."""

    max_new_tokens: int = Field(default=128, ge=1, le=10_000_000)
    """Maximum length of an answer in tokens."""

    batch_size: int = Field(default=16, ge=1, le=1_000_000)
    """Prompts answered per batch, of similar length; up to four times as many where that takes
    little memory, unless it is 1."""

    chunk_rows: int = Field(default=256, ge=1, le=10**9)
    """Number of rows after which answers are saved; an interruption costs at most these rows."""

    adapter_column: str = Field(default="adapter", min_length=1)
    """The column that selects a row's adapter; needed with several adapters."""

    answer_column: str = Field(default="answer", min_length=1)
    """The new column for the answers."""

    probability_column: str = Field(default="probability", min_length=1)
    """The new column for the probability of the class, where rows or words are classified."""

    version_column: str = Field(default="adapter_version", min_length=1)
    """The new column for the adapter that answered: where it is from, an alias of MLflow as the
    version that it meant, and the beginning of its weights' sha256."""

    error_column: str = Field(default="error", min_length=1)
    """The new column for the reason why a row has no answer."""

    overwrite: bool = False
    """Replace an existing output file."""

    tracking_uri: str | None = Field(default=None, min_length=1)
    """The MLflow tracking URI, without a password, for adapters in MLflow; by default
    `MLFLOW_TRACKING_URI`, the server of `adapterflow up` where it runs, or else the embedded
    store."""

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [adapter.name for adapter in self.adapters]
        if len(set(names)) != len(names):
            raise ValueError(
                f"the adapters are named {', '.join(names)}; give each a different `name`"
            )
        values = [adapter.value or adapter.name for adapter in self.adapters]
        if len(set(values)) != len(values):
            raise ValueError(
                f"the adapters are for the values {', '.join(values)}; give each a different one"
            )
        columns = (
            self.adapter_column,
            self.answer_column,
            self.probability_column,
            self.version_column,
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
                f"input is {self.input} and output {self.output}; both must have the same suffix, "
                f"one of {', '.join(ROW_SUFFIXES)}"
            )
        return self
