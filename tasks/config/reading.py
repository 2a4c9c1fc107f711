"""Read a configuration from a YAML file and `key.path=value` overrides, and validate it."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from tasks.config.adapter import AdapterSettings
from tasks.config.hub_ids import is_hub_id, with_revision
from tasks.config.likeness import nearest_file
from tasks.config.location import is_address
from tasks.config.mistakes import mistakes_in, sections
from tasks.config.section import Section
from tasks.config.train_adapter import TrainAdapterConfig
from tasks.config.yaml_text import InvalidYamlError, parse_yaml
from tasks.errors import UserError, shortened
from tasks.runtime.addresses import masked, without_password
from tasks.runtime.paths import check_path, exists, expanded, path_problem

COMPRESSED_SUFFIXES = (".gz", ".zst")
_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
DATA_SUFFIXES = (
    *_TEXT_SUFFIXES,
    ".parquet",
    *(f"{one}{packed}" for one in _TEXT_SUFFIXES for packed in COMPRESSED_SUFFIXES),
)
"""Suffixes of the data files that can be read."""
SHOWN_SUFFIXES = f"{', '.join(_TEXT_SUFFIXES)} (also with .gz or .zst), .parquet"
"""The same, for messages."""

_OVERRIDE = re.compile(r"^([\w-]+(?:\.[\w-]+)*)=(.*)$", re.DOTALL)
_LOCATIONS = (
    ("base_model", "source"),
    ("adapters", "source"),
    ("lora", "from"),
    ("data", "train"),
    ("data", "train", "path"),
    ("data", "eval"),
    ("data", "chat_template"),
    ("evaluation", "rows"),
    ("evaluation", "harness", "include_path"),
    ("decision", "older", "rows"),
    ("input",),
    ("output",),
)
_MODELS = {"base_model", "adapters", "lora"}
_ADAPTERS = {"adapters", "lora"}
"""The sections whose Hub ids may end in `@revision`."""
_MAX_BYTES = 2_000_000
"""Of a configuration: the 500,000 characters that `parse_yaml` takes, at UTF-8's 4 bytes each."""
_MAX_PARTS = 10
_MAX_KEY_CHARACTERS = 300
_MAX_HEADING = 500
"""Characters of a message's beginning: the file and all overrides."""
_MAX_SHOWN = 100
"""Characters of a key and of a value in a message."""
_FILES = {"chat_template", "include_path"}
"""Settings that are always a path here, and never a Hub id."""

AnyConfig = TypeVar("AnyConfig", bound=Section)


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainAdapterConfig:
    """Read the training flow's configuration; see `read_settings`."""
    return read_settings(TrainAdapterConfig, path, overrides)


