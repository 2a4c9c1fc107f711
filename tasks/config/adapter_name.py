"""Valid adapter names: they name folders, and entries in PEFT's containers."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_PATTERN = r"^[A-Za-z0-9_-]+$"
_LONGEST = 100
"""Letters; a folder, with what is put before and behind it, may have 255 on most systems."""


def check_adapter_name(name: str) -> str:
    """Return the name if it is valid.

    PEFT keeps each adapter's modules under its name in torch's containers, which refuse the name of
    one of their attributes, such as `train` or `keys`.

    Raises:
        ValueError: no adapter can have the name.
    """
    if not re.fullmatch(_PATTERN, name):
        raise ValueError(f"adapter name {name!r}: only letters, digits, _ and - are allowed")
    if len(name) > _LONGEST:
        raise ValueError(f"adapter name {name[:20]}… has {len(name)} letters; at most {_LONGEST}")
    if name != "default" and _is_attribute(name):
        raise ValueError(
            f"an adapter can't be named {name!r}, an attribute of the torch containers that PEFT "
            f"keeps adapters in; choose another name, such as {name.strip('_')}-adapter"
        )
    return name


def _is_attribute(name: str) -> bool:
    from torch import nn  # imported late: most names are `default`, and torch takes seconds

    return hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name)


AdapterName = Annotated[str, Field(pattern=_PATTERN), AfterValidator(check_adapter_name)]
