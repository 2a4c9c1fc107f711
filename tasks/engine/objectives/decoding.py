"""Greedy decoding of many prompts at once, in fewer operations than `generate` takes.

`generate` computes what all prompts begin with, such as a system prompt, for each of them, goes on
with every row of a batch until its longest answer ends, and copies all keys and values for each
token. Here the common beginning is computed once, and its keys and values are copied for the rows.
A row leaves the batch when its answer ends, and waiting prompts join. Keys and values have room, so
a token's are only added.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from tasks.engine.objectives.continued_rows import ROOM, ContinuedRows, computed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GREEDY = {
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "transformers_version",
    "typical_p",
    "use_cache",
}
"""Of a model's generation configuration, what greedy decoding sets itself or doesn't read."""
_TOLERANCE_FLOAT32 = 1e-3
_TOLERANCE_LOW_PRECISION = 1e-1
"""Largest difference of logits by their largest value, as for packed rows in training."""
_PROBE_TOKENS = 24
_FEWEST_TOKENS = 6
_MIN_PREFIX = 4
_JOINING_SHARE = 4
"""Prompts join when a batch has lost one of as many rows: a few at once are computed faster."""
_MORE_ROWS = 4
_LITTLE_BYTES = 512 * 2**20
"""Up to as many times `batch_size` rows are continued while their keys and values take no more."""
_token_bytes: "WeakKeyDictionary[PreTrainedModel, dict[bool, int]]" = WeakKeyDictionary()
"""Bytes of a token's keys and values, by whether rows begin alike; 0 if they did not have the
logits that they have alone.
"""

OnTokens = Callable[[list[int]], None]
"""Called with the tokens of an answer so far."""


def decode(  # noqa: PLR0913 - what to continue, with what, how long, how many at once
    model: "PreTrainedModel",
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
    on_tokens: OnTokens | None = None,
) -> list[list[int]]:
    """Continue each prompt by its likeliest tokens.

    Args:
        model: a model that `can_decode`, in evaluation mode.
        prompts: tokens, at least one each; those of similar length are best side by side.
        max_new_tokens: most tokens of an answer.
        ends: tokens that end an answer.
        batch_size: most prompts at once. Where keys and values take little memory, up to four times
            as many rows are continued at once; a `batch_size` of 1 is kept, as in half precision an
            answer may depend on the other rows.
        on_progress: called with the number of answers that have ended since the last call.
        on_tokens: called for each token of the first answer.

    Returns:
        The tokens of the answers, each with the one that ended it, if any.
    """
    if not prompts:
        return []
    answers: list[list[int]] = [[] for _ in prompts]
    size = min(_num_rows(model, prompts, max_new_tokens, batch_size), len(prompts))
    with torch.inference_mode():
        length = prefix_length(prompts)
        prefix = computed(model, prompts[0][:length]) if length else None
        rows = ContinuedRows(model, prefix, length, size, longest=max(map(len, prompts)))
        num_joined = 0
        while rows.numbers or num_joined < len(prompts):
            free = size - len(rows.numbers)
            if num_joined < len(prompts) and free * _JOINING_SHARE >= size:
                end = min(num_joined + min(free, batch_size), len(prompts))
                joining = range(num_joined, end)
                num_joined = joining.stop
                rows.join(joining, [prompts[number] for number in joining])
            else:
                rows.step()
            for number, token in rows.new:
                answers[number].append(token)
                if on_tokens and number == 0:
                    on_tokens(answers[0])
            num_ended = rows.drop(
                {
                    number
                    for number, token in rows.new
                    if token in ends or len(answers[number]) == max_new_tokens
                }
            )
            if on_progress and num_ended:
                on_progress(num_ended)
    return answers


def _num_rows(
    model: "PreTrainedModel", prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> int:
    """Return how many rows to continue at once: a step for more of them takes little more time."""
    if batch_size == 1:
        return 1
    token_bytes = _token_bytes.get(model, {}).get(prefix_length(prompts) > 0, 0)
    row_bytes = token_bytes * (max(map(len, prompts)) + max_new_tokens + ROOM)
    fitting = _LITTLE_BYTES // row_bytes if row_bytes else 0
    return max(batch_size, min(_MORE_ROWS * batch_size, fitting))


def prefix_length(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with, less one of the shortest; 0 if too few."""
    if len(prompts) < 2:  # noqa: PLR2004 - a prompt shares nothing with itself
        return 0
    first, last = min(prompts), max(prompts)
    shortest = min(map(len, prompts))
    pairs = zip(first[: shortest - 1], last[: shortest - 1], strict=True)
    length = next((i for i, (one, other) in enumerate(pairs) if one != other), shortest - 1)
    return length if length >= _MIN_PREFIX else 0


