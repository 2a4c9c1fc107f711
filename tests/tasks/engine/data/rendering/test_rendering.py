"""Where the answers stand in the text, whatever the template does around them."""

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tiny_models import BOS, tiny_tokenizer

from tasks.config import Template
from tasks.engine.data.rendering.rendering import Rendered, Renderer, choose_template
from tasks.engine.data.rows.conversations import Example, Message
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

THINKING_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen3's: only the last turn keeps its think block."""

TALK = ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")


def example(*turns: tuple[str, str]) -> Example:
    """Make row 7 of the turns."""
    return Example(7, tuple(Message(role, content) for role, content in turns))


def answers(rendered: Rendered) -> list[str]:
    """Cut the answers out of the text."""
    return [rendered.text[start:end] for start, end in rendered.answers]


def test_every_assistant_turn_with_its_end_token_is_an_answer(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """An answer ends with its end token; the line break that the template adds is not part."""
    rendered = Renderer(tokenizer, Template.CHAT).full(example(("system", "s"), *TALK))

    assert answers(rendered) == ["b<|im_end|>", "d<|im_end|>"]


def test_same_text_in_a_question_is_no_answer(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Answers are found by their turn: an equal question or an end token within misleads nobody."""
    quoting = example(("user", "say b"), ("assistant", "b<|im_end|>\nb"))

    rendered = Renderer(tokenizer, Template.CHAT).full(quoting)

    assert answers(rendered) == ["b<|im_end|>\nb<|im_end|>"]


@pytest.mark.parametrize("template", [Template.CHAT, Template.PLAIN])
@pytest.mark.parametrize("turns", [TALK, TALK[:2], (("system", "s"), *TALK)])
def test_prompt_is_what_precedes_the_last_answer(
    tokenizer: "PreTrainedTokenizerFast", template: Template, turns: tuple[tuple[str, str], ...]
) -> None:
    """What is generated from continues, in training, with exactly the last answer."""
    renderer = Renderer(tokenizer, template)

    rendered = renderer.full(example(*turns))

    start, end = rendered.answers[-1]
    assert rendered.text[:start] == renderer.prompt(example(*turns)).text
    assert rendered.text[start:end] == f"{turns[-1][1]}<|im_end|>"


def test_rewritten_earlier_answer_has_a_row_of_its_own(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """A template that takes the think block from earlier turns splits the conversation."""
    tokenizer.chat_template = THINKING_TEMPLATE

    rows = Renderer(tokenizer, Template.CHAT).rows(example(*TALK))

    assert [answers(row) for row in rows] == [
        ["<think>\n\n</think>\n\nb<|im_end|>"],
        ["<think>\n\n</think>\n\nd<|im_end|>"],
    ]


def test_template_that_rewrites_the_prompt_is_refused(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """An answer that can't be told from its prompt stops the run, with its row and a way out."""
    tokenizer.chat_template = "{{ messages | length }}: {{ messages[-1]['content'] }}"

    with pytest.raises(UserError, match=r"row 7.*set data\.template to plain"):
        Renderer(tokenizer, Template.CHAT).full(example(*TALK))


def test_turns_that_the_template_refuses_are_the_users_mistake(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """A template that takes no system message, as Gemma's, says so with the row."""
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}"
    )

    with pytest.raises(UserError, match=r"row 7.*\(system, user\): System role not supported"):
        Renderer(tokenizer, Template.CHAT).prompt(example(("system", "s"), *TALK[:2]))


def test_template_without_end_token_gives_the_whole_turn(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """Where a turn ends in a mark other than the tokenizer's end token, the mark is learned.

    The end token, which stops generation, follows the last one.
    """
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<end_of_turn>")

    rendered = Renderer(tokenizer, Template.CHAT).full(example(*TALK))

    assert answers(rendered) == ["b<end_of_turn>", "d<end_of_turn><|im_end|>"]
    assert rendered.counts["num_completed_answers"] == 1


def test_completion_continues_its_prompt_as_it_stands(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """Plain prompt and completion join without a separator; the end token follows."""
    rendered = Renderer(tokenizer, Template.PLAIN, separator="").full(
        example(("user", "2+2"), ("assistant", "=4"))
    )

    assert rendered == Rendered("2+2=4<|im_end|>", ((3, 15),))


def test_a_message_without_separator_is_directly_continued(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """The other turns stay apart, whatever an answer ends with."""
    system, *talk, last = example(("system", "s"), *TALK).messages
    asked = replace(talk[-1], no_separator=True)
    joined = Example(7, (replace(system, no_separator=True), *talk[:-1], asked, last))
    renderer = Renderer(tokenizer, Template.PLAIN)

    assert renderer.prompt(joined).text == "sa\n\nb<|im_end|>\n\nc"
    assert renderer.full(joined).text == "sa\n\nb<|im_end|>\n\ncd<|im_end|>"


def test_plain_turns_are_separate_paragraphs(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Plain turns stand apart by a blank line, which is in no answer."""
    rendered = Renderer(tokenizer, Template.PLAIN).full(example(("system", "s"), *TALK))

    assert rendered.text == "s\n\na\n\nb<|im_end|>\n\nc\n\nd<|im_end|>"
    assert answers(rendered) == ["b<|im_end|>", "d<|im_end|>"]


def test_text_is_one_answer_without_a_prompt(tokenizer: "PreTrainedTokenizerFast") -> None:
    """A plain text is learned whole, its end included, and cannot be answered."""
    renderer, row = Renderer(tokenizer, Template.PLAIN), Example(7, (), "once upon a time")

    assert answers(renderer.full(row)) == ["once upon a time<|im_end|>"]
    with pytest.raises(UserError, match="row 7 is plain text"):
        renderer.prompt(row)


@pytest.mark.parametrize(
    ("has_template", "is_text", "chosen"),
    [
        (True, False, Template.CHAT),
        (False, False, Template.PLAIN),
        (True, True, Template.PLAIN),
    ],
)
def test_auto_takes_the_chat_template_where_it_fits(
    has_template: bool,  # noqa: FBT001 - a parameter
    is_text: bool,  # noqa: FBT001
    chosen: Template,
) -> None:
    """`auto` is `chat` where the tokenizer has a template and rows have turns."""
    tokenizer = tiny_tokenizer(chat_template=has_template)

    assert choose_template(Template.AUTO, tokenizer, is_text=is_text) is chosen
    assert choose_template(Template.PLAIN, tokenizer, is_text=is_text) is Template.PLAIN


@pytest.mark.parametrize(
    ("has_template", "is_text", "message"),
    [(False, False, "no chat template; use auto or plain"), (True, True, "`text` rows have no")],
)
def test_chat_that_cannot_be_is_refused(
    has_template: bool,  # noqa: FBT001
    is_text: bool,  # noqa: FBT001
    message: str,
) -> None:
    """`chat` without a chat template, or with `text` rows, names the alternatives."""
    with pytest.raises(UserError, match=message):
        choose_template(Template.CHAT, tiny_tokenizer(chat_template=has_template), is_text=is_text)


def test_template_that_loses_the_answer_is_refused(tokenizer: "PreTrainedTokenizerFast") -> None:
    """An answer that is missing from the trained text is an error."""
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']",
        "''",
    )

    with pytest.raises(UserError, match="row 7: the chat template changes the answer 'd'"):
        Renderer(tokenizer, Template.CHAT).full(example(*TALK))


@pytest.mark.parametrize(
    "failing",
    [
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages[0]['parts'][0]['text'] }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_template_that_fails_names_the_row(
    tokenizer: "PreTrainedTokenizerFast", failing: str
) -> None:
    """Whatever a template raises, it is reported with the row and a way out."""
    tokenizer.chat_template = failing

    with pytest.raises(UserError, match=r"row 7: the chat template refuses.*data\.template"):
        Renderer(tokenizer, Template.CHAT).full(example(*TALK))


def test_end_token_within_an_answer_does_not_end_it(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Where turns end in another token than the tokenizer's, that one may stand in an answer."""
    tokenizer.eos_token = BOS
    struck = example(("user", "strike"), ("assistant", "HTML: <s>struck</s> text"))

    rendered = Renderer(tokenizer, Template.CHAT).full(struck)

    assert answers(rendered) == ["HTML: <s>struck</s> text<|im_end|>\n<s>"]
    assert rendered.counts["num_stopped_answers"] == 1


@pytest.mark.parametrize("template", [Template.CHAT, Template.PLAIN])
@pytest.mark.parametrize("behind", ["", "\n"])
def test_end_that_the_data_has_is_not_doubled(
    tokenizer: "PreTrainedTokenizerFast", template: Template, behind: str
) -> None:
    """A content that ends in the end token already gets no second one."""
    finished = example(("user", "a"), ("assistant", f"b<|im_end|>{behind}"))

    [answer] = answers(Renderer(tokenizer, template).full(finished))

    assert answer.rstrip() == "b<|im_end|>"


def test_tokenizer_without_an_end_token_is_counted(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Where nothing stops generation, that is known of each row."""
    tokenizer.eos_token = None

    for template in (Template.CHAT, Template.PLAIN):
        assert Renderer(tokenizer, template).full(example(*TALK)).counts["num_endless_answers"]


def test_templates_by_name_without_a_default_are_refused() -> None:
    """Several chat templates, none of them the default, are named before anything is rendered."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"rag": "a", "tool_use": "b"}

    with pytest.raises(UserError, match="chat templates rag, tool_use, but none is named default"):
        choose_template(Template.AUTO, tokenizer, is_text=False)
    assert choose_template(Template.PLAIN, tokenizer, is_text=False) is Template.PLAIN


def test_question_that_the_template_drops_is_counted(tokenizer: "PreTrainedTokenizerFast") -> None:
    """A template without a place for a system message leaves it out; that is no secret."""
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "in messages %}", "in messages if message['role'] != 'system' %}"
    )

    rendered = Renderer(tokenizer, Template.CHAT).full(example(("system", "s!"), *TALK))

    assert rendered.counts["num_unwritten_messages"] == 1
