"""Turn answers that were judged or corrected into rows of preferences."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tasks.config import CorrectionForm, CorrectionsConfig
from tasks.engine.data.rows import (
    Review,
    ReviewColumns,
    Row,
    Verdict,
    label_rows,
    naming_row,
    pair_row,
    read_lines,
    read_review,
    renamed,
    write_rows,
)
from tasks.engine.excerpts import listed
from tasks.engine.scoring import check_output
from tasks.errors import UserError
from tasks.records import CorrectionsRecord, FileRecord
from tasks.runtime import home
from tasks.runtime.atomic_files import atomic_file

_OTHER_WAY = {
    CorrectionForm.PAIRS: "a pair needs a correction that differs from the answer; accepted and "
    "rejected answers alone can be written as labels",
    CorrectionForm.LABELS: "a label needs a verdict or a correction",
}


def write_corrections(config: CorrectionsConfig) -> CorrectionsRecord:
    """Write the pairs or labels of a file of judged answers, atomically.

    Paths are relative to the home folder, as those of `predict` are.

    Raises:
        UserError: the input is not a file of judged answers, a row of it can't be used, nothing can
            be learned from it, or the output exists.
    """
    source = home.home() / Path(config.input).expanduser()
    output = home.home() / Path(config.output).expanduser()
    check_output(output, overwrite=config.overwrite)
    reviews = _reviews(source, config)
    rows = _rows(source, reviews, config)
    if not rows:
        counts = counts_text(Counter(one.verdict for one in reviews))
        raise UserError(
            f"{source}: there is nothing to learn from its {len(reviews)} rows ({counts}); "
            f"{_OTHER_WAY[config.form]}"
        )
    with atomic_file(output) as sibling:
        write_rows(rows, sibling, output.suffix.lower())
    return _record(output, rows, reviews)


def counts_text(counts: Counter[Verdict]) -> str:
    """Return how many answers there are of each verdict."""
    told = {
        Verdict.CORRECTED: "corrected",
        Verdict.ACCEPTED: "accepted",
        Verdict.REJECTED: "rejected without a correction",
        Verdict.UNCHANGED: "corrected to the same answer",
        Verdict.UNJUDGED: "without a verdict",
        Verdict.UNANSWERED: "without an answer",
    }
    return ", ".join(f"{counts[one]:,} {how}" for one, how in told.items())


def lines(record: CorrectionsRecord, form: CorrectionForm) -> str:
    """Return what there is to say of the corrections, for the terminal."""
    counts = Counter({one: getattr(record, f"num_{one}") for one in Verdict})
    versions = (
        f"answered by {version or 'an adapter that is not recorded'}: {number:,}"
        for version, number in record.num_rows_per_version.items()
    )
    first = f"{record.num_written:,} {form} from {record.num_rows:,} rows: {record.output.path}"
    return "\n".join([first, counts_text(counts), *versions])


def _reviews(source: Path, config: CorrectionsConfig) -> list[Review]:
    columns = ReviewColumns(
        answer=config.answer_column,
        error=config.error_column,
        version=config.version_column,
        accepted=config.accepted_column,
        correction=config.correction_column,
    )
    given = []
    for one in read_lines(source):
        if isinstance(one, UserError):
            raise one
        given.append(one)
    _check_columns(source, given, columns)
    reviews = []
    for number, row in enumerate(renamed(given, config.columns, "columns"), 1):
        with naming_row(str(source), number):
            reviews.append(read_review(number, row, columns))
    return reviews


def _check_columns(source: Path, rows: Sequence[Row], columns: ReviewColumns) -> None:
    """Check that somebody has judged answers of `predict`.

    Raises:
        UserError: a column is missing.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    has = f"its columns: {listed(names) or '(none)'}"
    if columns.answer not in names:
        raise UserError(
            f"{source} has no column {columns.answer}, which `adapterflow predict` writes; {has}; "
            "name the column of the answers with answer_column"
        )
    if not {columns.accepted, columns.correction} & set(names):
        raise UserError(
            f"{source} has neither a column {columns.accepted} (true or false) nor a column "
            f"{columns.correction} (the right answer), so nothing says which answers are good; "
            f"{has}; add one, or name it with accepted_column or correction_column"
        )


def _rows(source: Path, reviews: Sequence[Review], config: CorrectionsConfig) -> list[Row]:
    rows: list[Row] = []
    of_pairs = config.form is CorrectionForm.PAIRS
    learned = [
        (number, one)
        for number, one in enumerate(reviews, 1)
        if (one.verdict is Verdict.CORRECTED if of_pairs else one.question)
    ]
    as_text = all(one.is_text for _, one in learned)
    for number, one in learned:
        with naming_row(str(source), number):
            made = (
                [pair_row(one, as_text=as_text)] if of_pairs else label_rows(one, as_text=as_text)
            )
            rows += ({**row, config.version_column: one.version or None} for row in made)
    return rows


def _record(output: Path, rows: Sequence[Row], reviews: Sequence[Review]) -> CorrectionsRecord:
    counts = Counter(one.verdict for one in reviews)
    versions = Counter(one.version for one in reviews if one.question)
    return CorrectionsRecord(
        output=FileRecord.of(output),
        num_written=len(rows),
        num_rows=len(reviews),
        num_corrected=counts[Verdict.CORRECTED],
        num_accepted=counts[Verdict.ACCEPTED],
        num_rejected=counts[Verdict.REJECTED],
        num_unchanged=counts[Verdict.UNCHANGED],
        num_unjudged=counts[Verdict.UNJUDGED],
        num_unanswered=counts[Verdict.UNANSWERED],
        num_rows_per_version=dict(versions.most_common()),
    )
