"""The configuration that `init` writes: YAML with every setting, most of them commented out."""

import math
import textwrap
from pathlib import Path

import pydantic
import yaml

from tasks.config.base_model import Task
from tasks.config.data import GENERATIVE, RowFormat
from tasks.config.mistakes import validation_message
from tasks.config.section import Section
from tasks.config.train_adapter import TrainAdapterConfig
from tasks.engine.data.column_names import proposed_columns, renamed_row
from tasks.engine.data.reading_errors import naming_row
from tasks.engine.data.row_formats import detect_row_format, read_example
from tasks.engine.data.row_sources import Row, read_rows
from tasks.errors import UserError
from tasks.runtime.paths import exists

_WIDTH = 100
_LIVE = {
    "base_model": ("source", "task", "dtype", "quantization"),
    "data": ("train", "eval_fraction", "max_length"),
    "lora": ("r", "lora_dropout", "target_modules"),
    "training": ("num_train_epochs", "batch_size", "learning_rate"),
    "inference": ("sample_rows",),
    "tracking": ("experiment",),
}


def starting_configuration(data: Path, base_model: str) -> str:
    """Return YAML that trains `base_model` on `data`, with the default of every other setting.

    Raises:
        UserError: the data cannot be read, its columns match no row format, a row is malformed, or
            the base model's name is empty.
    """
    rows = read_rows(str(data), "train", None)
    row_format, columns = _detected(rows[0], str(data))
    task = Task.CAUSAL_LM
    if row_format is RowFormat.TAGGED:
        task = Task.TOKEN_CLASSIFICATION
    elif row_format is RowFormat.TEXT and "label" in rows[0]:
        row_format, task = RowFormat.LABELLED, Task.SEQUENCE_CLASSIFICATION
    _check(rows, row_format, columns, str(data))
    given = {
        "base_model": {"source": base_model and _absolute(Path(base_model)), "task": task},
        "data": {"train": _absolute(data), "columns": columns},
    }
    try:
        config = TrainAdapterConfig.model_validate(given)
    except pydantic.ValidationError as error:
        raise UserError(validation_message(TrainAdapterConfig, error, given)) from error
    return _opening(data, len(rows), row_format) + "".join(
        _entry(config, name) for name in TrainAdapterConfig.model_fields
    )


def _detected(row: Row, source: str) -> tuple[RowFormat, dict[str, str]]:
    """Return the format of the rows, and the names of its columns where they are others."""
    learnable = [*GENERATIVE, RowFormat.TAGGED]
    try:
        return detect_row_format(row, source, learnable=learnable), {}
    except UserError:
        columns = proposed_columns(row)
        if not columns:
            raise
        return detect_row_format(renamed_row(row, columns), source, learnable=learnable), columns


def _check(rows: list[Row], row_format: RowFormat, columns: dict[str, str], source: str) -> None:
    for number, row in enumerate(rows, 1):
        with naming_row(source, number):
            read_example(number, renamed_row(row, columns), row_format)


def _absolute(path: Path) -> str:
    """Return a path as absolute, since relative ones are read from the folder of the YAML file."""
    return str(path.absolute()) if exists(path) else str(path)


def _opening(data: Path, num_rows: int, row_format: RowFormat) -> str:
    return _comment(
        f"A starting point: the {num_rows} rows of {data.name} have the format {row_format}. "
        "Settings after a single # show their defaults; remove the # to change one.",
        indent="",
    )


def _entry(config: TrainAdapterConfig, name: str) -> str:
    """Render a section with all of its settings, or a top-level setting."""
    value = getattr(config, name)
    about = "\n" + _comment(TrainAdapterConfig.model_fields[name].description or "", indent="")
    if not isinstance(value, Section):
        return about + f"{name}: {_yaml(value)}\n"
    values = value.model_dump(mode="json")
    return f"{about}{name}:\n" + "".join(
        _comment(field.description or "", indent="  ")
        + ("  " if key in _LIVE.get(name, ()) or _is_set(value, key) else "  # ")
        + f"{key}: {_yaml(values[key])}\n"
        for key, field in type(value).model_fields.items()
    )


def _is_set(section: Section, key: str) -> bool:
    default = type(section).model_fields[key].get_default(call_default_factory=True)
    return bool(getattr(section, key) != default)


def _comment(text: str, indent: str) -> str:
    start = f"{indent}## " if indent else "# "
    lines = textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=start,
        subsequent_indent=start,
        break_on_hyphens=False,
    )
    return "\n".join(lines) + "\n"


def _yaml(value: object) -> str:
    dumped = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("...").rstrip()
