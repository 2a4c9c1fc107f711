"""The files of a tokenizer, and of the base's generation settings, checked for their shape."""

import os
from pathlib import Path

from tasks.engine.reading import (
    Rule,
    check_fields,
    is_integer,
    is_number,
    is_text,
    is_texts,
    json_object,
    optional,
    reading,
    text_in,
)
from tasks.errors import UserError

_TEMPLATE_FILE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_GENERATION_FILE = "generation_config.json"
_LARGEST_ID = 2**31 - 1
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def _is_token(value: object) -> bool:
    return is_text(value) or (isinstance(value, dict) and is_text(value.get("content")))


def _is_template(value: object) -> bool:
    """Return whether a value is one template, or a list of named ones."""
    if isinstance(value, list):
        return all(
            isinstance(one, dict) and is_text(one.get("name")) and is_text(one.get("template"))
            for one in value
        )
    return is_text(value)


def _is_id(value: object) -> bool:
    return is_integer(value, 0, _LARGEST_ID)


def _is_ids(value: object) -> bool:
    return _is_id(value) or (isinstance(value, list) and all(map(_is_id, value)))


def _is_list_of_ids(value: object) -> bool:
    return isinstance(value, list) and _is_ids(value)


_TOKEN: Rule = (optional(_is_token), "a token's text, or null")
_FIELDS: dict[str, Rule] = {
    **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _TOKEN),
    "chat_template": (
        optional(_is_template),
        "a template's text, or a list of objects with name and template",
    ),
    "model_max_length": (optional(is_number), "a number"),
    "tokenizer_class": (optional(is_text), "the name of a class"),
    "added_tokens_decoder": (lambda value: isinstance(value, dict), "an object, as in {…}"),
}
_ENDS: dict[str, Rule] = {
    "eos_token_id": (optional(_is_ids), "a token's number, or a list of them"),
    **dict.fromkeys(
        ("suppress_tokens", "begin_suppress_tokens"),
        (optional(_is_list_of_ids), "a list of tokens' numbers, or null"),
    ),
    "stop_strings": (
        optional(lambda value: is_text(value) or is_texts(value)),
        "a text, or a list of texts",
    ),
}


def check_tokenizer_files(folder: Path) -> None:
    """Check the settings of a tokenizer that was saved in a folder.

    transformers accepts some impossible settings, and fails when a text is tokenized. It ignores a
    template that is a folder, or a link to nothing.

    Raises:
        UserError: a file is not a JSON object, a setting is impossible, or a chat template's file
            is no text.
    """
    for file in (folder / name for name in _SETTINGS_FILES):
        if os.path.lexists(file):
            check_fields(json_object(file), _FIELDS, str(file))
    for file in (folder / _TEMPLATE_FILE, *sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))):
        if os.path.lexists(file):
            text_in(file)


def check_generation_file(folder: Path) -> None:
    """Check the base's generation settings, if the folder has a file of them.

    transformers ignores a file that it can't read, and the model would not stop at its end token.

    Raises:
        UserError: it is not a JSON object, or its end tokens are not numbers.
    """
    file = folder / _GENERATION_FILE
    if os.path.lexists(file):
        check_fields(json_object(file), _ENDS, str(file))


def check_vocabulary(folder: Path) -> None:
    """Check that a folder's tokenizer.json, if there is one, is a tokenizer's.

    Raises:
        UserError: it is not.
    """
    file = folder / "tokenizer.json"
    if not os.path.lexists(file):
        return
    json_object(file)
    with reading(str(file)):
        from tokenizers import Tokenizer

        Tokenizer.from_file(str(file))


def blame_file(folder: Path, why: str) -> str:
    """Complete a library's reason by the file in the folder that it is about, if it can be told."""
    try:
        check_vocabulary(folder)
    except UserError as mistake:
        return str(mistake)
    return why
