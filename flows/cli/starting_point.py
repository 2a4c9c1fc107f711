"""The configuration that `init` writes: what is to be decided, and the usual settings as comments.

Settings that few people change are on the page of all settings alone.
"""

import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic.fields import FieldInfo

from flows.cli.starting_data import StartingData
from tasks.config.base_model import Task
from tasks.config.data import RowFormat
from tasks.config.mistakes import validation_message
from tasks.config.preferences import LearningObjective
from tasks.config.section import Section, settings_in
from tasks.config.train_adapter import TrainAdapterConfig
from tasks.engine.excerpts import excerpt
from tasks.errors import UserError
from tasks.runtime.paths import exists

_WIDTH = 100
_LONGEST = 70
"""Characters of a comment beside a setting, if it can be cut earlier."""
_ASIDE = re.compile(r" \([^()]*\)")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_CLAUSE = re.compile(r"[.;:] ")
_ABOUT = (
    "Settings after a # show their defaults; remove the # to change one. All settings: "
    "docs/configuration.md"
)
_USUAL = {
    "base_model": ("task", "dtype", "quantization", "gradient_checkpointing"),
    "data": ("eval", "eval_fraction", "format", "template", "max_length", "max_train_rows"),
    "registry": (),
    "evaluation": ("answers", "max_new_tokens", "batch_size"),
    "decision": ("metric", "margin", "min_rows", "guards", "approval"),
    "tracking": ("experiment", "uri"),
    "lora": ("adapter_name", "r", "lora_alpha", "lora_dropout", "target_modules"),
    "training": (
        "num_train_epochs",
        "batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "early_stopping_patience",
    ),
    "inference": ("sample_rows", "max_new_tokens"),
    "output": ("folder", "keep_runs", "push_to_hub", "license"),
}
"""The sections in the order in which they are written, with the settings usually changed."""

_LEARNING_RATE = 2e-5
"""Of learning from preferences."""

Given = Mapping[str, dict[str, Any]]


def given_settings(data: StartingData, base_model: str, name: str | None = None) -> Given:
    """Return the settings of a training that differ from their defaults.

    Args:
        data: what is trained on.
        base_model: the base's source.
        name: of the experiment; by default made from the data's.

    Raises:
        UserError: the name can't be one of a registered model and a folder, too.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise UserError(
            f"--name is {excerpt(name)!r}; choose a name of up to 60 letters (a to z), digits, _, "
            "- and ."
        )
    reading = data.reading
    task = {} if reading.task is Task.CAUSAL_LM else {"task": reading.task.value}
    columns = {"columns": reading.columns} if reading.columns else {}
    objective = reading.objective
    preferring = {"objective": objective.value, "learning_rate": _LEARNING_RATE}
    return {
        "base_model": {"source": base_model and _absolute(base_model), **task},
        "data": {"train": _absolute(data.source), **columns},
        **({} if objective is LearningObjective.SFT else {"training": preferring}),
        "tracking": {"experiment": data.short_name if name is None else name},
    }


def rendered(
    config: type[TrainAdapterConfig], given: Given, data: StartingData, *more_notes: str
) -> str:
    """Return settings as YAML, with the usual other ones as comments.

    Raises:
        UserError: a setting is out of bounds.
    """
    try:
        settings = config.model_validate(dict(given))
    except pydantic.ValidationError as error:
        raise UserError(validation_message(config, error, dict(given))) from error
    notes = [
        *data.notes(),
        *more_notes,
        _ABOUT,
    ]
    sections = [
        _section(settings, name, given.get(name, {}), data)
        for name in _USUAL
        if name in config.model_fields
    ]
    seed = _line("seed", settings.seed, config.model_fields["seed"], is_comment=True)
    return "".join([*map(_comment, notes), *sections, "\n", seed.removeprefix("  ")])


def _absolute(source: str) -> str:
    """Return a path as absolute, since relative ones are read from the folder of the YAML file."""
    path = Path(source)
    return str(path.absolute()) if exists(path) else source


def _section(
    config: TrainAdapterConfig, name: str, given: Mapping[str, Any], data: StartingData
) -> str:
    section: Section = getattr(config, name)
    values, fields = section.model_dump(mode="json"), settings_in(type(section))
    lines = [_line(key, given[key], fields[key]) for key in given]
    if name == "data":
        lines += _other_columns(data, has_evaluation="evaluation" in type(config).model_fields)
    lines += [
        _line(key, values[key], fields[key], is_comment=True)
        for key in _USUAL[name]
        if key not in given
    ]
    about = _short(type(config).model_fields[name])
    return f"\n# {about}\n{name}:\n" + "".join(lines)


def _other_columns(data: StartingData, *, has_evaluation: bool) -> Iterator[str]:
    for one in data.others:
        if has_evaluation and one.row_format is RowFormat.TEXT:  # which has no answers to score
            continue
        needs = f", with base_model.task {one.task}" if one.task != data.reading.task else ""
        also = ", also in evaluation" if has_evaluation else ""
        yield f"  # columns: {_yaml(one.columns)}  # or {one.row_format}{needs}{also}\n"


def _line(key: str, value: object, field: FieldInfo, *, is_comment: bool = False) -> str:
    setting = f"  {'# ' * is_comment}{key}: {_yaml(value)}"
    return f"{setting:<34}  # {_short(field)}\n"


def _short(field: FieldInfo) -> str:
    """Return the first clause of a setting's description, or the values that it describes."""
    text = " ".join((field.description or "").split())
    kind = field.annotation
    if text.startswith("`") and isinstance(kind, type) and issubclass(kind, StrEnum):
        return ", ".join(kind)
    text = _CLAUSE.split(_ASIDE.sub("", text), maxsplit=1)[0].rstrip(".")
    return text if len(text) <= _LONGEST else text[: text.rfind(", ", 0, _LONGEST)]


def _comment(text: str) -> str:
    lines = textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="#   ",
        break_on_hyphens=False,
    )
    return "\n".join(lines) + "\n"


def _yaml(value: object) -> str:
    dumped = yaml.safe_dump(
        value, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    line = dumped.removesuffix("\n").removesuffix("...").rstrip()
    # Quoted by YAML, a line break in a column's name would end a comment.
    return json.dumps(value) if len(line.splitlines()) > 1 else line
