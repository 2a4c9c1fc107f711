"""The answers of a conversation, each in the context in which the model would produce it.

Its context is the conversation before it, with the generation prompt. What the template writes
after that is the answer, up to what stops generation. Many templates render an earlier answer in a
longer conversation just so, and one text has all answers. Others drop its reasoning, put an empty
one, or end it otherwise: then each answer needs a text of its own.

A marker instead of an answer's content shows what a template writes around it. That works for any
chat template, also without the `generation` blocks that transformers needs to locate answers.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from tasks.engine.data.rendering.answer_checks import check_answer
from tasks.engine.data.rendering.chat_template import ChatTemplate
from tasks.engine.data.rendering.end_tokens import EndTokens
from tasks.engine.data.rendering.turns import Around, Conversation, Turn
from tasks.engine.data.rows import Message, ToolCall
from tasks.errors import UserError

_MARK = "\ue000answer\ue001"
"""Stands for an answer's content. Its private-use characters occur in no template."""

# `<|im_start|>` and `<|im_end|>` have a beginning in common, but no piece: texts are compared piece
# by piece, so that none is cut within a marker.
_PIECE = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\w+|.", re.DOTALL)
"""A marker such as `<think>` or `[INST]`, a word, or a character: what templates write at once."""

_MARKUP = re.compile(r"[<>\[\]{}|]")


