"""How many modules of models are looked at, which is what loading one more adapter costs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

_LOOKING = ("named_modules", "named_children", "state_dict")
"""Each calls itself for the modules within, or is called for them."""


def counted_visits(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count visits from now on; return what returns those since it was called last."""
    seen = 0

    def counted(kind: str) -> Callable[..., Any]:
        given = getattr(torch.nn.Module, kind)

        def counting(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            nonlocal seen
            seen += 1
            return given(module, *args, **kwargs)

        return counting

    for kind in _LOOKING:
        monkeypatch.setattr(torch.nn.Module, kind, counted(kind))

    def since_called() -> int:
        nonlocal seen
        found, seen = seen, 0
        return found

    return since_called
