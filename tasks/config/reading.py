"""A configuration from a YAML file and `key.path=value` overrides, checked as a whole."""

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
"""Extensions of the data files that can be read."""

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

    Relative paths stand for files beside the configuration file, those of overrides for files
    below the working directory.

    Raises:
        UserError: The file cannot be read, an override is no `key.path=value`, or settings are
            unknown, missing or out of bounds (all of these in one message).

    """
    given = _read_mapping(path)
    _locate_all(given, path.absolute().parent)
    return _checked(config, given, overrides, str(path))


def settings_here(
    config: type[AnyConfig], given: dict[str, Any], overrides: Sequence[str], name: str
) -> AnyConfig:
    """Check settings from the command line as `read_settings` does; `name` is for messages."""
    _locate_all(given, Path.cwd())
    return _checked(config, given, overrides, name)


def adapter_here(source: str, name: str = "default") -> AdapterSettings:
    """Check an adapter from the command line, as a configuration's is checked."""
    return settings_here(AdapterSettings, {"source": source, "name": name}, (), "the adapter")


def _checked(
    config: type[AnyConfig], given: dict[str, Any], overrides: Sequence[str], name: str
) -> AnyConfig:
    for override in overrides:
        _apply(given, override)
    # A section whose lines are all commented out is null in YAML; its defaults are meant.
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
    """Return an override without the secret of an address in its value."""
    key, sign, value = override.partition("=")
    return f"{key}{sign}{masked(value)}" if sign else masked(override)


def is_hub_dataset(source: str) -> bool:
    """Tell whether a data source is a Hub id (`org/name`) and no file or folder that is there."""
    return is_hub_id(source) and not (
        source.lower().endswith(DATA_SUFFIXES) or Path(source).exists()
    )


def missing_file(path: Path) -> str:
    """Say that there is no such file, and which name in its folder is nearest."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does the folder {folder}"
    near = nearest_file(path.name, (one.name for one in folder.iterdir()))
    return f"{path} does not exist" + (f"; did you mean {folder / near}?" if near else "")


def plain_path(path: Path) -> Path:
    """Give the absolute path without `..`, so that one file has one name.

    Symbolic links stay as they are, but for a `..` behind one, which leads out of its target.
    """
    normal = Path(os.path.normpath(path.absolute()))
    resolved = path.resolve()
    return normal if normal.resolve() == resolved else resolved


class _Loader(yaml.SafeLoader):
    """YAML with 1.2's booleans, so that the language `no` is a text.

    To YAML 1.1, `2e-4` is a text, too: pydantic makes it a number where a setting is one, and so
    the revision `12e4567` stays as it is.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  # a class attribute of yaml.SafeLoader
        first: [(tag, rule) for tag, rule in rules if not tag.endswith((":bool", ":timestamp"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        """Refuse a key that is given twice, of which PyYAML silently keeps the last."""
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
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {_where(error)}") from error
    if not isinstance(given, dict):
        kind = "is empty" if given is None else f"holds a {type(given).__name__}"
        raise UserError(
            f"{path} {kind}; a configuration maps settings to values, at least "
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
            f"--set {_shown(override)!r} is no key.path=value; write it as in "
            "training.learning_rate=1e-4"
        )
    try:
        value = _parse(match[2])
    except yaml.YAMLError as error:
        raise UserError(
            f"--set {_shown(override)!r}: the value is no YAML: {_where(error)}"
        ) from error
    *sections, name = match[1].split(".")
    change: dict[str, Any] = {name: value}
    for section in reversed(sections):
        change = {section: change}
    _locate_all(change, Path.cwd())
    _merge(given, change, deep=len(sections))


def _merge(given: dict[str, Any], change: dict[str, Any], deep: int) -> None:
    """Put the one path of `change` into `given`; what lies `deep` sections down is replaced."""
    for key, value in change.items():
        if deep == 0:
            given[key] = value
            continue
        if not isinstance(given.get(key), dict):
            given[key] = {}
        _merge(given[key], value, deep - 1)


def _locate_all(given: dict[str, Any], folder: Path) -> None:
    """Make the paths in `given` absolute and plain."""
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
    except RuntimeError:  # `~name` of nobody known
        return source
    suffixes = DATA_SUFFIXES if is_data else (".gguf",)
    is_path = source.startswith((".", "~")) or source.lower().endswith(suffixes)
    # What cannot be a Hub id is a path even if nothing is there, so that an error names it whole.
    is_name = is_hub_id(source) or (not is_data and "/" not in source)
    is_path = is_path or not is_name
    return str(plain_path(path)) if path.exists() or is_path else source
