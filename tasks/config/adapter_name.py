"""The names that adapters may have: of folders, and of entries in PEFT's containers."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_PATTERN = r"^[A-Za-z0-9_-]+$"


def check_adapter_name(name: str) -> str:
    """Return the name, if an adapter can have it.

    PEFT keeps each adapter's parts under its name in containers of torch, which refuse a name that
    is an attribute of theirs, such as `train` or `keys`.

    Raises:
        ValueError: no adapter can have it.
    """
    if not re.fullmatch(_PATTERN, name):
        raise ValueError(f"adapter name {name!r}: only letters, digits, _ and - are possible")
    if name != "default" and _is_attribute(name):
        raise ValueError(
            f"no adapter can be named {name!r}, which is an attribute of the torch containers that "
            f"PEFT keeps adapters in; possible is another name, such as {name.strip('_')}-adapter"
        )
    return name


def _is_attribute(name: str) -> bool:
    from torch import nn  # only here: most names are the default, and torch takes seconds

    return hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name)


AdapterName = Annotated[str, Field(pattern=_PATTERN), AfterValidator(check_adapter_name)]
