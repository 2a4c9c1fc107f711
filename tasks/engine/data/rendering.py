"""Examples as text: by the chat template or by plain joining, and where the answers are in it.

An answer is located by rendering the conversation up to it, and once more with a marker instead of
its content, which shows what the template writes before and after the content. That works for any
chat template, also without the `generation` blocks that transformers needs to locate answers.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self

from tasks.config import RowFormat, Template
from tasks.engine.data.conversations import Example, Message
from tasks.engine.data.prompts import Prompt, special_texts
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_CHARACTERS = 80

_MARK = "\ue000answer\ue001"
"""Stands for an answer's content. Its private-use characters occur in no template."""


@dataclass(frozen=True)
class Rendered:
    """One example as text, with the character spans [start, end) of its answers."""

    text: str
    answers: tuple[tuple[int, int], ...]
    num_unplaced_answers: int = 0
    """Earlier answers that the template rewrites in a longer conversation; they are not trained
    on."""
    num_unwritten_messages: int = field(default=0, compare=False)
    """User's and system messages that the template drops or rewrites."""
    content_end: int = field(default=0, compare=False)
    """Where the last answer's content ends and what the template writes after it begins."""
    is_completed: bool = field(default=False, compare=False)
    """Whether an end token was added to an answer, as the template writes none."""
    is_stopped_within: bool = field(default=False, compare=False)
    """Whether the last answer contains the text of an end token, at which generation stops."""
    is_endless: bool = field(default=False, compare=False)
    """Whether the model has no end token, so that nothing that stops generation is trained on."""
    is_reopened: bool = field(default=False, compare=False)
    """Whether the template's generation prompt differs from what it writes before an answer."""

    @property
    def counts(self) -> dict[str, int]:
        """What `SplitRecord` counts, by the names of its fields."""
        return {
            "num_untrained_answers": self.num_unplaced_answers,
            "num_unwritten_messages": self.num_unwritten_messages,
            "num_stopped_answers": self.is_stopped_within,
            "num_completed_answers": self.is_completed,
            "num_endless_answers": self.is_endless,
            "num_reopened_answers": self.is_reopened,
        }


@dataclass(frozen=True)
class _Frame:
    """The text that a template writes around the content of a conversation's last answer."""

    head: str
    """All of it before the content."""
    after: str
    """All of it after the content."""


