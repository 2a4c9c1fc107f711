"""Batched greedy generation, and whether an answer matches the expected one."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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

_FEWEST_ROWS, _FEWEST_STEPS = 4, 32
"""At once, and one after the other, for which it pays off to copy the base's weights."""
_MOST_COPIED_BYTES = 2 * 10**9
"""Of weights, beyond which a copy would take more memory than the time is worth."""


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
        batch_size: most prompts at once.
        on_progress: called with the number of prompts answered since the last call.
        on_text: called with what is settled of an answer, token by token; ignored for several
            prompts.

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
        on_tokens = None
        if on_text and len(alike) == 1:
            on_tokens = partial(_pass_on, prompts[alike[0]], tokenizer, on_text)
        new = _continued(
            model,
            tokenizer,
            [asked[index] for index in alike],
            max_new_tokens=room,
            batch_size=batch_size,
            on_progress=on_progress,
            on_tokens=on_tokens,
        )
        for index, tokens in zip(alike, new, strict=True):
            answers[index] = prompts[index].read(tokenizer, tokens)
    return answers


def _pass_on(
    prompt: Prompt,
    tokenizer: "PreTrainedTokenizerBase",
    on_text: Callable[[str], None],
    tokens: list[int],
) -> None:
    on_text(prompt.read_settled(tokenizer, tokens))


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


def _continued(  # noqa: PLR0913 - as `answer`
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    asked: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int], None] | None,
    on_tokens: Callable[[list[int]], None] | None,
) -> list[list[int]]:
    """Return the tokens of each answer, in the fastest way that the model allows."""
    from tasks.engine.kernels import answering_layers
    from tasks.engine.objectives.decoding import can_decode, contiguous_head, decode

    num_steps = len(asked) * max_new_tokens / batch_size
    is_long = min(len(asked), batch_size) >= _FEWEST_ROWS and num_steps >= _FEWEST_STEPS
    layers = answering_layers(model, most_copied_bytes=_MOST_COPIED_BYTES if is_long else 0)
    with eval_mode(model), contiguous_head(model), layers:
        if can_decode(model, asked):
            return decode(
                model,
                asked,
                max_new_tokens=max_new_tokens,
                ends=_end_tokens(model, tokenizer) or (),
                batch_size=batch_size,
                on_progress=on_progress,
                on_tokens=on_tokens,
            )
        new: list[list[int]] = []
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            new += _generated(model, tokenizer, batch, max_new_tokens, on_tokens)
            if on_progress:
                on_progress(len(batch))
        return new


class _Stream:
    """Passes on an answer while it is generated; transformers calls `put` and `end`."""

    def __init__(self, on_tokens: Callable[[list[int]], None]) -> None:
        self._on_tokens = on_tokens
        self._tokens: list[int] | None = None

    def put(self, tokens: "Tensor") -> None:
        """Take the next token; first of all, transformers gives the prompt."""
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += tokens.flatten().tolist()
        self._on_tokens(self._tokens)

    def end(self) -> None:
        """Do nothing: the complete answer is returned."""


def _generated(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    asked: Sequence[list[int]],
    max_new_tokens: int,
    on_tokens: Callable[[list[int]], None] | None,
) -> list[list[int]]:
    """Return the tokens that `generate` adds to each prompt."""
    import torch
    from transformers import GenerationConfig

    inputs = tokenizer.pad(
        {"input_ids": list(asked)},
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
    with torch.inference_mode():
        output: torch.Tensor = model.generate(  # type: ignore[operator]
            **inputs,
            generation_config=greedy,
            tokenizer=tokenizer,  # for the base's stop strings, if it has some
            streamer=_Stream(on_tokens) if on_tokens else None,
        )
    new = output if model.config.is_encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
    return new.tolist()


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
