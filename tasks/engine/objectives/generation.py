"""Batched greedy generation, and whether an answer matches the expected one."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tasks.engine.base import limits_in
from tasks.engine.data.rendering import Prompt
from tasks.engine.data.rows import parse_answer, same_json
from tasks.engine.eval_mode import eval_mode
from tasks.engine.objectives.objective import Answer, EachLabel
from tasks.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generating(EachLabel):
    """The part of `Objective` that generating models share; their base has the output layer."""

    def metrics(
        self,
        expected: Sequence[Sequence[int]],  # noqa: ARG002
        predicted: Sequence[Sequence[Any]],  # noqa: ARG002
        names: Sequence[str],  # noqa: ARG002
    ) -> dict[str, float]:
        """Return no metrics: a language model is evaluated by its loss alone."""
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
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Return the greedy answers to the prompts, in their order; see `answer`."""
        texts = answer(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            on_progress=on_progress,
            on_text=on_text,
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
    on_text: Callable[[str], None] | None = None,
) -> list[str]:
    """Answer prompts by greedy decoding.

    Args:
        model: a language model; its active adapters take part.
        tokenizer: its tokenizer.
        prompts: rendered prompts.
        max_new_tokens: most tokens of an answer.
        batch_size: prompts per batch.
        on_progress: called after each batch with the number of prompts in it.
        on_text: called with what is settled of an answer, token by token; ignored for batches of
            several prompts.

    Returns:
        The text of the answers in the prompts' order, without special tokens.

    Raises:
        UserError: a prompt leaves no room for an answer within the model's positions.
    """
    positions = limits_in(model).fixed_positions
    asked = [prompt.tokens(tokenizer) for prompt in prompts]
    rooms = [max_new_tokens] * len(prompts)
    if positions and prompts:
        if model.config.is_encoder_decoder:
            # As in training, an encoder's text is truncated to its positions; the decoder has as
            # many for the answer alone.
            asked = [ids[:positions] for ids in asked]
        taken = [0 if model.config.is_encoder_decoder else len(ids) for ids in asked]
        rooms = _rooms(taken, max_new_tokens, positions)
    order = sorted(range(len(prompts)), key=lambda index: (-rooms[index], len(asked[index])))
    answers = [""] * len(prompts)
    # A batch has one `max_new_tokens`, so it holds prompts with equal room only: how long an answer
    # may be must not depend on its neighbors. Similar lengths within a batch need little padding.
    for room, of_room in groupby(order, key=lambda index: rooms[index]):
        alike = list(of_room)
        for start in range(0, len(alike), batch_size):
            indices = alike[start : start + batch_size]
            stream = None
            if on_text and len(indices) == 1:
                stream = _Stream(prompts[indices[0]], tokenizer, on_text)
            of_batch = [asked[index] for index in indices]
            new = _answer_batch(model, tokenizer, of_batch, room, stream)
            for index, tokens in zip(indices, new, strict=True):
                answers[index] = prompts[index].read(tokenizer, tokens)
            if on_progress:
                on_progress(len(indices))
    return answers


class _Stream:
    """Passes on one answer while it is generated; transformers calls `put` and `end`."""

    def __init__(
        self, prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", on_text: Callable[[str], None]
    ) -> None:
        self._prompt, self._tokenizer, self._on_text = prompt, tokenizer, on_text
        self._tokens: list[int] | None = None

    def put(self, tokens: "Tensor") -> None:
        """Take the next token; first of all, transformers gives the prompt."""
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += tokens.flatten().tolist()
        self._on_text(self._prompt.read_settled(self._tokenizer, self._tokens))

    def end(self) -> None:
        """Do nothing: the complete answer is returned."""


def _rooms(taken: Sequence[int], max_new_tokens: int, positions: int) -> list[int]:
    """Return the most tokens of each answer: the positions left for it, at most `max_new_tokens`.

    Raises:
        UserError: a prompt leaves no position for its answer.
    """
    if max(taken) >= positions:
        raise UserError(
            f"a prompt has {max(taken)} tokens, but the model has {positions} positions for the "
            "prompt and its answer together; shorten the prompt"
        )
    rooms = [min(max_new_tokens, positions - count) for count in taken]
    if short := sum(room < max_new_tokens for room in rooms):
        log.warning(
            "%d of %d answers are limited to less than max_new_tokens %d by the model's %d "
            "positions",
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
    stream: "_Stream | None",
) -> list[list[int]]:
    """Return the tokens that the model generates after each prompt."""
    import torch
    from transformers import GenerationConfig

    inputs = tokenizer.pad(
        {"input_ids": asked},
        return_tensors="pt",
        # A decoder continues at the end of the prompt; an encoder counts positions from the first
        # token.
        padding_side="right" if model.config.is_encoder_decoder else "left",
    ).to(model.device)
    # A model's own configuration may ask for sampling or penalties, and generate() takes from it
    # every value that is None here, so defaults are set explicitly. A penalty would also apply to
    # padding.
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
            **inputs,
            generation_config=greedy,
            tokenizer=tokenizer,  # for the base's stop strings, if it has some
            streamer=stream,
        )
    new = output if model.config.is_encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
    return new.tolist()


@contextmanager
def _contiguous_head(model: "PreTrainedModel") -> Iterator[None]:
    """Pass contiguous hidden states to the output layer.

    transformers passes it the last position of each prompt, a strided slice, for which torch 2.13
    expands the weight to [rows, hidden, vocabulary]: gigabytes, and a second per batch.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        hook.remove()


def _end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int] | None:
    """Return every token that ends an answer: the model's and the tokenizer's; None if neither."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    own = configured if isinstance(configured, list) else [configured]
    ends = {token for token in (*own, tokenizer.eos_token_id) if token is not None}
    return sorted(ends) or None


def matches(answer_text: str, expected: str) -> bool:
    """Return whether an answer equals the expected one: JSON containers by value, else text.

    Surrounding whitespace is ignored. A number alone is compared as text: version 3.10 is not 3.1.
    """
    given, wanted = answer_text.strip(), expected.strip()
    if not wanted.startswith(("{", "[")):
        return given == wanted
    try:
        return same_json(parse_answer(given), parse_answer(wanted))
    except (ValueError, RecursionError):  # RecursionError: `[[[[…`, which small models often write
        return given == wanted
