"""The files that `init` writes: a configuration, and for retraining the rows in two files."""

import shutil
from pathlib import Path

from flows.cli.starting_data import StartingData, starting_data
from flows.cli.starting_point import Given, given_settings, rendered
from tasks.config.data import DataSettings, RowFormat
from tasks.config.evaluation import AnswerKind, EvaluationSettings
from tasks.config.reading import read_config, read_settings
from tasks.config.retrain_adapter import RetrainAdapterConfig
from tasks.config.train_adapter import TrainAdapterConfig
from tasks.engine.data.splits import drawn_rows, write_split
from tasks.engine.excerpts import excerpt
from tasks.engine.scoring import HeldOut, open_held_out
from tasks.errors import UserError
from tasks.records import FileRecord
from tasks.runtime.atomic_files import atomic_folder, check_new, write_atomically

_SEED = 0
_SHARE = 0.1
_ENOUGH = 100
"""Held-out rows that a decision needs by default (`decision.min_rows`)."""
_FEWEST = 2
"""Held-out rows that `decision.min_rows` can be."""
_TRAIN, _HELD_OUT = "train.jsonl", "held-out.jsonl"
_METRICS = {
    AnswerKind.JSON: "field_accuracy",
    AnswerKind.LABELS: "accuracy",
    AnswerKind.TAGS: "accuracy",
    AnswerKind.TEXT: "rouge_l",
}
"""What decides on answers of a kind."""

Written = tuple[TrainAdapterConfig, list[str]]
"""A configuration, and what the user should know about it."""


def write_training(output: Path, source: str, base_model: str, name: str | None) -> Written:
    """Write the configuration of a training.

    Args:
        output: its file.
        source: the data.
        base_model: the base's source.
        name: of the experiment; by default made from the data's.

    Raises:
        UserError: the data can't be trained on, or a setting is out of bounds.
        UnwritableError: the place is not writable.
    """
    data = starting_data(source)
    given = given_settings(data, base_model, name)
    write_atomically(output, rendered(TrainAdapterConfig, given, data))
    return read_config(output), data.notes()


def write_retraining(
    output: Path, source: str, base_model: str, name: str | None, share: float | None
) -> Written:
    """Write the configuration of a retraining, and its rows into a folder beside it.

    After an error, neither is there.

    Args:
        output: the configuration's file.
        source: the data; it is not changed.
        base_model: the base's source.
        name: of the registered model and the experiment; by default made from the data's.
        share: of the rows to hold out; by default a tenth, at least 100, at most half.

    Raises:
        UserError: as `write_training`; or the rows have no answers, are too few, or there is
            already a folder.
        UnwritableError: the place is not writable.
    """
    data = starting_data(source)
    given = given_settings(data, base_model, name)
    folder = output.with_name(f"{given['tracking']['experiment']}-data")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} exists, and may have rows that were added since; choose another --name, or "
            "move the folder away"
        )
    check_new(folder)
    held_out = _held_out(data, share)
    with atomic_folder(folder) as partial:
        apart = partial / _HELD_OUT
        write_split(source, data.rows, held_out, partial / _TRAIN, apart)
        given = _retraining(given, folder.name, _opened(apart, data), data)
        notes = _notes(data, folder, held_out)
        text = rendered(RetrainAdapterConfig, given, data, *notes)
    try:
        write_atomically(output, text)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return read_settings(RetrainAdapterConfig, output), [*data.notes(), *notes]


def _held_out(data: StartingData, share: float | None) -> set[int]:
    """Return the numbers of the rows to hold out."""
    if data.reading.row_format is RowFormat.TEXT:
        raise UserError(
            f"{data.source} is read as plain text, which has no answers to score, so nothing could "
            "be promoted; give rows of a prompt and its answer, or leave out --retrain"
        )
    total = len(data.rows)
    wanted = max(round((share or _SHARE) * total), 0 if share else _ENOUGH)
    held_out = drawn_rows(data.reading.examples, min(wanted, total // 2), _SEED)
    if len(held_out) < _FEWEST:
        raise UserError(
            f"of the {total:,} rows of {data.source}, {len(held_out)} can be held out, and a "
            "decision needs at least 2: rows whose question no other row asks and whose class "
            "others have, and at most half of all; add rows"
            + (", or raise --held-out" if share else "")
        )
    return held_out


def _opened(file: Path, data: StartingData) -> HeldOut:
    """Read the held-out rows as `retrain` will."""
    evaluation = EvaluationSettings(
        rows=str(file.absolute()),
        columns=data.reading.columns,
        sha256=FileRecord.of(file).sha256,
    )
    return open_held_out(evaluation, DataSettings(train=data.source), data.reading.task)


def _retraining(given: Given, folder: str, held_out: HeldOut, data: StartingData) -> Given:
    """Return the settings of a retraining that differ from their defaults."""
    columns = {"columns": data.reading.columns} if data.reading.columns else {}
    num_rows = len(held_out.examples)
    few = {"min_rows": num_rows} if num_rows < _ENOUGH else {}
    return {
        **given,
        "data": {**given["data"], "train": f"{folder}/{_TRAIN}"},
        "registry": {"name": given["tracking"]["experiment"]},
        "evaluation": {
            "rows": f"{folder}/{_HELD_OUT}",
            "sha256": held_out.evaluation.sha256,
            **columns,
        },
        "decision": {"metric": _METRICS[held_out.kind], **few},
    }


def _notes(data: StartingData, folder: Path, held_out: set[int]) -> list[str]:
    """Describe the two files, and how much the held-out rows can show."""
    num_rows = len(held_out)
    train = f"{folder.name}/{_TRAIN}"
    how = (
        f"{num_rows:,} of the rows, drawn by seed {_SEED}, are held out in "
        f"{folder.name}/{_HELD_OUT}; keep that file as it is"
    )
    rest = (
        f"the other {len(data.rows) - num_rows:,} are trained on, from {train}; add new rows "
        f"there, as {excerpt(Path(data.source).name)} is not read again"
    )
    notes = [how, rest]
    if num_rows < _ENOUGH:
        notes.append(
            f"decision.min_rows is {num_rows}, as there are no more held-out rows; only a large "
            f"improvement can be shown on so few: add rows, up to {_ENOUGH} or more"
        )
    return notes
