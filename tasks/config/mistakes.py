"""Mistakes in a configuration, one line each: what was given and what is possible."""

import itertools
import json
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic
from pydantic_core import ErrorDetails

from tasks.config.likeness import nearest_setting
from tasks.config.section import Section, settings_in
from tasks.errors import shortened
from tasks.runtime.addresses import masked

Config = type[Section]

_MAX_LINES = 20
_MAX_LINE = 500
"""Characters of a line."""
_MAX_CHARACTERS = 1_400
"""Of all lines: a message, which also names the file, has no more than 2,000."""
_MAX_NAME = 200


class _Short(reprlib.Repr):
    """Values for messages; secrets are masked before the middle of a text is cut out."""

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(masked(x), level)

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no more than 4,300 digits
            return f"an integer of {x.bit_length():,} bits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 80


def sections(config: Config) -> tuple[str, ...]:
    """Return the names of the settings that are sections."""
    return tuple(name for name in settings_in(config) if section_of(config, name))


def section_of(config: Config, name: str) -> Config | None:
    """Return the section class of a setting, also within a list or union; None if it has none."""
    possible = [settings_in(config)[name].annotation]
    for one in possible:
        possible += typing.get_args(one)
    return next((x for x in possible if isinstance(x, type) and issubclass(x, Section)), None)


def validation_message(
    config: Config, error: pydantic.ValidationError, given: Mapping[str, object]
) -> str:
    """Return pydantic's errors about `given`, one a line; see `mistakes_in`."""
    return "\n".join(mistakes_in(config, error, given)[0])


