"""Read a configuration from a YAML file and `key.path=value` overrides, and validate it."""

import os
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from tasks.config.adapter import AdapterSettings
from tasks.config.hub_ids import is_hub_id
from tasks.config.likeness import nearest_file
from tasks.config.mistakes import sections, validation_message
from tasks.config.section import Section
from tasks.config.train_adapter import TrainAdapterConfig
from tasks.errors import UserError
from tasks.runtime.addresses import masked, without_password

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of the data files that can be read."""

_OVERRIDE = re.compile(r"^([\w-]+(?:\.[\w-]+)*)=(.*)$", re.DOTALL)
_ADDRESS = re.compile(r"^(package|models|runs):|^[A-Za-z][\w+.-]*://")
_LOCATIONS = (
    ("base_model", "source"),
    ("adapters", "source"),
    ("data", "train"),
    ("data", "eval"),
    ("evaluation", "rows"),
    ("input",),
    ("output",),
)
_MODELS = {"base_model", "adapters"}

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
        name = " ".join([name, *(f"--set {_shown(override)}" for override in overrides)])
        lines = validation_message(config, error, given).splitlines()
        heading = f"{name}: " if len(lines) == 1 else f"{name} has {len(lines)} mistakes:\n- "
        raise UserError(without_password(heading + "\n- ".join(lines))) from None


def _shown(override: str) -> str:
    """Return an override with the secrets of an address in its value masked."""
    key, sign, value = override.partition("=")
    return f"{key}={masked(value)}" if sign and "/" not in key else masked(override)


def is_hub_dataset(source: str) -> bool:
    """Return whether a data source is a Hub id (`org/name`) and not an existing file or folder."""
    return is_hub_id(source) and not (
        source.lower().endswith(DATA_SUFFIXES) or Path(source).exists()
    )


def missing_file(path: Path) -> str:
    """Return a message that there is no such file: what is there instead, or the nearest name."""
    if path.is_dir():
        return f"{path} is a folder"
    if path.exists():
        return f"{path} is a pipe or a device, and may be readable only once; write it to a file"
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which does not exist"
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{path} does not exist, and neither does the folder {folder}"
    near = nearest_file(path.name, (one.name for one in folder.iterdir()))
    return f"{path} does not exist" + (f"; did you mean {folder / near}?" if near else "")


def plain_path(path: Path) -> Path:
    """Return the absolute path without `..`, so that one file has one name.

    Symbolic links are kept, unless a `..` follows one: that leads out of the link's target.
    """
    normal = Path(os.path.normpath(path.absolute()))
    resolved = path.resolve()
    return normal if normal.resolve() == resolved else resolved


class _Loader(yaml.SafeLoader):
    """YAML with the booleans of YAML 1.2, so that the language `no` is a string.

    In YAML 1.1 `2e-4` is a string, too. That is left so: pydantic converts it where a setting is a
    number, and the revision `12e4567` stays a string.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  # a class attribute of yaml.SafeLoader
        first: [(tag, rule) for tag, rule in rules if not tag.endswith((":bool", ":timestamp"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        """Refuse duplicate keys, of which PyYAML silently keeps the last."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|false)$", re.IGNORECASE), "tfTF"
)


def _parse(text: str) -> object:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # _Loader is a SafeLoader


def _read_mapping(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the YAML file itself")
    if not path.exists():
        raise UserError(f"configuration {missing_file(path)}")
    try:
        given = _parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_where(error)}") from error
    if not isinstance(given, dict):
        kind = "is empty" if given is None else f"contains a {type(given).__name__}"
        raise UserError(
            f"{path} {kind}; a configuration is a mapping of settings, at least "
            "base_model.source and data.train"
        )
    return {str(key): value for key, value in given.items()}


def _where(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context}"
    return str(error)


def _apply(given: dict[str, Any], override: str) -> None:
    match = _OVERRIDE.match(override)
    if not match:
        raise UserError(
            f"--set {_shown(override)!r} is not of the form key.path=value; write it like "
            "training.learning_rate=1e-4"
        )
    try:
        value = _parse(match[2])
    except yaml.YAMLError as error:
        raise UserError(
            f"--set {_shown(override)!r}: the value is not valid YAML: {_where(error)}"
        ) from error
    *sections, name = match[1].split(".")
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
        if not isinstance(given.get(key), dict):
            given[key] = {}
        _merge(given[key], value, deep - 1)


def _locate_all(given: dict[str, Any], folder: Path) -> None:
    """Replace the paths in `given` by absolute ones without `..`."""
    for *parents, name in _LOCATIONS:
        holders: list[Any] = [given]
        for parent in parents:
            found = [holder.get(parent) for holder in holders if isinstance(holder, dict)]
            holders = [one for x in found for one in (x if isinstance(x, list) else [x])]
        for holder in holders:
            if isinstance(holder, dict) and isinstance(source := holder.get(name), str) and source:
                holder[name] = _locate(source, folder, is_data=not _MODELS & set(parents))


def _locate(source: str, folder: Path, *, is_data: bool) -> str:
    if _ADDRESS.match(source):
        return source
    try:
        path = folder / Path(source).expanduser()
    except RuntimeError:  # `~name` of an unknown user
        return source
    suffixes = DATA_SUFFIXES if is_data else (".gguf",)
    is_path = source.startswith((".", "~")) or source.lower().endswith(suffixes)
    # What can't be a Hub id is a path even if nothing exists there: the error then names it in
    # full.
    is_name = is_hub_id(source) or (not is_data and "/" not in source)
    is_path = is_path or not is_name
    return str(plain_path(path)) if path.exists() or is_path else source