@dataclass(frozen=True, eq=False)
class TurnFinder:
    """Finds the answers of conversations in the text that a chat template makes of them."""

    chat: ChatTemplate
    ends: EndTokens
    # What a template writes around an answer depends on the roles before it, rarely on their texts,
    # so it is rendered once for all conversations of the same roles. Where it is used, the
    # conversation's own text is compared with it.
    _tails: dict[tuple[object, ...], str] = field(default_factory=dict, repr=False)
    _markers: dict[tuple[object, ...], str] = field(default_factory=dict, repr=False)
    _arounds: dict[tuple[str, ...], Around] = field(default_factory=dict, repr=False)

    def context(self, given: Conversation, number: int) -> str:
        """Return the text with which a message is asked for.

        Raises:
            UserError: the template refuses the messages before it, or an assistant that begins.
        """
        if number:
            return self.chat.text(given.row, given.before(number), given.tools, opened=True)
        marked = self._marked(given, 0)  # many templates fail on a conversation without turns
        if marked is None:
            raise UserError(f"row {given.row}: the chat template does not let the assistant begin")
        return marked.partition(_MARK)[0]

    def turn(self, given: Conversation, number: int) -> Turn:
        """Return an answer in its context.

        Raises:
            UserError: the template refuses the conversation up to it, writes the answer in another
                context than it is asked for in, or loses a part of it.
        """
        return self._turn(given, number, self.context(given, number))

    def _turn(self, given: Conversation, number: int, context: str) -> Turn:
        whole = self._whole(given, number, context)
        written = self._after_context(given, number, context, whole)
        tail = self._tail(given, number, whole)
        content_end = max(0, len(written) - len(tail))
        check_answer(given.row, given.messages[number], written[:content_end])
        ended, marker = self.ends.through(written[content_end:]), ""
        end = content_end + len(ended)
        if not ended:
            # The next turn's role may be the end token, as with GLM-4.5.
            marker = self._marker(given, number)
            written += marker
            end = len(written)
        return Turn(
            number=number,
            context=context,
            written=written,
            content_end=content_end,
            end=end,
            is_ended=bool(ended or marker),
            is_marked=bool(marker),
            is_reopened=not whole.startswith(context),
        )

    def turns(self, given: Conversation, numbers: Sequence[int]) -> list[Turn]:
        """Return several answers, each in its context; see `turn`."""
        *earlier, last = numbers
        final = self.turn(given, last)
        return [*(self._earlier(given, number, final.text) for number in earlier), final]

    def _earlier(self, given: Conversation, number: int, text: str) -> Turn:
        """Return an answer before the last one.

        Rendering the conversation up to each answer would double the work. An answer without any
        markup, on which no template acts, need not be rendered again if the longer text begins with
        its context and with what the template writes for a marker in its place.
        """
        context, answer = self.context(given, number), given.messages[number]
        has_markup = bool(answer.tool_calls or answer.reasoning or _MARKUP.search(answer.content))
        if has_markup or answer.content != answer.content.strip():
            return self._turn(given, number, context)
        around = self.known_around(given, number, context)
        body, ended = around.before + answer.content, self.ends.through(around.after)
        if not ended or not text.startswith(context + body + ended):
            return self._turn(given, number, context)
        end = len(body) + len(ended)
        return Turn(number, context, body + ended, len(body), end, is_ended=True)

    def known_around(self, given: Conversation, number: int, context: str) -> Around:
        """Return what `around` does, once for all conversations of the same roles."""
        roles = tuple(one.role for one in given.before(number))
        if roles not in self._arounds:
            self._arounds[roles] = self.around(given, number, context)
        return self._arounds[roles]

    def _whole(self, given: Conversation, number: int, context: str) -> str:
        """Return the conversation that ends with an answer.

        Where the generation prompt already closes an empty thinking block, no reasoning can follow
        it: the answer is rendered without, and its reasoning counts as unwritten.
        """
        answer, before = given.messages[number], given.before(number)
        whole = self.chat.text(given.row, (*before, answer), given.tools, opened=False)
        if whole.startswith(context) or not answer.reasoning:
            return whole
        bare = replace(answer, reasoning="")
        without = self.chat.text(given.row, (*before, bare), given.tools, opened=False)
        if without.startswith(context) or self._is_closed(given, number, context, whole):
            return without
        return whole

    def _is_closed(self, given: Conversation, number: int, context: str, whole: str) -> bool:
        """Return whether the generation prompt says something else where the reasoning begins."""
        asked = self.chat.text(given.row, given.before(number), given.tools, opened=False)
        if not (context.startswith(asked) and whole.startswith(asked)):
            return False
        opening = context[len(asked) :]
        return bool(opening[_num_common(opening, whole[len(asked) :]) :].strip())

    def around(self, given: Conversation, number: int, context: str) -> Around:
        """Return what the template writes around the content of an answer in a context."""
        marked = self._marked(given, number)
        if marked is None:
            return Around()
        try:
            written = self._after_context(given, number, context, marked)
        except UserError:
            written = _MARK + marked.rpartition(_MARK)[2]
        before, _, after = written.rpartition(_MARK)
        return Around(before, after)

    def _after_context(self, given: Conversation, number: int, context: str, whole: str) -> str:
        """Return what follows the context in a conversation that ends with the answer.

        Some generation prompts differ from what the template writes before an existing answer, such
        as by the start of a thinking block. The answer then follows the generation prompt, as that
        is what precedes it when the model generates; the two have a part in common.

        Raises:
            UserError: they differ within the messages before the answer.
        """
        if whole.startswith(context):
            return whole[len(context) :]
        asked = self.chat.text(given.row, given.before(number), given.tools, opened=False)
        marked = self._marked(given, number)
        if marked is None or not context.startswith(asked):
            raise _rewritten(given)
        if not (whole.startswith(asked) and marked.startswith(asked)):
            return _after_last(context[len(asked) :], marked, whole, given)
        start = len(asked) + _num_common(context[len(asked) :], whole[len(asked) :])
        head = marked.partition(_MARK)[0]
        if context[start:].strip() and head[start:].strip() and whole.startswith(head):
            return whole[len(head) :]  # the two openings have nothing in common
        return whole[start:]

    def _marked(self, given: Conversation, number: int) -> str | None:
        """Render a marker as the answer; None if the template refuses or drops it.

        Raises:
            UserError: the template writes it more than once.
        """
        messages = (*given.before(number), Message("assistant", _MARK))
        try:
            text = self.chat.text(given.row, messages, given.tools, opened=False)
        except UserError:
            return None
        if text.count(_MARK) > 1:
            raise UserError(
                f"row {given.row}: the chat template writes an answer more than once, so it can't "
                "be read back from what the model generates; set data.template to plain"
            )
        return text if _MARK in text else None

    def _tail(self, given: Conversation, number: int, whole: str) -> str:
        """Return what the template writes after the answer's own text."""
        answer = given.messages[number]
        key = (tuple(one.role for one in given.before(number)), len(answer.tool_calls))
        known = self._tails.get(key)
        if known is None:
            messages = (*given.before(number), _with_mark(answer))
            text = self.chat.text(given.row, messages, given.tools, opened=False)
            if _MARK not in text:  # it writes no tool calls, which the answer is checked for
                text = self._marked(given, number) or text
            known = self._tails[key] = text.rpartition(_MARK)[2]
        # It is shorter where the marker is written otherwise: as a string, and not as a number.
        return known if whole.endswith(known) else _common_end(known, whole)

    def _marker(self, given: Conversation, number: int) -> str:
        """Return the end token that the next turn begins with; empty if it begins with none."""
        answer = given.messages[number]
        role = given.messages[number + 1].role if number + 1 < len(given.messages) else ""
        if role not in ("user", "tool"):
            role = "tool" if answer.tool_calls else "user"
        roles = tuple(one.role for one in given.before(number))
        key = (roles, bool(answer.tool_calls), role)
        if key not in self._markers:
            self._markers[key] = self._found_marker(given, number, role)
        return self._markers[key]

    def _found_marker(self, given: Conversation, number: int, role: str) -> str:
        marked = (*given.before(number), _with_mark(given.messages[number]))
        call = next(iter(given.messages[number].tool_calls), ToolCall("", "{}"))
        name, call_id = (call.name, call.id) if role == "tool" else ("", "")
        following = Message(role, "?", name=name, tool_call_id=call_id)
        try:
            texts = [
                self.chat.text(given.row, messages, given.tools, opened=False)
                for messages in (marked, (*marked, following))
            ]
        except UserError:
            return ""
        alone, continued = (text.rpartition(_MARK)[2] for text in texts)
        if not continued.startswith(alone):
            return ""
        return self.ends.leading(continued[len(alone) :])


