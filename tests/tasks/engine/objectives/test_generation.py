"""Answers are the model's own greedy ones, however they are batched; matching knows JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tasks.engine.data.rendering.prompts import Prompt
from tasks.engine.objectives.generation import answer, matches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROMPTS = [
    "What is the capital of France? Please help me with the question.",
    "fox",
    "The lazy dog",
    "My card was declined 😀",
    "fox fox",
]


@pytest.fixture
def model(tiny_base: Path) -> "PreTrainedModel":
    """Load the tiny Llama."""
    return cast("PreTrainedModel", AutoModelForCausalLM.from_pretrained(tiny_base))


def answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: list[str],
    max_new_tokens: int = 6,
    batch_size: int = 8,
) -> list[str]:
    """Answer prompts, to which the tokenizer adds its special tokens."""
    return answer(
        model,
        tokenizer,
        [Prompt(text) for text in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )


def greedy(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", prompt: str, count: int
) -> list[int]:
    """Continue a prompt token by token, each the likeliest."""
    ids = list(tokenizer(prompt)["input_ids"])
    start = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_answers_are_greedy_and_in_order(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", batch_size: int
) -> None:
    """Each prompt gets, in its place, what the model answers to it alone."""
    expected = [
        tokenizer.decode(greedy(model, tokenizer, prompt, 6), skip_special_tokens=True)
        for prompt in PROMPTS
    ]

    assert answers(model, tokenizer, PROMPTS, batch_size=batch_size) == expected
    assert len(set(expected)) == len(PROMPTS)


def test_answer_stops_at_an_end_token(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """Generation ends at the first of the model's own end tokens."""
    ids = greedy(model, tokenizer, PROMPTS[0], 6)
    end = next(number for number in range(1, 6) if ids[number] not in ids[:number])
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [2, ids[end]]

    [stopped] = answers(model, tokenizer, PROMPTS[:1])

    assert stopped == tokenizer.decode(ids[: end + 1])


def test_tokenizers_end_token_ends_an_answer_too(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """Training ends answers with the tokenizer's end token, so it counts beside the model's."""
    ids = greedy(model, tokenizer, PROMPTS[0], 6)
    end = next(number for number in range(1, 6) if ids[number] not in ids[:number])
    tokenizer.eos_token = str(tokenizer.convert_ids_to_tokens(ids[end]))

    [stopped] = answers(model, tokenizer, PROMPTS[:1])

    assert stopped == tokenizer.decode(ids[: end + 1])


def test_models_stop_strings_end_an_answer(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """A base that stops at a text is asked with its tokenizer, without which it would fail."""
    ids = greedy(model, tokenizer, PROMPTS[0], 6)
    end = next(number for number in range(1, 6) if ids[number] not in ids[:number])
    assert model.generation_config is not None
    model.generation_config.stop_strings = [tokenizer.decode(ids[: end + 1])]

    [stopped] = answers(model, tokenizer, PROMPTS[:1])

    assert stopped == tokenizer.decode(ids[: end + 1])


def test_answer_is_no_longer_than_allowed(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """`max_new_tokens` bounds the answer, whatever the prompt's length and the model's wishes."""
    assert model.generation_config is not None
    model.generation_config.max_length = 5
    ids = greedy(model, tokenizer, PROMPTS[0], 9)

    for count in (1, 4, 9):
        [given] = answers(model, tokenizer, PROMPTS[:1], max_new_tokens=count)
        assert given == tokenizer.decode(ids[:count], skip_special_tokens=True)


@pytest.mark.parametrize(
    "wishes",
    [
        {"do_sample": True, "temperature": 50.0},
        {"num_beams": 3},
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
    ],
)
def test_models_own_way_of_decoding_does_not_count(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", wishes: dict[str, object]
) -> None:
    """Answers stay greedy for a model whose generation configuration asks for another way."""
    expected = answers(model, tokenizer, PROMPTS, max_new_tokens=12)
    assert model.generation_config is not None
    model.generation_config.update(**wishes)

    assert answers(model, tokenizer, PROMPTS, max_new_tokens=12) == expected


def test_output_layer_is_left_as_it_was(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hook on the output layer goes with the answer, also when generation fails."""
    answers(model, tokenizer, PROMPTS)
    assert not model.get_output_embeddings()._forward_pre_hooks

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(LlamaForCausalLM, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(model, tokenizer, PROMPTS)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_output_layer_gets_its_input_without_gaps(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """The last positions reach the output layer as one block, which spares it a large copy."""
    seen = []
    head = model.get_output_embeddings()
    answers(model, tokenizer, PROMPTS)  # the first time, the model is tried
    head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].is_contiguous()))

    answers(model, tokenizer, PROMPTS)

    assert all(seen)
    assert len(seen) == 6


def test_special_tokens_are_added_only_where_asked(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """A prompt that carries its BOS answers as one that still gets it from the tokenizer."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )

    def ask(prompt: str, *, adds: bool) -> list[str]:
        return answer(
            model,
            tokenizer,
            [Prompt(prompt, adds_special_tokens=adds)],
            max_new_tokens=6,
            batch_size=1,
        )

    assert ask("<s>fox", adds=False) == ask("fox", adds=True)
    assert ask("fox", adds=False) != ask("fox", adds=True)


def test_an_answer_grows_to_what_is_returned(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """A single prompt's answer is passed on token by token, as far as it is settled."""
    grown: list[str] = []
    (given,) = answer(
        model, tokenizer, [Prompt("Hello")], max_new_tokens=20, batch_size=4, on_text=grown.append
    )
    assert len(grown) > 1
    assert all(given.startswith(text) for text in grown)
    assert grown == sorted(grown, key=len)
    assert given.rstrip("\N{REPLACEMENT CHARACTER}") == grown[-1]


def test_progress_adds_up_to_all_prompts(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """Progress reports how many more prompts are done; no prompt has no answer."""
    seen: list[int] = []

    answer(
        model,
        tokenizer,
        [Prompt(text) for text in PROMPTS],
        max_new_tokens=1,
        batch_size=2,
        on_progress=seen.append,
    )

    assert seen == [2, 2, 1]
    assert answers(model, tokenizer, []) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"b": [1, 2], "a": "x"}', '{"a":"x","b":[1,2]}'),
        ('\n{ "a": "\\u00e9" } ', '{"a": "é"}'),
        ("[true, null]", "[ true,null ]"),
        ('{"n": 1e3}', '{"n": 1000.0}'),
        ('{"n": 1.0}', '{"n": 1}'),
        (" Paris\n", "Paris"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_equal_answers_match(given: str, expected: str) -> None:
    """White space around any answer does not count; key order, spacing and notation in JSON."""
    assert matches(given, expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3.1", "3.10"),
        ("1e3", "1000.0"),
        ('"a"', '"\\u0061"'),
        ('{"a": 2, "a": 1}', '{"a": 1}'),
        ('{"a": 1e99999999999999999999}', '{"a": 1}'),
        ("[1]", "[true]"),
        ("0", "false"),
        ('"1"', "1"),
        ("[1, 2]", "[2, 1]"),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1', '{"a": 1}'),
        ('{"a": 1} ok', '{"a": 1}'),
        ("paris", "Paris"),
        ("Paris.", "Paris"),
        ("a  b", "a b"),
        ("", "Paris"),
        ("[" * 100_000, "[]"),
    ],
)
def test_unequal_answers_do_not_match(given: str, expected: str) -> None:
    """Other values, other types, other order of a list, and any other text are wrong."""
    assert not matches(given, expected)