def read_settings(config: type[AnyConfig], path: Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """Read a configuration; later overrides win over earlier ones and over the file.

    Relative paths are relative to the configuration file's folder, those of overrides to the
    working directory.

    Raises:
        UserError: the file can't be read, an override is not `key.path=value`, or settings are
            unknown, missing or out of bounds (all of these in one message).
    """
    given = _read_mapping(path)
    _locate_all(given, path.absolute().parent)
    return _checked(config, given, overrides, str(path))


def settings_here(
    config: type[AnyConfig], given: dict[str, Any], overrides: Sequence[str], name: str
) -> AnyConfig:
    """Validate settings from the command line as `read_settings` does; `name` is for messages."""
    _locate_all(given, Path.cwd())
    return _checked(config, given, overrides, name)


def with_settings(config: AnyConfig, changes: Mapping[str, Any], name: str) -> AnyConfig:
    """Return a configuration with other values of some settings.

    Args:
        config: as validated before.
        changes: values by key path; paths of files are absolute.
        name: of the result, for messages.

    Raises:
        UserError: the settings are not possible, alone or together.
    """
    given = config.model_dump(mode="json")
    for path, value in changes.items():
        *parents, last = path.split(".")
        change: dict[str, Any] = {last: value}
        for section in reversed(parents):
            change = {section: change}
        _merge(given, change, deep=len(parents))
    return _checked(type(config), given, (), name)


def has_variants(path: Path) -> bool:
    """Return whether a configuration file is one of `adapterflow variants`.

    Raises:
        UserError: it can't be read.
    """
    return "variants" in _read_mapping(path)


def adapter_here(source: str, name: str = "default") -> AdapterSettings:
    """Validate an adapter from the command line, as one from a configuration is validated."""
    return settings_here(AdapterSettings, {"source": source, "name": name}, (), "the adapter")


def _checked(
    config: type[AnyConfig], given: dict[str, Any], overrides: Sequence[str], name: str
) -> AnyConfig:
    for override in overrides:
        _apply(given, override)
    # A section whose lines are all commented out is null in YAML; the defaults are meant.
    parts = sections(config)
    given = {key: value for key, value in given.items() if value is not None or key not in parts}
    try:
        return config.model_validate(given)
    except pydantic.ValidationError as error:
        words = [name, *(f"--set {_shown(override)}" for override in overrides)]
        lines, num_mistakes = mistakes_in(config, error, given)
        has = ": " if num_mistakes == 1 else f" has {num_mistakes:,} mistakes:\n- "
        message = shortened(" ".join(words), _MAX_HEADING) + has + "\n- ".join(lines)
        raise UserError(without_password(message)) from None


def _shown(override: str) -> str:
    """Return an override, shortened, with the secrets of an address in its value masked."""
    key, sign, value = override.partition("=")
    if not sign or "/" in key:
        return shortened(masked(override), _MAX_SHOWN)
    return f"{shortened(key, _MAX_SHOWN)}={shortened(masked(value), _MAX_SHOWN)}"


def is_hub_dataset(source: str) -> bool:
    """Return whether a data source is a Hub id (`org/name`) and not an existing file or folder."""
    return is_hub_id(source) and not (source.lower().endswith(DATA_SUFFIXES) or exists(source))


def suffix_of(path: Path) -> str:
    """Return the suffix of a data file in lower case, without that of its compression."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED_SUFFIXES else name.suffix


def missing_file(path: Path) -> str:
    """Return a message that there is no file: what is there instead, or the nearest name."""
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {path.readlink()}, which does not exist"
    folder = path.absolute().parent
    if path.exists():
        kind = "a folder" if path.is_dir() else "a pipe or device"
        return f"{path} is {kind}; give a regular file"
    if not folder.is_dir():
        return f"{path} does not exist, and neither does the folder {folder}"
    try:
        near = nearest_file(path.name, (one.name for one in folder.iterdir()))
    except OSError:  # nobody may list it
        near = None
    return f"{path} does not exist" + (f"; did you mean {folder / near}?" if near else "")


def plain_path(path: Path) -> Path:
    """Return the absolute path without `..`, so that one file has one name.

    Symbolic links are kept, unless a `..` follows one: that leads out of the link's target.
    """
    normal = Path(os.path.normpath(path.absolute()))
    resolved = path.resolve()
    return normal if normal.resolve() == resolved else resolved


def _read_mapping(path: Path) -> dict[str, Any]:
    check_path(path, "configuration")
    if not path.is_file():
        raise UserError(f"configuration {missing_file(path)}")
    try:
        given = parse_yaml(_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as UTF-8 text: {error}") from error
    except InvalidYamlError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(given, dict):
        kind = "is empty" if given is None else f"contains a {type(given).__name__}"
        raise UserError(
            f"{path} {kind}; a configuration is a mapping of settings, at least "
            "base_model.source and data.train"
        )
    return given


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path} has more than {_MAX_BYTES:,} bytes; a configuration has fewer")
    return content.decode("utf-8-sig")


def _apply(given: dict[str, Any], override: str) -> None:
    match = _OVERRIDE.match(override)
    if not match:
        raise UserError(
            f"--set {_shown(override)!r} is not of the form key.path=value; write it like "
            "training.learning_rate=1e-4"
        )
    *sections, name = match[1].split(".")
    if len(sections) >= _MAX_PARTS or len(match[1]) > _MAX_KEY_CHARACTERS:
        raise UserError(
            f"--set {_shown(override)!r}: the key has {len(sections) + 1:,} parts and "
            f"{len(match[1]):,} characters; write it like training.learning_rate"
        )
    try:
        value = parse_yaml(match[2])
    except InvalidYamlError as error:
        raise UserError(
            f"--set {_shown(override)!r}: the value is not valid YAML: {error}"
        ) from error
    change: dict[str, Any] = {name: value}
    for section in reversed(sections):
        change = {section: change}
    _locate_all(change, Path.cwd())
    _merge(given, change, deep=len(sections))


def _merge(given: dict[str, Any], change: dict[str, Any], deep: int) -> None:
    """Merge the one path of `change` into `given`, and replace the value `deep` sections down."""
    for key, value in change.items():
        if deep == 0:
            given[key] = value
            continue
        # A copy: with an alias in the YAML, the same mapping may stand elsewhere, too.
        inner = given.get(key)
        given[key] = dict(inner) if isinstance(inner, dict) else {}
        _merge(given[key], value, deep - 1)


def _locate_all(given: dict[str, Any], folder: Path) -> None:
    """Replace the paths in `given` by absolute ones without `..`."""
    for *parents, name in _LOCATIONS:
        holders: list[Any] = [given]
        for parent in parents:
            found = [holder.get(parent) for holder in holders if isinstance(holder, dict)]
            holders = [one for x in found for one in (x if isinstance(x, list) else [x])]
        for holder in holders:
            if isinstance(holder, dict) and holder.get(name):
                holder[name] = _located_setting((*parents, name), holder[name], folder)
    for settings in _settings_by_path(given.get("variants")):
        for path in settings:
            if (key := tuple(path.split("."))) in _LOCATIONS:
                settings[path] = _located_setting(key, settings[path], folder)


def _settings_by_path(variants: object) -> Iterator[dict[str, Any]]:
    """Yield the mappings from key paths to settings in a section of variants, as it was given."""
    if not isinstance(variants, dict):
        return
    listed, search = variants.get("list"), variants.get("search")
    possible = [variants.get("grid"), search.get("ranges") if isinstance(search, dict) else None]
    of_list = listed if isinstance(listed, list) else []
    possible += [one.get("settings") for one in of_list if isinstance(one, dict)]
    yield from (one for one in possible if isinstance(one, dict))


def _located_setting(key: tuple[str, ...], given: object, folder: Path) -> object:
    if key[0] in _ADAPTERS and isinstance(given, str) and _is_pinned(given, folder):
        return given
    is_data, is_file = not _MODELS & set(key[:-1]), key[-1] in _FILES
    return _located(given, folder, is_data=is_data, is_file=is_file)


def _is_pinned(source: str, folder: Path) -> bool:
    """Return whether a source is a Hub id with its revision, and not a path."""
    _, revision = with_revision(source)
    return revision is not None and not exists(folder / source)


def _located(given: object, folder: Path, *, is_data: bool, is_file: bool) -> object:
    """Locate a source, or each of a list of them; return anything else as it is."""
    if isinstance(given, list):
        return [_located(one, folder, is_data=is_data, is_file=is_file) for one in given]
    if not isinstance(given, str) or not given:
        return given
    return _locate(given, folder, is_data=is_data, is_file=is_file)


def _locate(source: str, folder: Path, *, is_data: bool, is_file: bool) -> str:
    if is_address(source):
        return source
    path = folder / expanded(source)
    if path_problem(path):
        return str(path)  # the validation refuses it
    suffixes = DATA_SUFFIXES if is_data else (".gguf",)
    is_path = source.startswith((".", "~")) or source.lower().endswith(suffixes)
    # What can't be a Hub id is a path even if nothing exists there: the error then names it in
    # full.
    is_name = is_hub_id(source) or (not is_data and "/" not in source)
    is_path = is_path or not is_name or is_file
    return str(plain_path(path)) if path.exists() or is_path else source
