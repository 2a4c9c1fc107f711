"""The share of rows whose answer matches the expected one exactly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import JUDGED, PREFERENCES, RowFormat, Task
from tasks.engine.adapters import AdapterFolder, check_tokenizer, template_of
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.rows import (
    Example,
    count_unread,
    detect_row_format,
    naming_row,
    read_example,
    read_rows,
    renamed,
)
from tasks.engine.data.tokens import naming
from tasks.engine.objectives import Objective, matches, objective_of
from tasks.errors import UserError
from tasks.records import ChatOptions
from tasks.runtime.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def exact_match_on(  # noqa: PLR0913 - what to answer, with what, how long, how many at once
    rows: Path,
    adapter: AdapterFolder,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    task: Task,
    max_new_tokens: int,
    batch_size: int,
) -> Callable[["PreTrainedModel"], float]:
    """Return a function that computes a model's exact-match rate (0 to 1) on the rows of a file.

    Args:
        rows: the file.
        adapter: the adapter whose chat template renders the prompts.
        tokenizer: the tokenizer of the base; must be the adapter's.
        task: the task of the models to score.
        max_new_tokens: most tokens of an answer.
        batch_size: prompts per batch.

    Raises:
        UserError: the rows can't be read or rendered, have no answers, or are plain text; or the
            tokenizer is not the adapter's.
    """
    kind = objective_of(task)
    answered = read_answered(rows, kind)
    examples = answered.examples
    tokenizer = check_tokenizer(adapter, tokenizer)
    template = template_of(adapter, tokenizer)
    chat = ChatOptions.in_manifest(adapter.manifest)
    renderer = Renderer.of(tokenizer, template, answered.row_format, chat=chat)
    with naming(str(rows)):
        prompts = [kind.prompt(renderer, example) for example in examples]
        expected = [kind.expected(renderer, example) for example in examples]

    def score(model: "PreTrainedModel") -> float:
        with progress("answer") as shown:
            shown.at(0, len(prompts))
            answers = kind.answer(
                model,
                tokenizer,
                prompts,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                on_progress=lambda count: shown.add(count, len(prompts)),
            )
        right = (matches(one.text, wanted) for one, wanted in zip(answers, expected, strict=True))
        return sum(right) / len(examples)

    return score


@dataclass(frozen=True)
class AnsweredRows:
    """Rows whose answers are known."""

    row_format: RowFormat
    examples: list[Example]
    unread: Mapping[str, int]
    """The number of rows with content in a column that is not read, by the column's name."""


def read_answered(
    file: Path, kind: Objective, columns: Mapping[str, str] | None = None
) -> AnsweredRows:
    """Read the rows of a file, each with its answer.

    Args:
        file: the file.
        kind: what is learned from such rows.
        columns: from names of ours to those in the file, where they differ.

    Raises:
        UserError: the rows can't be read, have no answers, or are plain text.
    """
    given = read_rows(str(file), "train", None)
    rows = list(renamed(given, columns or {}, "evaluation.columns"))
    # Of a pair, the chosen answer is the expected one; of judged answers, each desirable one.
    compared = (*PREFERENCES, *JUDGED) if kind.traits.generates else ()
    formats = (*kind.traits.row_formats, *compared)
    row_format = detect_row_format(rows[0], str(file), learnable=formats)
    if row_format is RowFormat.TEXT:
        raise UserError(
            f"{file} has rows of plain text, which have no answers to score; possible are rows of "
            "a prompt and its answer"
        )
    examples = []
    for number, row in enumerate(rows, 1):
        with naming_row(str(file), number):
            example = read_example(number, row, row_format)
        if example.is_desirable is not False:
            examples.append(example)
    if not examples:
        raise UserError(f"{file} has no desirable answers (label: true) to compare others with")
    return AnsweredRows(row_format, examples, count_unread(rows, row_format))
