"""A file of rows to answer and the file for the answers, checked before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.config import PredictBatchConfig
from tasks.engine.data.row_sources import Row, read_lines
from tasks.engine.scoring.prediction import Answered, Question, read_row
from tasks.errors import UserError
from tasks.runtime import home


@dataclass(frozen=True)
class QuestionFile:
    """What is asked, and where the answers go."""

    source: Path
    output: Path
    rows: Sequence[Row | UserError]
    """As they stand in the file; a line that can't be read is the error that says why."""
    questions: Sequence[Question | Answered]
    """One a row; what can't be asked is answered with its error."""


def open_questions(config: PredictBatchConfig) -> QuestionFile:
    """Read the questions, and check that their answers have a place.

    Relative paths are below the home, not the working directory, which a worker may not share.

    Raises:
        UserError: the input can't be read or no row of it can be answered, or the output is there
            already, has no folder, or would lose a column of the input.
    """
    source = home.home() / Path(config.input).expanduser()
    output = _output(config, source)
    if output.exists() and not config.overwrite:
        raise UserError(f"{output} exists; give another name, or set overwrite")
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent} to write {output.name} to")
    rows = read_lines(source)
    if not rows:
        raise UserError(f"{source} has no rows; at least one is needed")
    check_columns(rows, (config.answer_column, config.error_column))
    names = [adapter.name for adapter in config.adapters]
    questions = [
        read_row(number, row, names, config.adapter_column) for number, row in enumerate(rows, 1)
    ]
    bad = [one.error for one in questions if isinstance(one, Answered)]
    if len(bad) == len(rows):
        raise UserError(f"{source}: none of its {len(rows)} rows can be answered: {bad[0]}")
    return QuestionFile(source, output, rows, questions)


def _output(config: PredictBatchConfig, source: Path) -> Path:
    if config.output is not None:
        return home.home() / Path(config.output).expanduser()
    home.outputs().mkdir(parents=True, exist_ok=True)
    return home.outputs() / f"answers-{source.name}"


def check_columns(rows: Sequence[Row | UserError], new: Sequence[str]) -> None:
    """Check that new columns would replace none of the rows'.

    Raises:
        UserError: one would.
    """
    for row in rows:
        taken = [] if isinstance(row, UserError) else [column for column in new if column in row]
        if taken:
            raise UserError(
                f"the rows have a column {taken[0]!r} already; name the new columns otherwise by "
                "answer_column, probability_column and error_column"
            )
