"""Let bitsandbytes compile its functions when they are called, not when it is imported.

bitsandbytes 0.50 decorates four functions with `torch.compile`, for which torch imports its
compiler: 640 modules, a fifth of the CPU time of all imports. PEFT imports bitsandbytes whether or
not a base is quantized, and only quantized ones call any of the four.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_MODULE = "bitsandbytes"


def compile_late() -> None:
    """From now on, import bitsandbytes without torch's compiler."""
    if _MODULE not in sys.modules and not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds bitsandbytes where Python would, with a loader of ours."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _MODULE else None
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None  # the other finders' business
        spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with compiled_when_called():
            super().exec_module(module)


@contextmanager
def compiled_when_called() -> Iterator[None]:
    """Within the block, `torch.compile` returns a function that is compiled when first called."""
    import torch

    compile_now = torch.compile

    def compile_then(function: Callable[..., Any] | None = None, **options: Any) -> Any:  # noqa: ANN401
        if function is None:  # it is called to return a decorator
            return partial(compile_then, **options)
        compiled = cache(lambda: compile_now(function, **options))

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return compiled()(*args, **kwargs)

        return call

    torch.compile = compile_then  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now
