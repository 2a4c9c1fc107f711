"""Examples as text: by the chat template or by plain joining, and where the answers are in it.

An example becomes one row, or one for each answer where the chat template renders earlier answers
otherwise than the model produces them (`tasks.engine.data.rendering.chat_turns`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

from tasks.config import RowFormat, Template
from tasks.engine.data.rendering.answer_checks import (
    has_reasoning,
    has_tools,
    is_within,
    num_unwritten,
)
from tasks.engine.data.rendering.chat_template import ChatTemplate
from tasks.engine.data.rendering.chat_turns import TurnFinder
from tasks.engine.data.rendering.end_tokens import EndTokens
from tasks.engine.data.rendering.plain_text import check_plain, plain_prompt, plain_text
from tasks.engine.data.rendering.prompts import Prompt
from tasks.engine.data.rendering.template_limits import check_template
from tasks.engine.data.rendering.turns import Around, Conversation, Turn, grouped
from tasks.engine.data.rows import Example, Message
from tasks.engine.excerpts import excerpt
from tasks.errors import UserError
from tasks.records import ChatOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CONTINUED = (RowFormat.PROMPT_COMPLETION, RowFormat.PREFERENCE, RowFormat.UNPAIRED)
"""Formats whose answers directly continue their prompts; those of others are separate texts."""


@dataclass(frozen=True)
class Rendered:
    """A row as text, with the character spans [start, end) of its answers."""

    text: str
    answers: tuple[tuple[int, int], ...]
    content_end: int = field(default=0, compare=False)
    """Where the last answer's content ends and what the template writes after it begins."""
    is_complete: bool = field(default=True, compare=False)
    """Whether it is the last row of its example, with all that the template keeps of it."""
    counts: Mapping[str, int] = field(default_factory=dict, compare=False)
    """What `SplitRecord` counts, by the names of its fields."""


