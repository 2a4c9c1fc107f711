"""The base's config.json as it is written, checked before a library computes with it.

transformers builds whatever it says: a trillion layers, zero heads, an unknown activation. It then
fails somewhere inside, or never returns.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tasks.config.likeness import nearest
from tasks.engine.excerpts import shown
from tasks.engine.reading import (
    Rule,
    check_fields,
    is_file_name,
    is_integer,
    is_number,
    is_text,
    json_object,
    optional,
    reading,
)

CONFIG_FILE = "config.json"

_UNQUANTIZED = "or use the base that was saved without quantization"
_MOST_LAYERS = 1_000
"""A thousand are built in seconds, weights or not; models have up to two hundred."""
_MOST_CLASSES = 1_000_000
_LARGEST_SIZE = 1_000_000_000


def _is_size(value: object, most: int) -> bool:
    """Return whether a value is a size; null, and a list or an object of sizes, are not checked."""
    return value is None or isinstance(value, list | dict) or is_integer(value, 1, most)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _is_weights_name(value: object) -> bool:
    return is_file_name(value) and str(value).endswith((".safetensors", ".safetensors.index.json"))


_LAYERS: Rule = (partial(_is_size, most=_MOST_LAYERS), f"an integer from 1 to {_MOST_LAYERS:,}")
_SIZE: Rule = (partial(_is_size, most=_LARGEST_SIZE), f"an integer from 1 to {_LARGEST_SIZE:,}")
_SIZES: dict[str, Rule] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), _LAYERS),
    "num_labels": (
        partial(_is_size, most=_MOST_CLASSES),
        f"an integer from 1 to {_MOST_CLASSES:,}",
    ),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "vocab_size", "head_dim"), _SIZE),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "d_kv"), _SIZE),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "num_heads"), _SIZE),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), _SIZE),
}
_OBJECT: Rule = (optional(lambda value: isinstance(value, dict)), "an object, as in {…}, or null")
_ABOVE_ZERO: Rule = (optional(partial(is_number, above=0)), "a number above 0")
_DTYPE: Rule = (optional(lambda value: isinstance(value, str | dict)), "a dtype, such as bfloat16")
_FIELDS: dict[str, Rule] = {
    **_SIZES,
    "model_type": (optional(is_text), "the name of an architecture"),
    **dict.fromkeys(("dtype", "torch_dtype"), _DTYPE),
    "rope_scaling": _OBJECT,
    "rope_parameters": _OBJECT,
    "quantization_config": _OBJECT,
    "return_dict": (optional(lambda value: value is True), "true, as the outputs are read by name"),
    "rope_theta": _ABOVE_ZERO,
    "transformers_weights": (
        optional(_is_weights_name),
        "the name of a safetensors file, or of an index of them, beside config.json",
    ),
}
_ROPE: dict[str, Rule] = {
    **dict.fromkeys(("rope_theta", "factor", "original_max_position_embeddings"), _ABOVE_ZERO),
    **dict.fromkeys(("short_factor", "long_factor"), (optional(_is_numbers), "a list of numbers")),
    **dict.fromkeys(("rope_type", "type"), (optional(is_text), "the name of a scaling method")),
}
_NO_PARTS = ("id2label", "label2id", "task_specific_params", "quantization_config")
"""Objects whose keys are not settings of a model."""


def read_config_file(folder: Path) -> Mapping[str, Any]:
    """Read the configuration in a base's folder, and check the settings that all models share.

    Raises:
        UserError: it is not a JSON object, or a size, RoPE's or the quantization's settings are
            impossible.
    """
    file = folder / CONFIG_FILE
    given = json_object(file)
    with reading(f"{file} can't be used"):  # it may be nested too deeply for us, too
        for path, part in _parts(given):
            _check_part(part, f"{file}: {path}" if path else str(file))
    return given


def _check_part(part: Mapping[str, Any], name: str) -> None:
    check_fields(part, _FIELDS, name)
    for key in ("rope_scaling", "rope_parameters"):
        rope = part.get(key) or {}
        for kind in (rope, *(one for one in rope.values() if isinstance(one, dict))):
            check_fields(kind, _ROPE, f"{name}: {key}")


def _parts(given: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the configuration and the models' in it, such as `text_config`, with their paths."""
    yield path, given
    for key, value in given.items():
        if isinstance(value, dict) and key not in (*_NO_PARTS, "rope_scaling", "rope_parameters"):
            yield from _parts(value, f"{path}.{key}".lstrip("."))


def explain(folder: Path, reason: str) -> str:
    """Complete a library's reason by the setting in config.json that it is about, if it names one.

    A library that does not know a value often says no more than the value itself.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return reason
    for path, value in _texts(json_object(file)):
        if repr(value) in reason and path not in reason:
            return f"{reason} ({path} is {shown(value)}{_possible(path, value)})"
    return reason


def _texts(given: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts with their dotted paths."""
    for key, value in given.items():
        place = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict):
            yield from _texts(value, place)
        elif isinstance(value, str):
            yield place, value


def _possible(path: str, value: str) -> str:
    """Return which values the setting may have, where transformers has a list of them."""
    names = sorted(_known_values(path.rpartition(".")[2]))
    if not names or value in names:
        return ""
    near = nearest(value, names)
    hint = f", did you mean {near}?" if near else ""
    return f"{hint}; possible: {', '.join(names)}"


def _known_values(key: str) -> tuple[str, ...]:
    if key in ("dtype", "torch_dtype"):
        return ("bfloat16", "float16", "float32")
    if key in ("rope_type", "type"):
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        return ("default", *ROPE_INIT_FUNCTIONS)
    if "act" in key.split("_") or "activation" in key:
        from transformers.activations import ACT2FN

        return tuple(ACT2FN)
    return ()


def check_quantization(folder: Path, given: object) -> None:
    """Check that transformers knows the quantization that a base was saved with.

    Args:
        folder: the base's.
        given: its `quantization_config`, if any.

    Raises:
        UserError: it does not.
    """
    from transformers.quantizers.auto import AutoQuantizationConfig

    if isinstance(given, dict):
        problem = f"{folder / CONFIG_FILE}: quantization_config can't be used"
        with reading(problem, lambda reason: f"{explain(folder, reason)}; {_UNQUANTIZED}"):
            AutoQuantizationConfig.from_dict(given)
