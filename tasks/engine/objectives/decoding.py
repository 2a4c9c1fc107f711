"""Greedy decoding of many prompts at once, in fewer operations than `generate` takes.

`generate` computes what all prompts begin with, such as a system prompt, for each of them, and goes
on with every row of a batch until its longest answer ends. Here the common beginning is computed
once, its keys and values are copied for the rows, and a row leaves the batch when its answer ends.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache

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
_tried: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()
"""Whether a model's rows had the logits they have alone."""

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
        batch_size: most prompts at once.
        on_progress: called with the number of answers that have ended since the last call.
        on_tokens: called for each token of the first answer.

    Returns:
        The tokens of the answers, each with the one that ended it, if any.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    with torch.inference_mode():
        length = prefix_length(prompts)
        prefix = _computed(model, prompts[0][:length]) if length else None
        for start in range(0, len(prompts), batch_size):
            batch = _Rows(model, prompts[start : start + batch_size], prefix, length)
            for given in batch.tokens(max_new_tokens, set(ends), on_progress):
                for row, token in given:
                    answers[start + row].append(token)
                if on_tokens and given[0][0] == start == 0:
                    on_tokens(answers[0])
    return answers


def prefix_length(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with, less one of the shortest; 0 if too few."""
    if len(prompts) < 2:  # noqa: PLR2004 - a prompt shares nothing with itself
        return 0
    first, last = min(prompts), max(prompts)
    shortest = min(map(len, prompts))
    pairs = zip(first[: shortest - 1], last[: shortest - 1], strict=True)
    length = next((i for i, (one, other) in enumerate(pairs) if one != other), shortest - 1)
    return length if length >= _MIN_PREFIX else 0


class _Rows:
    """Rows that are continued together; those whose answer has ended leave.

    They are padded on the left, as `generate` does it: a window of attention counts padding, too.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        prompts: Sequence[list[int]],
        prefix: "DynamicCache | None",
        prefix_length: int,
    ) -> None:
        self._model = model
        self._left = list(range(len(prompts)))
        """The rows that go on, by their number."""
        longest = max(map(len, prompts))
        padding = [longest - len(tokens) for tokens in prompts]
        ids = [[0] * pads + tokens for pads, tokens in zip(padding, prompts, strict=True)]
        self._mask = self._tensor([[0] * pads + [1] * (longest - pads) for pads in padding])
        places = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._cache: Any = _shifted(prefix, padding) if prefix else None
        own = [tokens[prefix_length:] for tokens in ids]
        self._logits = self._forward(self._tensor(own), places[:, prefix_length:])
        self._next_places = places[:, -1:] + 1

    def tokens(
        self, max_new_tokens: int, ends: set[int], on_progress: Callable[[int], None] | None
    ) -> Iterator[list[tuple[int, int]]]:
        """Yield the next token of each row that is left, with the row's number."""
        for count in range(1, max_new_tokens + 1):
            given = self._logits.argmax(dim=-1).tolist()
            yield list(zip(self._left, given, strict=True))
            is_last = count == max_new_tokens
            kept = [] if is_last else [i for i, token in enumerate(given) if token not in ends]
            if on_progress and len(kept) < len(given):
                on_progress(len(given) - len(kept))
            if not kept:
                return
            self.keep(kept)
            self.step([given[index] for index in kept])

    def keep(self, kept: list[int]) -> None:
        """Let all rows but these leave, by their places among those that are left."""
        if len(kept) == len(self._left):
            return
        rows = self._tensor(kept)
        self._left = [self._left[index] for index in kept]
        self._mask, self._next_places = self._mask[rows], self._next_places[rows]
        self._cache.batch_select_indices(rows)

    def step(self, tokens: list[int]) -> "Tensor":
        """Continue each row by a token; return its next logits, [rows, vocabulary]."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._logits = self._forward(self._tensor(tokens)[:, None], self._next_places)
        self._next_places = self._next_places + 1
        return self._logits

    def _forward(self, ids: "Tensor", places: "Tensor") -> "Tensor":
        output = _forward(self._model, ids, self._mask, places, self._cache)
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits

    def _tensor(self, values: Any) -> "Tensor":  # noqa: ANN401 - lists of numbers
        return torch.tensor(values, device=self._model.device)


def _computed(model: "PreTrainedModel", tokens: list[int]) -> "DynamicCache":
    ids = torch.tensor([tokens], device=model.device)
    places = torch.arange(len(tokens), device=model.device)[None]
    cache: DynamicCache = _forward(model, ids, torch.ones_like(ids), places, None).past_key_values
    return cache


def _forward(
    model: "PreTrainedModel",
    ids: "Tensor",
    mask: "Tensor",
    places: "Tensor",
    cache: "DynamicCache | None",
) -> Any:  # noqa: ANN401 - each model has an output class of its own
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )


def _shifted(prefix: "DynamicCache", padding: Sequence[int]) -> "DynamicCache":
    """Return the cache of a batch's first columns, as many as the prefix has tokens.

    Of a padded row that is the padding, and what then fits of the prefix.
    """
    cache = copy.deepcopy(prefix)
    layer: Any  # a `DynamicLayer`, as `_keeps_all` found
    for layer in cache.layers:
        layer.keys, layer.values = (_moved(one, padding) for one in (layer.keys, layer.values))
    return cache


def _moved(states: "Tensor", padding: Sequence[int]) -> "Tensor":
    """Repeat [1, heads, tokens, size] for each row, moved right by its padding."""
    rows = states.new_zeros((len(padding), *states.shape[1:]))
    for row, pads in zip(rows, padding, strict=True):
        kept = max(0, states.shape[2] - pads)
        row[:, states.shape[2] - kept :] = states[0, :, :kept]
    return rows


def can_decode(model: "PreTrainedModel", prompt: list[int]) -> bool:
    """Return whether `decode` continues prompts as `generate` does.

    A model may keep a state that is no cache of keys and values, count positions in its own way, or
    ask for more than greedy decoding, such as stop strings. So, once a model, rows with a common
    beginning are tried: their logits have to be those that they have alone.
    """
    if model.config.is_encoder_decoder or _wishes(model) or _depends_on_length(model):
        return False
    if model not in _tried:
        takes = signature(model.forward).parameters
        tokens = [*prompt, *range(_FEWEST_TOKENS)][:_PROBE_TOKENS]
        with torch.inference_mode():
            _tried[model] = {"position_ids", "logits_to_keep"} <= set(takes) and all(
                _agrees(model, tokens, length) for length in (len(tokens) // 3, 0)
            )
    return _tried[model]


def _depends_on_length(model: "PreTrainedModel") -> bool:
    """Return whether positions are encoded in another way in longer texts than in the prefix."""
    rope = str(getattr(model.config.get_text_config(), "rope_parameters", None))
    return any(f"'{kind}'" in rope for kind in ("dynamic", "longrope"))


def _wishes(model: "PreTrainedModel") -> set[str]:
    asked = model.generation_config.to_diff_dict() if model.generation_config else {}
    return {name for name, value in asked.items() if value not in (None, False)} - _GREEDY


def _agrees(model: "PreTrainedModel", tokens: list[int], prefix_length: int) -> bool:
    """Return whether a padded row, after another one has left, has the logits it has alone."""
    prefix = _computed(model, tokens[:prefix_length]) if prefix_length else None
    if prefix_length and not _keeps_all(prefix):
        return False
    short = tokens[: max(2, 2 * prefix_length)]
    rows = _Rows(model, [short, tokens], prefix, prefix_length)
    rows.keep([0])
    together = rows.step(tokens[:1])
    ids = torch.tensor([[*short, tokens[0]]], device=model.device)
    alone = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    difference = float((together - alone).abs().max() / alone.abs().max())
    is_exact = alone.dtype == torch.float32
    return difference < (_TOLERANCE_FLOAT32 if is_exact else _TOLERANCE_LOW_PRECISION)


def _keeps_all(cache: Any) -> bool:  # noqa: ANN401 - whatever a model returns
    """Return whether a cache is of all keys and values, without a window or a state."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

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
