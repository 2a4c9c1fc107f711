"""Examples as text: the chat template or plain joining, and where the answers stand in it.

An answer's place is found by rendering the conversation up to it: what is there before the answer
begins, and what is there once it has ended. That works for every chat template, also for those
that do not mark the assistant's part.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tasks.config import RowFormat, Template
from tasks.engine.data.row_formats import Example, Message
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendered:
    """One example as text, with the character spans [start, end) of its answers."""

    text: str
    answers: tuple[tuple[int, int], ...]
    num_unplaced_answers: int = 0
    """Earlier answers that the template changes once the talk goes on; they are not trained on."""


@dataclass(frozen=True)
class Renderer:
    """Turns examples into text, for training with their answers and for generation without."""

    tokenizer: "PreTrainedTokenizerBase"
    template: Template
    separator: str = "\n\n"
    """Between the turns of a plain example."""

    @classmethod
    def of(
        cls, tokenizer: "PreTrainedTokenizerBase", template: Template, row_format: RowFormat
    ) -> Self:
        """Give the renderer for rows of a format."""
        # A `completion` continues its `prompt` as it stands; the other formats are separate texts.
        continues = row_format is RowFormat.PROMPT_COMPLETION
        return cls(tokenizer, template, "" if continues else "\n\n")

    def prompt(self, example: Example) -> str:
        """Give the text that a model answers: all before the last answer, and its opening."""
        if example.text is not None:
            raise UserError(f"row {example.row} is plain text: it has no prompt to answer")
        if self.template is Template.CHAT:
            return self._chat(example, len(example.messages) - 1, opened=True)
        return self._plain_prompt(example.prompt_messages)

    def full(self, example: Example) -> Rendered:
        """Give the text to train on, ended by the tokenizer's end token.

        Raises:
            UserError: the template refuses the turns, or leaves no trace of the last answer.
        """
        if example.text is not None:
            return self._whole(example.text)
        if self.template is Template.CHAT:
            return self._full_chat(example)
        return self._full_plain(example)

    def _whole(self, text: str) -> Rendered:
        ended = text + self._end()
        return Rendered(ended, ((0, len(ended)),))

    def _end(self) -> str:
        return str(self.tokenizer.eos_token or "")

    def _plain_prompt(self, messages: tuple[Message, ...]) -> str:
        turns = [m.content + (self._end() if m.role == "assistant" else "") for m in messages]
        return "".join(turn + self.separator for turn in turns)

    def _full_plain(self, example: Example) -> Rendered:
        text, spans = "", []
        for message in example.messages:
            start = len(text)
            text += message.content
            if message.role == "assistant":
                text += self._end()
                spans.append((start, len(text)))
            text += self.separator
        return Rendered(text.removesuffix(self.separator), tuple(spans))

    def _full_chat(self, example: Example) -> Rendered:
        text = self._chat(example, len(example.messages), opened=False)
        places = [
            self._place(example, turn, text)
            for turn, message in enumerate(example.messages)
            if message.role == "assistant"
        ]
        if places[-1] is None:
            raise UserError(
                f"row {example.row}: the chat template rewrites the prompt once the answer is "
                "there, so the answer can't be told apart; set data.template to plain"
            )
        found = tuple(place for place in places if place is not None)
        return Rendered(text, found, len(places) - len(found))

    def _place(self, example: Example, turn: int, text: str) -> tuple[int, int] | None:
        before = self._chat(example, turn, opened=True)
        through = self._chat(example, turn + 1, opened=False)
        if not (text.startswith(through) and through.startswith(before)):
            return None
        end = through.rfind(self._end(), len(before)) if self._end() else -1
        # What a template writes after the end token (a line break) is never generated.
        return len(before), len(through) if end < 0 else end + len(self._end())

    def _chat(self, example: Example, num_turns: int, *, opened: bool) -> str:
        from jinja2 import TemplateError

        turns = [{"role": one.role, "content": one.content} for one in example.messages[:num_turns]]
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=opened
            )
        except TemplateError as error:  # many templates refuse a system message, or two users
            roles = ", ".join(turn["role"] for turn in turns) or "none"
            raise UserError(
                f"row {example.row}: the chat template refuses the turns ({roles}): {error}; "
                "change the row, or set data.template to plain"
            ) from error
        return str(rendered)


def choose_template(
    wanted: Template, tokenizer: "PreTrainedTokenizerBase", *, is_text: bool
) -> Template:
    """Resolve `auto`: the chat template where there is one and the rows are no plain text.

    Raises:
        UserError: `chat` was asked for, and the tokenizer has no chat template or rows are text.
    """
    has_template = bool(tokenizer.chat_template)
    if wanted is Template.CHAT and is_text:
        raise UserError("data.template is chat, but `text` rows have no turns; use auto or plain")
    if wanted is Template.CHAT and not has_template:
        raise UserError(
            f"data.template is chat, but the tokenizer of {tokenizer.name_or_path!r} has no chat "
            "template; use auto or plain, or an instruct model"
        )
    if wanted is not Template.AUTO:
        return wanted
    return Template.CHAT if has_template and not is_text else Template.PLAIN
