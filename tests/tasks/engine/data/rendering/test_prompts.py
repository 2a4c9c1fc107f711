"""An answer is its content, whatever a chat template writes around it."""

import itertools
from typing import Any

import pytest
from chat_templates import EACH, SHAPES, Shape
from mlflow.exceptions import MlflowException
from tiny_models import tiny_tokenizer

from tasks.config import DataSettings, RowFormat, Template
from tasks.engine.data.rendering.prompts import Prompt
from tasks.engine.data.rendering.rendering import Renderer
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.splits.mixing import Split
from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedSplit, tokenize_split
from tasks.engine.objectives.generation import matches
from tasks.errors import UserError
from tasks.tracking.served_model.answers import read_answer
from tasks.tracking.served_model.prompts import ask

CONTENTS = {
    "word": "apple",
    "json": '{"fruit": "apple", "n": [1, 2]}',
    "lines": "first line\n\nsecond line",
    "end within": "<|im_start|>final</s> and more",
    "quotes": 'say "hi"',
}
TURNS = (Message("user", "fruit?"), Message("assistant", "apple"), Message("user", "more"))


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    """Return each shape of template."""
    found: Shape = request.param
    return found


def renderer_of(shape: Shape) -> Renderer:
    """Render as the template does, for a base that stops as its does."""
    return Renderer.of(shape.tokenizer(), Template.CHAT, RowFormat.MESSAGES, shape.end_ids())


def tokenized(renderer: Renderer, *examples: Example) -> TokenizedSplit:
    """Tokenise examples as in training."""
    split = Split("rows.jsonl", "0" * 64, examples)
    tokens = tokenize_split(split, renderer, DataSettings(train="rows.jsonl"))
    return TokenizedSplit.of(split, tokens)


def ids_of(tokenizer: Any, token: str) -> int:  # noqa: ANN401
    """Return the id of a token."""
    return int(tokenizer.convert_tokens_to_ids(token))


def imitated(renderer: Renderer, example: Example) -> list[int]:
    """Return what a model generates that imitates the row exactly: up to where it is stopped."""
    row = tokenized(renderer, example).rows[-1]
    start = len(renderer.prompt(example).tokens(renderer.tokenizer))
    assert IGNORED not in row.labels[start : start + 1]
    ends = [ids_of(renderer.tokenizer, end) for end in {*renderer.ends, "<|im_end|>"}]
    trained = [label for label in row.labels[start:] if label != IGNORED]
    stop = next(place for place, token in enumerate(trained) if token in ends)
    return trained[: stop + 1]


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("asked", [TURNS[:1], TURNS, (Message("system", "s"), *TURNS)])
def test_exact_imitation_is_the_right_answer(
    shape: Shape, content: str, asked: tuple[Message, ...]
) -> None:
    """A model that repeats the trained tokens is read as the right answer, here and in MLflow."""
    renderer = renderer_of(shape)
    example = Example(1, (*asked, Message("assistant", content)))

    tokens, prompt = imitated(renderer, example), renderer.prompt(example)
    answer = prompt.read(renderer.tokenizer, tokens)
    assert matches(answer, renderer.expected(example))
    assert answer.strip() == content.replace("<|im_start|>", "")
    turns: list[dict[str, Any]] = [{"role": one.role, "content": one.content} for one in asked]
    served = ask(renderer.tokenizer, turns)
    assert (served.text, served.before, served.after) == (prompt.text, prompt.before, prompt.after)
    assert read_answer(renderer.tokenizer, served, tokens) == answer


def test_every_answer_of_a_conversation_is_trained(shape: Shape) -> None:
    """Earlier answers are learned as the last one is, if need be in rows of their own."""
    example = Example(1, (*TURNS, Message("assistant", "pear")))

    split = tokenized(renderer_of(shape), example)

    labels = [label for row in split.rows for label in row.labels if label != IGNORED]
    trained = renderer_of(shape).tokenizer.decode(labels)
    assert ("apple" in trained, "pear" in trained) == (True, True)
    assert split.record.num_untrained_answers == 0
    own = ("qwen3", "qwen3 thinking", "gpt-oss", "phi-3 without stops", "deepseek-r1")
    needs_own = any(one is shape for name, one in SHAPES.items() if name in own)
    assert split.record.num_rows == 1 + needs_own
    assert "fruit" not in trained
    assert "more" not in trained


@pytest.mark.parametrize("thought", ["", "\n\n", "\nabc\n"])
def test_thought_that_the_data_has_is_no_second_one(thought: str) -> None:
    """Where rows bring their thoughts, a template's empty one is not read out of them twice."""
    renderer = renderer_of(SHAPES["qwen3"])
    content = f"<think>{thought}</think>\n\napple"
    example = Example(1, (*TURNS[:1], Message("assistant", content)))

    answer = renderer.prompt(example).read(renderer.tokenizer, imitated(renderer, example))
    assert answer == renderer.expected(example)
    assert answer.endswith("apple")


def test_answer_of_an_end_token_alone_is_refused(shape: Shape) -> None:
    """Nothing would be learned but to stop, as of an empty answer."""
    with pytest.raises(UserError, match="the text of an end token alone"):
        renderer_of(shape).full(Example(1, (*TURNS, Message("assistant", "<|im_end|>"))))