@dataclass(frozen=True)
class Renderer:
    """Turns examples into text, for training with their answers and for generation without."""

    tokenizer: "PreTrainedTokenizerBase"
    template: Template
    separator: str = "\n\n"
    """Between the turns of a plain example."""
    ends: tuple[str, ...] = ()
    """The texts of tokens that stop generation, in addition to the tokenizer's end token."""
    _afters: dict[tuple[str, ...], str] = field(default_factory=dict, compare=False, repr=False)
    _befores: dict[tuple[str, ...], str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        row_format: RowFormat,
        end_ids: Iterable[int] = (),
    ) -> Self:
        """Return the renderer for rows of a format.

        Args:
            tokenizer: its chat template and special tokens are used.
            template: `chat` or `plain`.
            row_format: of the rows.
            end_ids: the tokens at which the base stops, in addition to the tokenizer's end token.
        """
        # A `completion` directly continues its `prompt`; the other formats are separate texts.
        continues = row_format is RowFormat.PROMPT_COMPLETION
        ends = tuple(
            str(token)
            for token in tokenizer.convert_ids_to_tokens(sorted(end_ids))
            if token is not None
        )
        return cls(tokenizer, template, "" if continues else "\n\n", ends)

    def prompt(self, example: Example) -> Prompt:
        """Return the text that a model answers: all before the last answer, and how it is opened.

        Raises:
            UserError: the example is plain text, or the template refuses its turns.
        """
        if example.text is not None:
            raise UserError(f"row {example.row} is plain text, so it has no prompt to answer")
        if self.template is not Template.CHAT:
            return Prompt(self._plain_prompt(example.prompt_messages))
        turns = self._bare(example.prompt_messages)
        text = self._chat(example.row, turns, opened=True)
        frame = self._frame(example.row, turns)
        if frame is None:
            return Prompt(text, adds_special_tokens=False)
        before = frame.head.removeprefix(text) if frame.head.startswith(text) else ""
        return Prompt(text, adds_special_tokens=False, before=before, after=frame.after)

    def expected(self, example: Example) -> str:
        """Return the answer as it is read from a generation that repeats the trained one exactly.

        It may differ from the example's: some templates trim whitespace or move the reasoning.
        """
        rendered, prompt = self.full(example), self.prompt(example)
        start = rendered.answers[-1][0]
        written = rendered.text[start : rendered.content_end] + prompt.after
        return prompt.content(self.tokenizer, written)

    def full(self, example: Example) -> Rendered:
        """Return the text to train on, whose last answer ends in a token that stops generation.

        Raises:
            UserError: the template refuses the turns, or leaves no trace of an answer, or an
                answer has no text but an end token's.
        """
        if example.text is not None:
            return self._full_text(example.text)
        for turn in example.messages:
            if turn.role == "assistant" and not self._bare_content(turn.content).strip():
                raise UserError(
                    f"row {example.row}: the answer is {turn.content!r}, the text of an end token "
                    "alone, so there is nothing to learn; change or remove the row"
                )
        if self.template is Template.CHAT:
            return self._full_chat(example)
        return self._full_plain(example)

    def _full_text(self, text: str) -> Rendered:
        ended = self._ended(text)
        return Rendered(ended, ((0, len(ended)),), is_endless=not self._all_ends)

    @cached_property
    def _all_ends(self) -> tuple[str, ...]:
        return tuple(one for one in (self._end(), *self.ends) if one)

    def _end(self) -> str:
        return str(self.tokenizer.eos_token or next(iter(self.ends), ""))

    def _ended(self, text: str) -> str:
        """Return the text with the end token after it, and nothing after one that it has."""
        bare = text.rstrip()
        return bare if bare.endswith(self._all_ends) else text + self._end()

    def _plain_prompt(self, messages: Sequence[Message]) -> str:
        turns = [self._ended(m.content) if m.role == "assistant" else m.content for m in messages]
        return "".join(turn + self.separator for turn in turns)

    def _full_plain(self, example: Example) -> Rendered:
        text, spans, content_end = "", [], 0
        for message in example.messages:
            start = len(text)
            text += message.content
            if message.role == "assistant":
                content_end = len(text)
                text = text[:start] + self._ended(message.content)
                spans.append((start, len(text)))
            text += self.separator
        return Rendered(
            text.removesuffix(self.separator),
            tuple(spans),
            is_stopped_within=self._stops_within(example.messages[-1].content),
            content_end=content_end,
            is_endless=not self._all_ends,
        )

    def _bare(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Strip end tokens from the answers' contents; they are added again in rendering."""
        return tuple(
            Message(one.role, self._bare_content(one.content)) if one.role == "assistant" else one
            for one in messages
        )

    def _bare_content(self, content: str) -> str:
        end = next((one for one in self._all_ends if content.rstrip().endswith(one)), "")
        return content.rstrip().removesuffix(end) if end else content

    def _stops_within(self, content: str) -> bool:
        return any(end in self._bare_content(content) for end in self._all_ends)

    def _full_chat(self, example: Example) -> Rendered:
        row, turns = example.row, self._bare(example.messages)
        text = self._chat(row, turns, opened=False)
        earlier = [
            self._place(row, turns[: number + 1], text)
            for number, turn in enumerate(turns[:-1])
            if turn.role == "assistant"
        ]
        found = [place for place in earlier if place is not None]
        start, content_end, text, is_reopened = self._last(row, turns, text)
        self._check_learnable(row, turns, text[start:content_end])
        written = self._generated(text[content_end:], text[content_end:])
        is_ended = written.endswith(self._all_ends) if self._all_ends else False
        if not is_ended:
            text += self._next_marker(row, turns) or self._end()
        end = content_end + len(written) if is_ended else len(text)
        return Rendered(
            text,
            (*found, (start, end)),
            len(earlier) - len(found),
            _num_unwritten(turns, text),
            content_end,
            is_stopped_within=self._stops_within(turns[-1].content),
            is_completed=bool(self._all_ends) and not is_ended,
            is_endless=not self._all_ends,
            is_reopened=is_reopened,
        )

    def _last(self, row: int, turns: tuple[Message, ...], text: str) -> tuple[int, int, str, bool]:
        """Return the last answer's start, its content's end, the text, and `is_reopened`."""
        opening = self._opening(row, turns)
        content_end = len(text) - len(self._after(row, turns, text))
        if text.startswith(opening):
            self._check_content(row, turns[-1].content, text[len(opening) : content_end])
            return len(opening), content_end, text, False
        # Some generation prompts are longer than what the template writes before an existing
        # answer, such as by the start of a thinking block. The answer is trained after the
        # generation prompt, as that is what precedes it when the model generates.
        frame, asked = self._frame(row, turns[:-1]), self._chat(row, turns[:-1], opened=False)
        if (
            frame is None
            or not (frame.head.startswith(asked) and opening.startswith(asked))
            or not text.startswith(frame.head)
        ):
            raise UserError(
                f"row {row}: the chat template rewrites the prompt once there is an answer, so the "
                "answer can't be located; set data.template to plain"
            )
        self._check_content(row, turns[-1].content, text[len(frame.head) : content_end])
        longer = len(opening) - len(frame.head)
        return len(opening), content_end + longer, opening + text[len(frame.head) :], True

    def _place(self, row: int, turns: tuple[Message, ...], text: str) -> tuple[int, int] | None:
        """Locate an earlier answer, the last of the turns; None if the text has it differently."""
        try:
            through, opening = self._chat(row, turns, opened=False), self._opening(row, turns)
        except UserError:  # a template may refuse a part of a conversation
            return None
        end = len(through) - len(self._after(row, turns, through))
        if not through.startswith(opening) or not text.startswith(through[:end]):
            return None
        self._check_content(row, turns[-1].content, through[len(opening) : end])
        return len(opening), end + len(self._generated(through[end:], text[end:]))

    def _opening(self, row: int, turns: tuple[Message, ...]) -> str:
        """Return the text with which the last of the turns is asked for.

        Raises:
            UserError: the template refuses the turns before it, or an assistant that begins.
        """
        if len(turns) > 1:
            return self._chat(row, turns[:-1], opened=True)
        frame = self._frame(row, ())  # many templates fail on a conversation without turns
        if frame is None:
            raise UserError(f"row {row}: the chat template does not let the assistant begin")
        return frame.head

    def _after(self, row: int, turns: tuple[Message, ...], text: str) -> str:
        """Return what the template writes after the content of the last of the turns."""
        roles = tuple(turn.role for turn in turns)
        known = self._afters.get(roles)
        if known is not None and text.endswith(known):
            return known
        frame = self._frame(row, turns[:-1])
        if frame and text.endswith(frame.after):
            self._afters[roles] = frame.after
            return frame.after
        _, content, after = text.rpartition(turns[-1].content.strip())
        return after if content else ""

    def _frame(self, row: int, asked: tuple[Message, ...]) -> _Frame | None:
        """Return what the template writes around an answer to some turns, rendering a marker."""
        try:
            text = self._chat(row, (*asked, Message("assistant", _MARK)), opened=False)
        except UserError:
            return None
        head, mark, after = text.rpartition(_MARK)
        if _MARK in head:
            raise UserError(
                f"row {row}: the chat template writes an answer more than once, so it can't be "
                "read back from what the model generates; set data.template to plain"
            )
        return _Frame(head, after) if mark else None

    def _generated(self, after: str, text: str) -> str:
        """Return how much of `after` is generated: up to an end token, as far as the text has it.

        What a template writes at the end of a conversation is absent after earlier answers. Where
        a turn has no end token, the next turn's first token may be one, as with GLM-4.5.
        """
        taken = ""
        for piece in self._pieces(after):
            if not text.startswith(taken + piece):
                break
            taken += piece
            if piece in self._all_ends:
                return taken
        following = text[len(taken) :]
        return taken + next((one for one in self._all_ends if following.startswith(one)), "")

    def _pieces(self, text: str) -> list[str]:
        """Split a text before and after each special token."""
        return [one for one in self._special.split(text) if one]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        texts = sorted({*special_texts(self.tokenizer), *self._all_ends}, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, texts)) or '(?!)'})")

    def _next_marker(self, row: int, turns: tuple[Message, ...]) -> str:
        """Return the end token that the user's next turn begins with; empty if it does not."""
        marked = (*turns[:-1], Message("assistant", _MARK))
        try:
            text = self._chat(row, (*marked, Message("user", "?")), opened=False)
        except UserError:
            return ""
        following = text.rpartition(_MARK)[2].lstrip()
        return next((one for one in self._all_ends if following.startswith(one)), "")

    def _check_content(self, row: int, content: str, written: str) -> None:
        if _squeezed(content) not in _squeezed(written):
            shown = (
                content if len(content) <= _SHOWN_CHARACTERS else f"{content[:_SHOWN_CHARACTERS]}…"
            )
            raise UserError(
                f"row {row}: the chat template changes the answer {shown!r}: it writes "
                f"{written[:_SHOWN_CHARACTERS]!r}; change the row, or set data.template to plain"
            )

    def _check_learnable(self, row: int, turns: tuple[Message, ...], written: str) -> None:
        """Check that an answer is more than a part of what the template writes before any answer.

        Of `</think>` alone, Qwen3's template makes an empty thinking block and an empty answer.
        """
        roles = tuple(turn.role for turn in turns)
        if roles not in self._befores:
            asked = self.prompt(Example(row, turns)).before if len(turns) > 1 else ""
            self._befores[roles] = _squeezed(asked)
        if _squeezed(turns[-1].content) not in self._befores[roles]:
            return
        prompt = self.prompt(Example(row, turns))
        if not prompt.content(self.tokenizer, written + prompt.after).strip():
            raise UserError(
                f"row {row}: the answer {turns[-1].content!r} is a part of what the chat template "
                "writes before an answer, so there is nothing to learn; change or remove the row"
            )

    def _chat(self, row: int, messages: Sequence[Message], *, opened: bool) -> str:
        turns = [{"role": one.role, "content": one.content} for one in messages]
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=opened
            )
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(turn["role"] for turn in turns) or "none"
            raise UserError(
                f"row {row}: the chat template refuses the turns ({roles}): {_reason(error)}; "
                "change the row, or set data.template to plain"
            ) from error
        return str(rendered)