def can_decode(model: "PreTrainedModel", prompts: Sequence[list[int]]) -> bool:
    """Return whether `decode` continues prompts as `generate` does.

    A model may keep a state that is no cache of keys and values, count positions in its own way, or
    ask for more than greedy decoding, such as stop strings. So rows are tried, once a model with a
    common beginning and once without, when it is first asked for: their logits have to be those
    that they have alone.
    """
    if model.config.is_encoder_decoder or _wishes(model) or _depends_on_length(model):
        return False
    begin_alike = prefix_length(prompts) > 0
    known = _token_bytes.setdefault(model, {})
    if begin_alike not in known:
        tokens = [*prompts[-1], *range(_FEWEST_TOKENS)][:_PROBE_TOKENS]
        with torch.inference_mode():
            known[begin_alike] = _tried(model, tokens, len(tokens) // 3 if begin_alike else 0)
    return known[begin_alike] > 0


def _tried(model: "PreTrainedModel", tokens: list[int], prefix_length: int) -> int:
    """Return the bytes of a token's keys and values; 0 if rows can't be continued together."""
    if not {"position_ids", "logits_to_keep"} <= set(signature(model.forward).parameters):
        return 0
    cache = computed(model, tokens)
    if not (_keeps_all(cache) and _agrees(model, tokens, prefix_length)):
        return 0
    return _num_bytes(cache) // len(tokens)


def _num_bytes(cache: Any) -> int:  # noqa: ANN401 - a `DynamicCache`, as `_keeps_all` found
    return sum(int(one.nbytes) for layer in cache.layers for one in (layer.keys, layer.values))


def _depends_on_length(model: "PreTrainedModel") -> bool:
    """Return whether positions are encoded in another way in longer texts than in the prefix."""
    rope = str(getattr(model.config.get_text_config(), "rope_parameters", None))
    return any(f"'{kind}'" in rope for kind in ("dynamic", "longrope"))


def _wishes(model: "PreTrainedModel") -> set[str]:
    asked = model.generation_config.to_diff_dict() if model.generation_config else {}
    return {name for name, value in asked.items() if value not in (None, False)} - _GREEDY


def _agrees(model: "PreTrainedModel", tokens: list[int], prefix_length: int) -> bool:
    """Return whether rows have the logits they have alone, after one has left and one joined."""
    prefix = computed(model, tokens[:prefix_length]) if prefix_length else None
    short = tokens[: max(2, 2 * prefix_length)]
    rows = ContinuedRows(model, prefix, prefix_length, 2, longest=len(tokens))
    seen = {1: [*short]}

    def note() -> None:
        for number, token in rows.new:
            if number in seen:
                seen[number].append(token)

    rows.join([0, 1], [tokens, short])
    note()
    rows.drop({0})
    rows.step()
    note()
    rows.join([2], [tokens])
    seen.update({2: [*tokens]})
    note()
    rows.step()
    is_exact = rows.logits.dtype == torch.float32
    tolerance = _TOLERANCE_FLOAT32 if is_exact else _TOLERANCE_LOW_PRECISION
    for number, together in zip(rows.numbers, rows.logits, strict=True):
        ids = torch.tensor([seen[number]], device=model.device)
        alone = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        if not float((together - alone).abs().max() / alone.abs().max()) < tolerance:
            return False
    return True


def _keeps_all(cache: Any) -> bool:  # noqa: ANN401 - whatever a model returns
    """Return whether a cache is of all keys and values, without a window or a state."""
    return isinstance(cache, DynamicCache) and all(
        type(layer) is DynamicLayer for layer in cache.layers
    )


@contextmanager
def contiguous_head(model: "PreTrainedModel") -> Iterator[None]:
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
