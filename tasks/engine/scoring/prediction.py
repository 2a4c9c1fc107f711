"""Answer rows, each by the adapter it names, all on one base and in batches of similar length."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import RowFormat
from tasks.config.columns import value_text
from tasks.engine.adapters import AdapterSet
from tasks.engine.base import describe_unknown, end_ids
from tasks.engine.data.rendering import Prompt, Renderer
from tasks.engine.data.rows import BadRowError, Example, Row, read_question, refusing_row
from tasks.engine.excerpts import excerpt, listed
from tasks.engine.objectives import objective_of
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Question:
    """A row to answer, and the adapter that answers it."""

    adapter: str
    row_format: RowFormat
    example: Example


@dataclass(frozen=True)
class Answered:
    """The outcome of a row: its answer, or the error that prevents one."""

    answer: str | None = None
    probability: float | None = None
    """Probability of the answer, 0 to 1, if rows are classified."""
    error: str | None = None
    version: str | None = None
    """The adapter that answered, once it is known which versions the adapters are."""


def read_row(
    number: int, row: Row | UserError, adapters: Mapping[str, str], column: str
) -> Question | Answered:
    """Return a row's question and the adapter that answers it, or the row's error.

    Args:
        number: number of the row in its file, from 1.
        row: the row, or the error that it could not be read with.
        adapters: the known adapters' names, by the value that selects each; if there is only one, a
            row need not select it.
        column: the column that selects a row's adapter.
    """
    if isinstance(row, UserError):
        return Answered(error=str(row))
    try:
        adapter = _adapter_of(row, adapters, column)
        row_format, example = read_question(number, row)
    except BadRowError as error:
        return Answered(error=f"row {number}: {error}")
    return Question(adapter, row_format, example)


@refusing_row()
def _adapter_of(row: Row, adapters: Mapping[str, str], column: str) -> str:
    given = row.get(column)
    wanted = value_text(given)
    if not given and len(adapters) == 1:
        return next(iter(adapters.values()))
    if wanted is None or (found := adapters.get(wanted)) is None:
        problem = f"is {excerpt(repr(given))}" if wanted or given else "is missing"
        raise BadRowError(f"{column} {problem}; possible: {listed(adapters)}")
    return found


def answer_questions(
    adapters: AdapterSet,
    questions: Sequence[Question | Answered],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Answer questions greedily; those that have an outcome already are returned as they are.

    Args:
        adapters: a set with all adapters that the questions name.
        questions: the questions, in any order.
        max_new_tokens: most tokens of an answer.
        batch_size: prompts per batch.
        on_progress: called with the number of questions answered since the last call.

    Returns:
        One outcome per question, in their order; a question that can't be rendered or leaves no
        room for an answer has an error.
    """
    kind = objective_of(adapters.base.settings.task)
    done: dict[int, Answered] = {}
    prompts: dict[int, Prompt] = {}
    asked: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        rendered = (
            question
            if isinstance(question, Answered)
            else _render(adapters, question, max_new_tokens)
        )
        if isinstance(question, Question) and isinstance(rendered, Prompt):
            prompts[index] = rendered
            asked.setdefault(question.adapter, []).append(index)
        elif isinstance(rendered, Answered):
            done[index] = rendered
    if on_progress and done:
        on_progress(len(done))
    for name, of_group in sorted(asked.items()):
        with adapters.using(name) as model:
            given = kind.answer(
                model,
                adapters.adapters[name].tokenizer,
                [prompts[index] for index in of_group],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                on_progress=on_progress,
            )
        done |= {
            index: Answered(answer=one.text, probability=one.probability)
            for index, one in zip(of_group, given, strict=True)
        }
    return [done[index] for index in range(len(questions))]


def answer_question(
    adapters: AdapterSet,
    question: Question,
    *,
    max_new_tokens: int,
    uses_base: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> Answered:
    """Answer one question greedily, as `answer_questions` does.

    Args:
        adapters: a set with the adapter that the question names.
        question: the question.
        max_new_tokens: most tokens of an answer.
        uses_base: whether the base answers the adapter's prompt, without the adapter.
        on_text: called with what is settled of a generated answer, token by token.
    """
    rendered = _render(adapters, question, max_new_tokens)
    if isinstance(rendered, Answered):
        return rendered
    with adapters.using(None if uses_base else question.adapter) as model:
        (given,) = objective_of(adapters.base.settings.task).answer(
            model,
            adapters.adapters[question.adapter].tokenizer,
            [rendered],
            max_new_tokens=max_new_tokens,
            batch_size=1,
            on_text=on_text,
        )
    return Answered(answer=given.text, probability=given.probability)


def prompts_sha256(adapters: AdapterSet, questions: Sequence[Question | Answered]) -> str:
    """Return the sha256 of each adapter's first prompt, as rendered now.

    It changes when a template, a tokenizer or the library that renders them does: a template may
    render the date, for example.
    """
    first: dict[str, str] = {}
    for question in questions:
        if isinstance(question, Question) and question.adapter not in first:
            rendered = _render(adapters, question, 0)
            if isinstance(rendered, Prompt):
                first[question.adapter] = rendered.text
        if len(first) == len(adapters.adapters):
            break
    return hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()


def _render(adapters: AdapterSet, question: Question, max_new_tokens: int) -> Prompt | Answered:
    adapter, example = adapters.adapters[question.adapter], question.example
    ends = end_ids(adapters.base.location, adapters.base.revision)
    renderer = Renderer.of(
        adapter.tokenizer, adapter.template, question.row_format, ends, adapter.chat
    )
    kind = objective_of(adapters.base.settings.task)
    try:
        prompt = kind.prompt(renderer, example)
    except UserError as error:
        return Answered(error=str(error))
    room = max_new_tokens if kind.traits.generates else 0
    problem = _problem(adapters, adapter.tokenizer, prompt, room)
    return Answered(error=f"row {example.row}: {problem}") if problem else prompt


def _problem(
    adapters: AdapterSet,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    max_new_tokens: int,
) -> str | None:
    """Describe why the model can't read a prompt or generate an answer to it; None if it can."""
    limits = adapters.limits
    ids = prompt.tokens(tokenizer)
    if (unknown := limits.unknown_token(ids)) is not None:
        return describe_unknown(unknown, limits, tokenizer)
    limit = limits.positions
    if not limit or len(ids) + max_new_tokens <= limit:
        return None
    room = f"with {max_new_tokens} for the answer, " if max_new_tokens else ""
    most = limit - max_new_tokens
    return f"the prompt has {len(ids)} tokens; {room}the model takes at most {most}"