def _after_last(prompt: str, marked: str, whole: str, given: Conversation) -> str:
    """Return what follows the generation prompt where the answer changes the messages before it.

    gpt-oss drops the reasoning of earlier tool calls once there is a final answer.

    Args:
        prompt: the generation prompt.
        marked: the conversation with the marker as its answer.
        whole: the conversation.
        given: for messages.

    Raises:
        UserError: there is no generation prompt before the answer.
    """
    limit = min(_num_common(marked, whole), marked.index(_MARK))
    start = whole.rfind(prompt, 0, limit) if prompt.strip() else -1
    if start < 0:
        raise _rewritten(given)
    return whole[start + len(prompt) :]


def _rewritten(given: Conversation) -> UserError:
    return UserError(
        f"row {given.row}: the chat template rewrites the prompt once there is an answer, so the "
        "answer can't be located; set data.template to plain"
    )


def _with_mark(answer: Message) -> Message:
    """Return an answer with the marker as its last part: the content, or a call's argument."""
    if not answer.tool_calls:
        return replace(answer, content=_MARK)
    *others, last = answer.tool_calls
    arguments = json.dumps({"mark": _MARK}, ensure_ascii=False)
    return replace(answer, tool_calls=(*others, replace(last, arguments=arguments)))


def _num_common(first: str, second: str) -> int:
    """Return the number of characters of the pieces that two texts begin with."""
    pairs = zip(_PIECE.findall(first), _PIECE.findall(second), strict=False)
    return sum(len(one) for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _common_end(first: str, second: str) -> str:
    """Return the longest text that two texts end with."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return first[len(first) - length :]
