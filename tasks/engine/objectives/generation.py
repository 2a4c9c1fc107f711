"""Answers by real generation: greedy, in batches."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from tasks.engine.base.input_limits import limits_in
from tasks.engine.data.json_values import parse_answer, same_json
from tasks.engine.data.prompts import Prompt
from tasks.engine.eval_mode import eval_mode
from tasks.engine.objectives.objective import Answer
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


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

    Raises:
        UserError: a prompt leaves no room for an answer within the model's positions.
    """
    positions = limits_in(model).fixed_positions
    asked = [prompt.tokens(tokenizer) for prompt in prompts]
    rooms = [max_new_tokens] * len(prompts)
    if positions and prompts:
        if model.config.is_encoder_decoder:
            # In training, too, an encoder's text is cut where its positions end; the decoder has
            # all positions for the answer.
            asked = [ids[:positions] for ids in asked]
        taken = [0 if model.config.is_encoder_decoder else len(ids) for ids in asked]
        rooms = _rooms(taken, max_new_tokens, positions)
    order = sorted(range(len(prompts)), key=lambda index: (-rooms[index], len(asked[index])))
    answers = [""] * len(prompts)
    # Prompts with equal room only, so that an answer's length is its own prompt's affair.
    for room, of_room in groupby(order, key=lambda index: rooms[index]):
        alike = list(of_room)
        for start in range(0, len(alike), batch_size):
            indices = alike[start : start + batch_size]
            new = _answer_batch(model, tokenizer, [asked[index] for index in indices], room)
            for index, tokens in zip(indices, new, strict=True):
                answers[index] = prompts[index].read(tokenizer, tokens)
            if on_progress:
                on_progress(len(indices))
    return answers


def _rooms(taken: Sequence[int], max_new_tokens: int, positions: int) -> list[int]:
    """Return how many tokens each answer may have: no more than positions are left for it."""
    if max(taken) >= positions:
        raise UserError(
            f"a prompt has {max(taken)} tokens; the model has {positions} positions, for the "
            "prompt and its answer together: shorten the prompt"
        )
    rooms = [min(max_new_tokens, positions - count) for count in taken]
    if short := sum(room < max_new_tokens for room in rooms):
        log.warning(
            "%d of %d answers end before max_new_tokens %d at the model's %d positions",
            short,
            len(rooms),
            max_new_tokens,
            positions,
        )
    return rooms


def _answer_batch(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    asked: list[list[int]],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the tokens that the model writes behind each of the prompts' tokens."""
    import torch
    from transformers import GenerationConfig

    inputs = tokenizer.pad(
        {"input_ids": asked},
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
    return new.tolist()


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
