"""The file of rows to answer and the file for the answers, checked before a model is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.config import PredictBatchConfig
from tasks.engine.data.rows import Row, read_lines, renamed
from tasks.engine.scoring.prediction import Answered, Question, read_row
from tasks.errors import UserError
from tasks.runtime import home
from tasks.runtime.paths import check_folder


@dataclass(frozen=True)
class QuestionFile:
    """The rows to answer, and where the answers are written to."""

    source: Path
    output: Path
    rows: Sequence[Row | UserError]
    """The rows as they are in the file; in place of a row that can't be read, its error."""
    questions: Sequence[Question | Answered]
    """One per row; a row that can't be answered has its error as the outcome."""


def open_questions(config: PredictBatchConfig) -> QuestionFile:
    """Read the questions, and check that the answers can be written.

    Paths are relative to the home rather than the working directory, which a worker may not share.

    Raises:
        UserError: the input can't be read or none of its rows can be answered; or the output file
            exists, its folder does not, or a new column has the name of an input column.
    """
    source = home.home() / Path(config.input).expanduser()
    output = _output(config, source)
    check_output(output, overwrite=config.overwrite)
    rows = read_lines(source)
    if not rows:
        raise UserError(f"{source} has no rows; at least one is needed")
    check_columns(rows, (config.answer_column, config.version_column, config.error_column))
    adapters = {one.value or one.name: one.name for one in config.adapters}
    questions = [
        read_row(number, row, adapters, config.adapter_column)
        for number, row in enumerate(_renamed(rows, config.columns), 1)
    ]
    bad = [one.error for one in questions if isinstance(one, Answered)]
    if len(bad) == len(rows):
        raise UserError(f"{source}: none of its {len(rows)} rows can be answered: {bad[0]}")
    return QuestionFile(source, output, rows, questions)


def _renamed(
    rows: Sequence[Row | UserError], columns: Mapping[str, str]
) -> Iterator[Row | UserError]:
    """Yield rows whose columns have our names, and errors as they are."""
    readable = renamed((one for one in rows if not isinstance(one, UserError)), columns, "columns")
    for row in rows:
        yield row if isinstance(row, UserError) else next(readable)


def _output(config: PredictBatchConfig, source: Path) -> Path:
    if config.output is not None:
        return home.home() / Path(config.output).expanduser()
    home.outputs().mkdir(parents=True, exist_ok=True)
    return home.outputs() / f"answers-{source.name}"


def check_output(output: Path, *, overwrite: bool) -> None:
    """Check that a file of rows can be written.

    Args:
        output: absolute.
        overwrite: whether the file may exist.

    Raises:
        UserError: it exists or is a folder, or its folder does not exist, or can't be written to.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file in it")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; choose another output, or set overwrite")
    if not output.parent.is_dir():
        raise UserError(
            f"the folder {output.parent} for {output.name} does not exist; create it, or choose "
            "another output"
        )
    check_folder(output.parent, "the folder of the output")


def check_columns(rows: Sequence[Row | UserError], new: Sequence[str]) -> None:
    """Check that new columns do not replace any of the rows' columns.

    Raises:
        UserError: a row has a column of that name.
    """
    for row in rows:
        taken = [] if isinstance(row, UserError) else [column for column in new if column in row]
        if taken:
            raise UserError(
                f"the rows already have a column {taken[0]!r}; choose other names with "
                "answer_column, probability_column, version_column and error_column"
            )