@dataclass(frozen=True)
class Renderer:
    """Turns examples into text, for training with their answers and for generation without."""

    tokenizer: "PreTrainedTokenizerBase"
    template: Template
    separator: str = "\n\n"
    """Between the turns of a plain example."""
    ends: tuple[str, ...] = ()
    """The texts of tokens that stop generation, in addition to the tokenizer's end token."""
    chat: ChatOptions = field(default_factory=ChatOptions)
    """What the chat template is given beside the conversation."""
    trains_last_only: bool = False
    """Whether all answers but an example's last one are part of its prompt."""

    @classmethod
    def of(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        row_format: RowFormat,
        end_ids: Iterable[int] = (),
        chat: ChatOptions | None = None,
    ) -> Self:
        """Return the renderer for rows of a format.

        Args:
            tokenizer: its chat template and special tokens are used.
            template: `chat` or `plain`.
            row_format: of the rows.
            end_ids: the tokens at which the base stops, in addition to the tokenizer's end token.
            chat: what the chat template is given beside the conversation.
        """
        continues = row_format in _CONTINUED
        ends = tuple(
            str(token)
            for token in tokenizer.convert_ids_to_tokens(sorted(end_ids))
            if token is not None
        )
        return cls(tokenizer, template, "" if continues else "\n\n", ends, chat or ChatOptions())

    def prompt(self, example: Example) -> Prompt:
        """Return the text that a model answers: all before the last answer, and how it is opened.

        Raises:
            UserError: the example is plain text, or the template refuses its turns.
        """
        if example.text is not None:
            raise UserError(f"row {example.row} is plain text, so it has no prompt to answer")
        if self.template is not Template.CHAT:
            check_plain(example)
            return Prompt(plain_prompt(example.prompt_messages, self.separator, self._ends))
        given, last = self._conversation(example), len(example.messages) - 1
        context = self._turns.context(given, last)
        return _asked(context, self._turns.around(given, last, context))

    def sent(self, example: Example) -> Sequence[Message]:
        """Return the messages before the last answer, as the chat template takes them.

        Raises:
            UserError: a system message is to be put in a user message, and none follows it.
        """
        given = self._conversation(example)
        return self._turns.chat.sent(given.row, given.before(len(given.messages) - 1))

    def expected(self, example: Example) -> str:
        """Return the answer as it is read from a generation that repeats the trained one exactly.

        It may differ from the example's: some templates trim whitespace or move the reasoning.
        """
        row = replace(self, trains_last_only=True).full(example)
        prompt = self.prompt(example)
        start, end = row.answers[-1]
        if example.messages[-1].tool_calls:
            return prompt.content(self.tokenizer, row.text[start:end])
        return prompt.content(self.tokenizer, row.text[start : row.content_end] + prompt.after)

    def full(self, example: Example) -> Rendered:
        """Return the row of an example's last trained answer; see `rows`."""
        return self.rows(example)[-1]

    def rows(self, example: Example) -> list[Rendered]:
        """Return the texts to train on, each of which ends in a token that stops generation.

        Raises:
            UserError: the template refuses the turns, or leaves no trace of a part of an answer; or
                no answer is to be trained, or one has no text but an end token's.
        """
        if example.text is not None:
            return [self._text_row(example.text)]
        self._check_answers(example)
        if self.template is Template.CHAT:
            return self._chat_rows(example)
        check_plain(example)
        return [self._plain_row(example)]

    @cached_property
    def _ends(self) -> EndTokens:
        return EndTokens(self.tokenizer, self.ends)

    @cached_property
    def _turns(self) -> TurnFinder:
        return TurnFinder(ChatTemplate(self.tokenizer, self.chat), self._ends)

    def trains_nothing(self, example: Example) -> bool:
        """Return whether an example is a conversation without an answer to train on."""
        return example.text is None and not self._trained(example)

    def _trained(self, example: Example) -> list[int]:
        """Return the numbers of the messages that are trained on."""
        if self.trains_last_only:
            return [len(example.messages) - 1]
        return [
            number
            for number, one in enumerate(example.messages)
            if one.role == "assistant" and one.is_trained
        ]

    def _check_answers(self, example: Example) -> None:
        trained = self._trained(example)
        if not trained:
            raise UserError(
                f"row {example.row}: no answer is trained on, as their weights are 0; remove it"
            )
        for answer in (example.messages[number] for number in trained):
            if not answer.tool_calls and not self._ends.bare(answer.content).strip():
                shown = excerpt(repr(answer.content))
                raise UserError(
                    f"row {example.row}: the answer is {shown}, the text of an end token alone, so "
                    "there is nothing to learn; change or remove the row"
                )

    def _text_row(self, text: str) -> Rendered:
        ended = self._ends.closed(text)
        counts = {"num_endless_answers": int(not self._ends.texts)}
        return Rendered(ended, ((0, len(ended)),), counts=counts)

    def _plain_row(self, example: Example) -> Rendered:
        trained = self._trained(example)
        text, spans, content_end = plain_text(example.messages, trained, self.separator, self._ends)
        answers = [example.messages[number] for number in trained]
        return Rendered(
            text, tuple(spans), content_end, counts=self._answer_counts(answers, example)
        )

    def _answer_counts(self, answers: Sequence[Message], example: Example) -> dict[str, int]:
        """Count the trained answers that differ from others, and those that are not trained."""
        num_answers = sum(one.role == "assistant" for one in example.messages)
        return {
            "num_untrained_answers": 0 if self.trains_last_only else num_answers - len(answers),
            "num_stopped_answers": sum(self._ends.are_within(one.content) for one in answers),
            "num_endless_answers": 0 if self._ends.texts else len(answers),
        }

    def _conversation(self, example: Example) -> Conversation:
        """Return the conversation without end tokens in its answers, which rendering adds again."""
        messages = tuple(
            replace(one, content=bare)
            if one.role == "assistant" and (bare := self._ends.bare(one.content)) != one.content
            else one
            for one in example.messages
        )
        return Conversation(example.row, messages, example.tools)

    def _chat_rows(self, example: Example) -> list[Rendered]:
        given = self._conversation(example)
        turns = self._turns.turns(given, self._trained(example))
        for turn in turns:
            self._check_learnable(given, turn)
        *earlier, last = grouped(turns)
        rows = [self._chat_row(group, {}, is_complete=False) for group in earlier]
        answers = [example.messages[turn.number] for turn in turns]
        counts = self._answer_counts(answers, example)
        return [*rows, self._chat_row(last, counts | _lost(given, turns), is_complete=True)]

    def _check_learnable(self, given: Conversation, turn: Turn) -> None:
        """Check that an answer is more than a part of what the template writes before any answer.

        Of `</think>` alone, Qwen3's template makes an empty thinking block and an empty answer.
        """
        answer = given.messages[turn.number]
        if answer.tool_calls:
            return
        around = self._turns.known_around(given, turn.number, turn.context)
        if not is_within(answer.content, around.before):
            return
        written = turn.written[: turn.content_end] + around.after
        if not _asked(turn.context, around).content(self.tokenizer, written).strip():
            raise UserError(
                f"row {given.row}: the answer {excerpt(repr(answer.content))} is a part of what "
                "the chat template writes before an answer, so there is nothing to learn; change "
                "or remove the row"
            )

    def _chat_row(
        self, turns: Sequence[Turn], counts: dict[str, int], *, is_complete: bool
    ) -> Rendered:
        """Return the row of answers that have one text, that of the last."""
        last = turns[-1]
        text, spans = last.text, [turn.span for turn in turns]
        is_completed = bool(self._ends.texts) and (last.is_marked or not last.is_ended)
        if not last.is_ended:
            text += self._ends.first
            spans[-1] = (spans[-1][0], len(text))
        own = {
            "num_completed_answers": int(is_completed),
            "num_reopened_answers": sum(turn.is_reopened for turn in turns),
        }
        content_end = len(last.context) + last.content_end
        return Rendered(text, tuple(spans), content_end, is_complete, counts | own)


