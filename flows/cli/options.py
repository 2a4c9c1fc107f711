"""Arguments and options that several commands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tasks.runtime.paths import check_path

Command = TypeVar("Command", bound=Callable[..., Any])


class _Path(click.Path):
    """A path that the system can look for, whether or not something is there.

    Each command checks in a message of its own what it needs to be there.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - click's signature
        path = Path(str(super().convert(value, param, ctx)))
        name = param.human_readable_name if param else "path"
        # Absolute: in an argument, unlike in a setting, ~ is the shell's.
        check_path(path.absolute(), name)
        return path


class _Number(click.FloatRange):
    """A finite number within bounds, which `nan` is for click."""

    name = "number"  # click's own is "float range", also in its message about a word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - click's signature
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class _Integer(click.IntRange):
    """An integer within bounds."""

    name = "integer"


PATH = _Path(path_type=Path)
MAX_NEW_TOKENS = _Integer(1, 10_000_000)
"""As in a configuration."""


def number(low: float, high: float, *, above: bool = False) -> click.FloatRange:
    """Return the type of a number from `low` to `high`; with `above`, `low` itself is excluded."""
    return _Number(low, high, min_open=above)


def integer(low: int, high: int | None = None) -> click.IntRange:
    """Return the type of an integer from `low` to `high`, if there is a highest."""
    return _Integer(low, high)


config_file = click.argument("config_file", metavar="CONFIG.yaml", type=PATH)
json_output = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)


def overrides(example: str) -> Callable[[Command], Command]:
    """Return the option `--set`, whose help names one of the command's own settings."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY.PATH=VALUE",
        help=f"Change one setting, such as {example}; may be repeated.",
    )
