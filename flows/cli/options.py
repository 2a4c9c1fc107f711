"""Arguments and options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
"""A path, existing or not: each command checks what it needs, in a message of its own."""

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