def _asked(context: str, around: Around) -> Prompt:
    return Prompt(context, adds_special_tokens=False, before=around.before, after=around.after)


def _lost(given: Conversation, turns: Sequence[Turn]) -> dict[str, int]:
    """Count what the template leaves out of a conversation, beside its answers' contents."""
    answers = [given.messages[turn.number] for turn in turns]
    kept = [
        has_reasoning(answer, turn.written) for answer, turn in zip(answers, turns, strict=True)
    ]
    last = turns[-1]
    return {
        "num_unwritten_messages": num_unwritten(given.before(last.number), last.text),
        "num_unwritten_reasonings": len(kept) - sum(kept),
        "num_unwritten_tools": int(not has_tools(given.tools, turns[0].context)),
    }


def choose_template(
    wanted: Template, tokenizer: "PreTrainedTokenizerBase", *, is_text: bool
) -> Template:
    """Resolve `auto` to the chat template, unless there is none or the rows are plain text.

    Args:
        wanted: what the user set.
        tokenizer: of the base or the adapter.
        is_text: whether the rows are plain text, without turns.

    Raises:
        UserError: the user set `chat`, and the tokenizer has no chat template or the rows are
            plain text; it has several named ones, of which none is the default; or it exceeds a
            limit of time, memory or size.
    """
    has_template = bool(tokenizer.chat_template)
    if wanted is Template.CHAT and is_text:
        raise UserError("data.template is chat, but `text` rows have no turns; use auto or plain")
    if wanted is Template.CHAT and not has_template:
        raise UserError(
            f"data.template is chat, but the tokenizer of {tokenizer.name_or_path!r} has no chat "
            "template; use auto or plain, set data.chat_template, or use an instruct model"
        )
    named = tokenizer.chat_template
    is_unclear = isinstance(named, dict) and "default" not in named and not is_text
    if is_unclear and wanted is not Template.PLAIN:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} has the chat templates "
            f"{', '.join(sorted(named))}, but none is named default; rename one to default, or "
            "set data.template to plain"
        )
    is_chat = wanted is Template.CHAT or (wanted is Template.AUTO and has_template and not is_text)
    if is_chat:
        check_template(tokenizer)
    return Template.CHAT if is_chat else Template.PLAIN
