"""An adapter's files, checked before a library reads them.

PEFT's configurations accept any value for any setting, and fail in the middle of a model.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tasks.config import Template
from tasks.engine.adapters.adapter_state import WEIGHTS_FILE
from tasks.engine.adapters.methods import LORA, find_method, wrong_type
from tasks.engine.excerpts import shown
from tasks.engine.reading import (
    Rule,
    check_fields,
    is_integer,
    is_number,
    is_text,
    is_texts,
    json_object,
    optional,
)
from tasks.engine.tensor_files import TensorEntry, first_not_finite, read_header
from tasks.errors import UserError

CONFIG_FILE = "adapter_config.json"

_MOST_NAMES = 10_000
"""Each is compared with each module of the base."""
_LARGEST_ALPHA = 1e9

_is_positive = partial(is_number, above=0)
_is_size = partial(is_integer, least=1)
_INITIALIZATION = re.compile(
    r"gaussian|eva|olora|pissa(_niter_\d{1,6})?|corda|loftq|orthogonal|lora_ga|mica", re.IGNORECASE
)
"""The names that PEFT 0.21 knows."""
_is_count = partial(is_integer, least=0)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_alpha(value: object) -> bool:
    return _is_positive(value) and float(str(value)) <= _LARGEST_ALPHA


def _is_list(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_NAMES and is_texts(value)


def _is_names(value: object) -> bool:
    return is_text(value) or _is_list(value)


def _is_initialization(value: object) -> bool:
    return _is_flag(value) or (is_text(value) and _INITIALIZATION.fullmatch(str(value)) is not None)


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _has_values(value: object, fit: Any) -> bool:  # noqa: ANN401 - a rule's function
    return isinstance(value, dict) and all(map(fit, value.values()))


_FLAG: Rule = (_is_flag, "true or false")
_NAMES: Rule = (optional(_is_names), f"a name, a list of up to {_MOST_NAMES:,} names, or null")
_TEXT: Rule = (optional(is_text), "a string, or null")
_OF_ALL_METHODS: dict[str, Rule] = {
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), _NAMES),
    **dict.fromkeys(
        ("modules_to_save", "target_parameters"),
        (optional(_is_list), f"a list of up to {_MOST_NAMES:,} names, or null"),
    ),
    **dict.fromkeys(("base_model_name_or_path", "revision", "task_type"), _TEXT),
    "inference_mode": _FLAG,
    "layers_to_transform": (
        optional(lambda value: _is_count(value) or _is_counts(value)),
        "a layer's number, a list of them, or null",
    ),
}
_LORA: dict[str, Rule] = {
    **_OF_ALL_METHODS,
    "r": (_is_size, "an integer above 0"),
    "lora_alpha": (_is_alpha, f"a number above 0, up to {_LARGEST_ALPHA:,.0f}"),
    "lora_dropout": (lambda value: is_number(value) and 0 <= value < 1, "a number from 0 to 1"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"), _FLAG),
    "init_lora_weights": (
        optional(_is_initialization),
        "true, false or the name of an initialization that PEFT has, such as gaussian",
    ),
    "rank_pattern": (
        optional(partial(_has_values, fit=_is_size)),
        "an object with a rank above 0 for each name",
    ),
    "alpha_pattern": (
        optional(partial(_has_values, fit=_is_alpha)),
        f"an object with a number above 0, up to {_LARGEST_ALPHA:,.0f}, for each name",
    ),
    "trainable_token_indices": (
        optional(lambda value: _is_counts(value) or _has_values(value, _is_counts)),
        "a list of token ids, or an object with one for each name",
    ),
}

_IDENTITY = {"vocabulary", "chat_template"}


def _is_learned(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"sha256", "num_rows"}
        and is_text(value["sha256"])
        and (value["num_rows"] is None or _is_count(value["num_rows"]))
    )


_MANIFEST: dict[str, Rule] = {
    "files": (partial(_has_values, fit=is_text), "an object with the sha256 of each file"),
    "base_model": (optional(_is_object), "an object, or null"),
    "trained_on": (optional(_is_learned), "an object with sha256 and num_rows, or null"),
    "template": (
        lambda value: value in list(Template),
        f"one of {', '.join(Template)}",
    ),
    "chat": (
        lambda value: (
            _is_object(value)
            and _is_object(value.get("chat_template_kwargs", {}))
            and _is_flag(value.get("system_in_user", False))
        ),
        "an object with chat_template_kwargs, an object, and system_in_user, true or false",
    ),
    "tokenizer": (
        lambda value: value == {} or (_is_object(value) and value.keys() >= _IDENTITY),
        "an object with vocabulary and chat_template",
    ),
}
_RECORDED_BASE: dict[str, Rule] = {
    **dict.fromkeys(("reference", "revision", "fingerprint", "source"), _TEXT),
    "labels": (optional(is_texts), "a list of the classes' names"),
    "new_tokens": (optional(is_texts), "a list of tokens"),
}

# PEFT 0.21 adds these names for the task types of classification, whatever the head is called.
_PRESUMED_HEADS = {"classifier", "score", "qa_outputs"}


def read_adapter_config(file: Path, source: str) -> dict[str, Any]:
    """Read an adapter's configuration, and check its method and the types of its settings.

    Args:
        file: to read.
        source: the adapter's name in messages.

    Raises:
        UserError: it is of a method that can't be used, or a setting is impossible.
    """
    name = f"{source}: {file.name}"
    given = json_object(file, name)
    kind = given.get("peft_type")
    if not is_text(kind):
        found = shown(kind) if "peft_type" in given else "missing"
        raise UserError(f"{name}: peft_type is {found}; it must name a method of PEFT, as LORA")
    method = find_method(str(kind), f"{name}: peft_type")
    if method.name == LORA:
        check_fields(given, _LORA, name)
        return given
    check_fields(given, _OF_ALL_METHODS, name)
    if problem := wrong_type(method, given):
        raise UserError(f"{name}: {problem}")
    return given


def read_manifest(file: Path, source: str) -> dict[str, Any]:
    """Read an adapter's manifest.

    Raises:
        UserError: it does not have the shape of one.
    """
    name = f"{source}: {file.name}"
    given = json_object(file, name)
    check_fields(given, _MANIFEST, name)
    check_fields(given.get("base_model") or {}, _RECORDED_BASE, f"{name}: base_model")
    return given


def check_adapter_weights(
    file: Path, config: Mapping[str, Any], source: str
) -> Mapping[str, TensorEntry]:
    """Check an adapter's weights as far as that needs no base, and return their header.

    Args:
        file: the weights.
        config: the adapter's configuration.
        source: the adapter's name in messages.

    Raises:
        UserError: the file is truncated; a weight is not floating-point, or has a NaN or an
            infinity; or a fully trained module has no weights.
    """
    name = f"{source}: {file.name}"
    header = read_header(file, name)
    for key, entry in header.items():
        # Some other methods save the indices of the weights that they train.
        if not entry.is_floating and config["peft_type"] == "LORA":
            raise UserError(
                f"{name}: {key} is {entry.dtype}; an adapter's weights must be floating-point "
                "numbers (F32, BF16, F16); save the adapter again"
            )
    if spoiled := first_not_finite(file, header):
        raise UserError(
            f"{name}: {spoiled} has a NaN or an infinity, which spoils every answer; train "
            "the adapter again, with a lower learning rate"
        )
    parts = {part for key in header for part in key.split(".")}
    given = [one.rpartition(".")[2] for one in config.get("modules_to_save") or ()]
    if missing := [one for one in given if one not in parts | _PRESUMED_HEADS]:
        raise UserError(
            f"{source}: {CONFIG_FILE}: modules_to_save is {shown(config['modules_to_save'])}, but "
            f"{WEIGHTS_FILE} has no weights of {', '.join(missing)}; correct the name, or save the "
            "adapter again"
        )
    return header
