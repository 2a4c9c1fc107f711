"""Answers to rows: each by its own adapter, all of them on one base, in batches of like length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import RowFormat, Template
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.row_formats import BadRowError, Example, read_question
from tasks.engine.data.row_sources import Row
from tasks.engine.objectives.registry import objective_of
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Question:
    """A row as it is to be answered."""

    adapter: str
    row_format: RowFormat
    example: Example


@dataclass(frozen=True)
class Answered:
    """What became of a row: its answer, or what was wrong with it."""

    answer: str | None = None
    probability: float | None = None
    """Of a class, where rows are classified."""
    error: str | None = None


@dataclass(frozen=True)
class _Prompt:
    adapter: str
    text: str
    adds_special_tokens: bool


def read_row(
    number: int, row: Row | UserError, adapters: Sequence[str], column: str
) -> Question | Answered:
    """Read a row's question and which adapter answers it; or what is wrong with the row.

    Args:
        number: of the row in its file, from 1.
        row: the row, or why it could not be read.
        adapters: the names to choose from; a row need not name the only one.
        column: which names a row's adapter.
    """
    if isinstance(row, UserError):
        return Answered(error=str(row))
    wanted = row.get(column) or (adapters[0] if len(adapters) == 1 else None)
    if wanted not in adapters:
        given = f"{column} is {wanted!r}" if wanted else f"{column} is missing"
        return Answered(error=f"row {number}: {given}; possible: {', '.join(adapters)}")
    try:
        row_format, example = read_question(number, row)
    except BadRowError as error:
        return Answered(error=f"row {number}: {error}")
    return Question(str(wanted), row_format, example)


def answer_questions(
    adapters: AdapterSet,
    questions: Sequence[Question | Answered],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Answer what can be answered, by the likeliest; what already was is handed through.

    Args:
        adapters: with all adapters that the questions name.
        questions: in any order.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts answered at once.
        on_progress: told how many more are answered.

    Returns:
        One a question, in their order.
    """
    kind = objective_of(adapters.base.settings.task)
    done: dict[int, Answered] = {}
    prompts: dict[int, _Prompt] = {}
    for index, question in enumerate(questions):
        rendered = (
            question
            if isinstance(question, Answered)
            else _render(adapters, question, max_new_tokens)
        )
        if isinstance(rendered, Answered):
            done[index] = rendered
        else:
            prompts[index] = rendered
    if on_progress and done:
        on_progress(len(done))
    for name, special in sorted({(p.adapter, p.adds_special_tokens) for p in prompts.values()}):
        of_group = [
            index
            for index, prompt in prompts.items()
            if (prompt.adapter, prompt.adds_special_tokens) == (name, special)
        ]
        with adapters.using(name) as model:
            given = kind.answer(
                model,
                adapters.adapters[name].tokenizer,
                [prompts[index].text for index in of_group],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                adds_special_tokens=special,
                on_progress=on_progress,
            )
        done |= {
            index: Answered(answer=one.text, probability=one.probability)
            for index, one in zip(of_group, given, strict=True)
        }
    return [done[index] for index in range(len(questions))]


def _render(adapters: AdapterSet, question: Question, max_new_tokens: int) -> _Prompt | Answered:
    adapter, example = adapters.adapters[question.adapter], question.example
    is_chat = adapter.template is Template.CHAT and example.text is None
    renderer = Renderer.of(adapter.tokenizer, adapter.template, question.row_format)
    kind = objective_of(adapters.base.settings.task)
    try:
        text = kind.prompt(renderer, example)
    except UserError as error:
        return Answered(error=str(error))
    prompt = _Prompt(question.adapter, text, adds_special_tokens=not is_chat)
    room = max_new_tokens if kind.traits.generates else 0
    too_long = _too_long(adapters, adapter.tokenizer, prompt, room)
    return Answered(error=f"row {example.row}: {too_long}") if too_long else prompt


def _too_long(
    adapters: AdapterSet,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: _Prompt,
    max_new_tokens: int,
) -> str | None:
    """Say that a prompt and its answer are more than the model was made for."""
    limit = getattr(adapters.model.config.get_text_config(), "max_position_embeddings", None)
    if not limit:
        return None
    ids = tokenizer(prompt.text, add_special_tokens=prompt.adds_special_tokens)["input_ids"]
    if len(ids) + max_new_tokens <= limit:
        return None
    room = f"with {max_new_tokens} for the answer, " if max_new_tokens else ""
    return f"the prompt has {len(ids)} tokens; {room}the model takes {limit - max_new_tokens}"