def _squeezed(text: str) -> str:
    """Return a text without whitespace, which templates trim and add."""
    return "".join(text.split())


def _num_unwritten(turns: Sequence[Message], text: str) -> int:
    squeezed = _squeezed(text)
    return sum(
        turn.role != "assistant" and _squeezed(turn.content) not in squeezed for turn in turns
    )


def _reason(error: Exception) -> str:
    from jinja2 import TemplateError

    return str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"


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
            plain text; or it has several named ones, of which none is the default.
    """
    has_template = bool(tokenizer.chat_template)
    if wanted is Template.CHAT and is_text:
        raise UserError("data.template is chat, but `text` rows have no turns; use auto or plain")
    if wanted is Template.CHAT and not has_template:
        raise UserError(
            f"data.template is chat, but the tokenizer of {tokenizer.name_or_path!r} has no chat "
            "template; use auto or plain, or an instruct model"
        )
    named = tokenizer.chat_template
    is_unclear = isinstance(named, dict) and "default" not in named and not is_text
    if is_unclear and wanted is not Template.PLAIN:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} has the chat templates "
            f"{', '.join(sorted(named))}, but none is named default; rename one to default, or "
            "set data.template to plain"
        )
    if wanted is not Template.AUTO:
        return wanted
    return Template.CHAT if has_template and not is_text else Template.PLAIN