def mistakes_in(
    config: Config, error: pydantic.ValidationError, given: Mapping[str, object]
) -> tuple[list[str], int]:
    """Return pydantic's errors about `given`, and their number.

    Each is one line with the dotted path of the setting. The first twenty are described at most,
    and as many as a message can hold; the last line then has the number of the others.
    """
    mistakes: dict[str, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        mistakes.setdefault(_path(details, given), []).append(details)
    # Of `str | list[str]` pydantic reports both branches; the deeper one is the one meant.
    outer = {parent for path in mistakes for parent in _parents(path)}
    meant = [path for path in mistakes if path not in outer]
    described = [_lines(config, path, mistakes[path]) for path in meant[:_MAX_LINES]]
    lines = [shortened(line.replace("\n", " "), _MAX_LINE) for one in described for line in one]
    num_mistakes = len(lines) + len(meant[_MAX_LINES:])
    ends = itertools.accumulate(map(len, lines))
    shown = [line for line, end in zip(lines, ends, strict=True) if end <= _MAX_CHARACTERS]
    more = num_mistakes - len(shown)
    return [*shown, *([f"and {more:,} more"] if more else [])], num_mistakes


def unknown_setting(config: Config, path: str) -> str | None:
    """Return a message that a key path is no setting, or a section; None if it is a setting.

    A path may lead into a setting that is a mapping, such as `tracking.tags.team`.
    """
    section, parts = config, path.split(".")
    for number, part in enumerate(parts, start=1):
        if part not in settings_in(section):
            return _unknown(config, ".".join(parts[:number]), part)
        if not _is_section(section, part):
            return None
        section = section_of(section, part) or section
    return f"{path} is a section; name one of its settings: {', '.join(settings_in(section))}"


def _is_section(config: Config, name: str) -> bool:
    """Return whether a setting is nothing but a section."""
    annotation = settings_in(config)[name].annotation
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _path(details: ErrorDetails, given: Mapping[str, object]) -> str:
    """Return the dotted path of an error.

    The parts of pydantic's `loc` that are not in `given` are names of union branches.
    """
    parts: list[str] = []
    here: Any = given
    for part in details["loc"]:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            continue
        parts.append(_name(part))
    if details["type"] == "missing":
        parts.append(_name(details["loc"][-1]))
    return ".".join(parts)


def _name(part: object) -> str:
    return shortened(str(part), _MAX_NAME)


def _lines(config: Config, path: str, errors: list[ErrorDetails]) -> list[str]:
    if errors[0]["type"] == "missing":
        return _missing(config, path)
    return [_line(config, path, errors)]


def _line(config: Config, path: str, errors: list[ErrorDetails]) -> str:
    first = errors[0]
    match first["type"]:
        case "extra_forbidden":
            return _unknown(config, path, _name(first["loc"][-1]))
        case "value_error":
            where = f"{path}: " if path else ""  # no path: two sections contradict each other
            return where + first["msg"].removeprefix("Value error, ")
        case "model_type":
            names = ", ".join(settings_in(_section(config, path)))
            return f"{path} is {_shown(first['input'])}; it must be a mapping of {names}"
    possible = " or ".join(re.sub(r"^\w+ should ", "", one["msg"]) for one in errors)
    possible = possible.replace(" or be ", " or ")
    is_unquoted = any(one["type"] == "string_type" for one in errors) and isinstance(
        first["input"], bool | int | float
    )
    hint = " (put it in quotes)" if is_unquoted else ""
    must = "" if possible[0].isupper() else "it must "  # such as: Unable to parse …
    return f"{path} is {_shown(first['input'])}; {must}{possible}{hint}"


def _shown(value: object) -> str:
    """Return a value as it is written in YAML, shortened."""
    return json.dumps(value) if value is None or isinstance(value, bool) else _SHORT.repr(value)


def _missing(config: Config, path: str) -> list[str]:
    """Return a line for each required setting: if `data` is missing, `data.train` is."""
    section, name = path.rpartition(".")[::2]
    field = settings_in(_section(config, section))[name]
    alone = f"{path} is missing: {' '.join((field.description or '').split())}"
    if path not in sections(config):
        return [alone]
    inner = settings_in(_section(config, path))
    required = [f"{path}.{name}" for name, one in inner.items() if one.is_required()]
    if not required:
        return [f"{alone} Settings of {path}: {', '.join(inner)}"]
    return [line for one in required for line in _missing(config, one)]


def _unknown(config: Config, path: str, name: str) -> str:
    section = path.removesuffix(name).rstrip(".")
    names = list(settings_in(_section(config, section)))
    prefix = f"{section}." if section else ""
    outer, _, inner = name.rpartition(".")
    if inner in _fields(config, prefix + outer):
        return f"{path} is not a key of a file; write it as {inner}, indented below {outer}"
    meant = _setting_meant(config, name, prefix, names)
    hint = f"did you mean {meant}? " if meant else ""
    settings = f"settings of {section}" if section else "settings"
    return f"{path or repr(name)} is not a setting; {hint}{settings}: {', '.join(names)}"


def _setting_meant(config: Config, name: str, prefix: str, names: list[str]) -> str | None:
    """Return the path of the setting that was probably meant.

    The same name in another section comes before a similar name here, then a similar one elsewhere.
    """
    elsewhere = {
        leaf: f"{section}.{leaf}"
        for section in sections(config)
        for leaf in settings_in(_section(config, section))
    }
    elsewhere |= {top: top for top in settings_in(config)}
    if name in elsewhere:
        return elsewhere[name]
    if here := nearest_setting(name, names):
        return prefix + here
    settings = [one for one in elsewhere if one not in sections(config)]
    return elsewhere.get(nearest_setting(name, settings) or "")


def _fields(config: Config, path: str) -> tuple[str, ...]:
    """Name the settings of what may be a section."""
    for part in path.split("."):
        section = section_of(config, part) if part in settings_in(config) else None
        if section is None:
            return ()
        config = section
    return tuple(settings_in(config))


def _section(config: Config, path: str) -> Config:
    """Return the section at a dotted path, in which list indices are ignored."""
    for part in filter(None, path.split(".")):
        if not part.isdigit() and part in settings_in(config):  # else a key of a mapping
            config = section_of(config, part) or config
    return config
