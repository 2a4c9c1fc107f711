"""Parse the YAML of a configuration or an override, in bounded time and memory.

PyYAML 6 converts scalars without checks, follows aliases to any size and depth, and recurses once
per level of nesting. Here all of that is one kind of error, with the line and column.
"""

import re
from typing import Any

import yaml

from tasks.errors import shortened

_MAX_CHARACTERS = 500_000
_MAX_NODES = 20_000
"""Of keys, values, lists and mappings, with each alias counted as what it stands for."""
_MAX_LEVELS = 30
_MAX_KEY_CHARACTERS = 300
_MAX_DIGITS = 400
"""More than any float has; Python itself refuses to convert more than 4,300."""
_MAX_SHOWN = 100

_TAG = "tag:yaml.org,2002:"
_KINDS = {
    "null": "null",
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "seq": "a list",
    "map": "a mapping",
}
"""The kinds of values in a configuration, and what a message calls them."""


class InvalidYamlError(ValueError):
    """The text is not YAML, or is larger or of another kind than a configuration."""


def parse_yaml(text: str) -> object:
    """Return the value of a YAML text.

    Raises:
        InvalidYamlError: there is none; the message names the line and column.
    """
    if len(text) > _MAX_CHARACTERS:
        raise InvalidYamlError(
            f"it has {len(text):,} characters; a configuration has at most {_MAX_CHARACTERS:,}"
        )
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise InvalidYamlError(f"line {line}: the character {character} is not allowed") from error
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise InvalidYamlError(_at(error.problem_mark, what)) from error
    except Exception as error:  # PyYAML's scanner converts numbers and characters, too
        raise InvalidYamlError(_at(loader.get_mark(), str(error))) from error


def _at(mark: Any, problem: str) -> str:  # noqa: ANN401 - PyYAML's mark, or None
    what = shortened(" ".join(problem.split()), 3 * _MAX_SHOWN)
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}" if mark else what


def _refusal(problem: str, node_or_event: Any) -> yaml.MarkedYAMLError:  # noqa: ANN401 - both have marks
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node_or_event.start_mark)


class _Loader(yaml.SafeLoader):
    """YAML with the booleans of YAML 1.2, so that the language `no` is a string.

    In YAML 1.1 `2e-4` is a string, too. That is left so: pydantic converts it where a setting is a
    number, and the revision `12e4567` stays a string.
    """

    # Dates and the plain scalar `=` stay strings, as no setting is a date.
    yaml_implicit_resolvers = {  # noqa: RUF012  # a class attribute of yaml.SafeLoader
        first: [
            (tag, rule)
            for tag, rule in rules
            if not tag.endswith((":bool", ":timestamp", ":value"))
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012  # as above; None is for any other tag
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _KINDS
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_nodes = 0
        self._level = 0
        self._extents: dict[yaml.Node, tuple[int, int]] = {}
        """Of each complete node, its number of nodes and of levels, aliases included."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse what is too large, and aliases to what they are in, before it is constructed."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._num_nodes += 1
        self._level += 1
        if self._num_nodes > _MAX_NODES:
            raise _refusal(f"more than {_MAX_NODES:,} values", event)
        if self._level > _MAX_LEVELS:
            raise _refusal(f"nested more than {_MAX_LEVELS} levels deep", event)
        # Composing an alias returns its node again: only what is composed already has an extent.
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        if not isinstance(event, yaml.AliasEvent):
            self._extents[node] = self._extent(node, event)
        elif node not in self._extents:
            raise _refusal(f"the alias *{event.anchor} stands for what it is part of", event)
        return node

    def _extent(self, node: yaml.Node, event: Any) -> tuple[int, int]:  # noqa: ANN401 - any event
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        extents = [self._extents[part] for part in parts]
        size = 1 + sum(size for size, _ in extents)
        levels = 1 + max((levels for _, levels in extents), default=0)
        if size > _MAX_NODES:
            raise _refusal(f"more than {_MAX_NODES:,} values once aliases are replaced", event)
        if levels > _MAX_LEVELS:
            raise _refusal(f"nested more than {_MAX_LEVELS} levels deep through aliases", event)
        return size, levels

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - text or None
        """Refuse keys that are not text, and duplicates, of which PyYAML keeps the last."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key is a list or mapping; it must be text", key)
            if len(key.value) > _MAX_KEY_CHARACTERS:
                raise _refusal(f"a key has {len(key.value):,} characters", key)
            if key.tag not in {f"{_TAG}str", f"{_TAG}merge"}:
                raise _refusal(f"the key {key.value or 'null'} is not text; put it in quotes", key)
            if key.value in seen:
                raise _refusal(f"{key.value} is given twice", key)
            seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002
        """Refuse values that can't be converted."""
        kind = node.tag.removeprefix(_TAG)
        is_number = kind in {"int", "float"} and isinstance(node, yaml.ScalarNode)
        if is_number and len(node.value) > _MAX_DIGITS:
            raise _refusal(f"a number has {len(node.value):,} digits", node)
        if kind not in _KINDS:
            raise _refusal(f"the tag {node.tag} is not supported; remove it", node)
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:
            shown = shortened(str(node.value), _MAX_SHOWN)
            raise _refusal(f"{shown!r} is not {_KINDS[kind]}", node) from error


_Loader.add_implicit_resolver(
    f"{_TAG}bool", re.compile("^(true|false)$", re.IGNORECASE), list("tfTF")
)