def test_answer_without_an_end_is_completed_and_counted() -> None:
    """Where the template writes no end, an end token is trained behind the last answer."""
    example = Example(1, (*TURNS, Message("assistant", "pear")))
    for name, shape in SHAPES.items():
        split = tokenized(renderer_of(shape), example)
        last = next(label for label in reversed(split.rows[-1].labels) if label != IGNORED)
        assert last in shape.end_ids()
        # GLM's end is the next turn's beginning.
        is_lacking = name in ("glm4.5", "no end", "no end, quoted", "another end")
        assert split.record.num_completed_answers == is_lacking, name
    assert renderer_of(SHAPES["glm4.5"]).full(example).text[-len("<|user|>") :] == "<|user|>"


def test_conversation_that_the_assistant_begins_is_trained(shape: Shape) -> None:
    """A greeting without a question is an answer, too."""
    turns = (Message("assistant", "Welcome!"), *TURNS[:2])

    rows = renderer_of(shape).rows(Example(1, turns))

    welcome, answer = (row.text[start:end] for row in rows for start, end in row.answers)
    assert welcome.startswith("Welcome!")
    assert "apple" in answer


def test_base_that_goes_on_is_cut_at_the_template_s_end() -> None:
    """Turns that a base writes behind its answer are no part of the answer."""
    shape = SHAPES["another end"]
    prompt = renderer_of(shape).prompt(Example(1, (*TURNS, Message("assistant", ""))))
    tokenizer = shape.tokenizer()

    said = tokenizer("apple<|turn_end|>\n<|im_start|>user\nmore", add_special_tokens=False)
    assert prompt.read(tokenizer, said["input_ids"]) == "apple"


def test_response_template_of_the_tokenizer_is_used() -> None:
    """Where the tokenizer says how answers are read, they are read so."""
    tokenizer = SHAPES["qwen3"].tokenizer()
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "thinking": {"open": "<think>", "close": "</think>", "content": "text"},
            "content": {"close": "<|im_end|>", "content": "text"},
        },
    }
    prompt = Prompt("<|im_start|>assistant\n", adds_special_tokens=False)

    assert prompt.content(tokenizer, "<think>\nlong\n</think>\n\napple<|im_end|>") == "apple"


def test_template_that_writes_an_answer_twice_is_refused() -> None:
    """What the model generates would hold it twice, and be read so."""
    twice = Shape(
        EACH + "{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}"
        "{{ ' (' + m.content + ')' }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    example = Example(1, (*TURNS[:1], Message("assistant", "apple")))
    for read in (renderer_of(twice).full, renderer_of(twice).prompt):
        with pytest.raises(UserError, match=r"row 1: the chat template writes an answer more than"):
            read(example)
    with pytest.raises(MlflowException, match="the chat template writes an answer more than"):
        ask(twice.tokenizer(), [{"role": "user", "content": "fruit?"}])


@pytest.mark.parametrize("content", ["</think>", "<think></think>", "<think>\n\n</think>\n\n"])
@pytest.mark.parametrize("asked", [TURNS[:1], TURNS])
def test_answer_of_nothing_but_a_thought_s_frame_is_refused(
    content: str, asked: tuple[Message, ...]
) -> None:
    """Qwen3's template makes an empty answer of it, which would be learned."""
    renderer = renderer_of(SHAPES["qwen3"])
    with pytest.raises(UserError, match=r"row 1: the answer .* so there is nothing to learn"):
        renderer.full(Example(1, (*asked, Message("assistant", content))))
    assert renderer.full(Example(1, (*asked, Message("assistant", "think"))))


AROUND = {
    "nothing": ("", ""),
    "thinking": ("<think>\n\n</think>\n\n", "<|im_end|>\n"),
    "an end in letters": ("", "\n### End\n"),
    "blank lines": ("\n\n", "\n\n"),
}
GENERATED = {
    "as trained": "{before}Die Stra\u00dfe \U0001f600 ist\n\nlang{after}",
    "other spaces": "\n<think></think>  so<|im_end|>",
    "a line break first": "\n{before}so",
    "no opening": "so it <is>\n### En, I think\n### End",
    "only an opening": "<think>",
    "words of the end within": "a\n### End\nb",
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND.keys())
@pytest.mark.parametrize("text", GENERATED.values(), ids=GENERATED.keys())
def test_what_is_settled_stays(around: tuple[str, str], text: str) -> None:
    """While an answer is generated, what is shown of it is the beginning of what it will be."""
    tokenizer = tiny_tokenizer()
    before, after = around
    prompt = Prompt("x", adds_special_tokens=False, before=before, after=after)
    tokens = tokenizer(text.format(before=before, after=after)).input_ids
    final = prompt.read(tokenizer, tokens)
    shown = [prompt.read_settled(tokenizer, tokens[:end]) for end in range(len(tokens) + 1)]
    for earlier, later in itertools.pairwise([*shown, final]):
        assert later.startswith(earlier)
    assert len(final) - len(shown[-1]) <= len(after) + len(before)
