"""Answers by real generation: greedy, in batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.engine.data.json_values import parse_answer, same_json
from tasks.engine.data.prompts import Prompt
from tasks.engine.eval_mode import eval_mode
from tasks.engine.objectives.objective import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Generating:
    """What `Objective` asks of a language model, whose output layer the base has."""

    def metrics(
        self,
        expected: Sequence[Sequence[int]],  # noqa: ARG002
        predicted: Sequence[Sequence[int]],  # noqa: ARG002
        names: Sequence[str],  # noqa: ARG002
    ) -> dict[str, float]:
        """Judge by the loss alone."""
        return {}

    def answer(  # noqa: PLR0913 - the signature of all tasks
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        batch_size: int,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer greedily."""
        texts = answer(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            on_progress=on_progress,
        )
        return [Answer(text) for text in texts]


def answer(  # noqa: PLR0913 - what to answer, with what, how long, how many at once
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Answer prompts greedily.

    Args:
        model: a language model, with whatever adapters are active.
        tokenizer: its tokenizer.
        prompts: rendered prompts.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts answered at once.
        on_progress: told how many more prompts are answered.

    Returns:
        The content of the answers in the prompts' order, without special tokens.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].text))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = [prompts[index] for index in indices]
        texts = _answer_batch(model, tokenizer, batch, max_new_tokens)
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text
        if on_progress:
            on_progress(len(indices))
    return answers


def _answer_batch(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[Prompt],
    max_new_tokens: int,
) -> list[str]:
    import torch
    from transformers import GenerationConfig

    inputs = tokenizer.pad(
        {"input_ids": [prompt.tokens(tokenizer) for prompt in prompts]},
        return_tensors="pt",
        # Answers begin where prompts end; an encoder counts positions from the first token on.
        padding_side="right" if model.config.is_encoder_decoder else "left",
    ).to(model.device)
    # A configuration of our own: a model's own may ask for sampling, and generate() takes from it
    # whatever is unset here. A penalty would count padding, too.
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=_end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    with eval_mode(model), torch.inference_mode(), _contiguous_head(model):
        output: torch.Tensor = model.generate(  # type: ignore[operator]
            **inputs, generation_config=greedy
        )
    new = output if model.config.is_encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
    return [prompt.read(tokenizer, ids) for prompt, ids in zip(prompts, new.tolist(), strict=True)]


@contextmanager
def _contiguous_head(model: "PreTrainedModel") -> Iterator[None]:
    """Spare the output layer's weight one copy a row.

    transformers hands it the last position of each prompt, a slice with gaps, for which torch 2.13
    expands the weight to [rows, hidden, vocabulary]: gigabytes, and a second a batch.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        hook.remove()


def _end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int] | None:
    """Give every token that may end an answer: the model's own and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    own = configured if isinstance(configured, list) else [configured]
    ends = {token for token in (*own, tokenizer.eos_token_id) if token is not None}
    return sorted(ends) or None


def matches(answer_text: str, expected: str) -> bool:
    """Return whether an answer is the expected one: JSON objects and lists by value, else text.

    Surrounding white space does not count. A number alone is a text: the version 3.10 is not 3.1.
    """
    given, wanted = answer_text.strip(), expected.strip()
    if not wanted.startswith(("{", "[")):
        return given == wanted
    try:
        return same_json(parse_answer(given), parse_answer(wanted))
    except (ValueError, RecursionError):  # the latter for `[[[[…`, which small models like to write
        return given == wanted
