"""Show the progress of transformers' own loops as ours, with the time left, also in a log."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tasks.runtime.progress import Progress, progress

Show = Callable[[str], AbstractContextManager[Progress]]


@contextmanager
def shown_as(what: str, show: Show = progress) -> Iterator[None]:
    """Show each loop over weights in which transformers would draw a bar of its own.

    Args:
        what: what the loop is over, such as `loaded weight`.
        show: opens the display.
    """
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as upstream

    gguf: Any = modeling_gguf_pytorch_utils

    def hook(bar: Any, arguments: Any, named: Any) -> Any:  # noqa: ANN401 - tqdm's own types
        items: Any = arguments[0] if arguments else None
        if hasattr(items, "__len__"):
            return _counted(items, len(items), what, show)
        return bar(*arguments, **named)

    before, of_gguf = upstream.set_tqdm_hook(hook), gguf.tqdm
    # The reader of GGUF files draws its bar past the hook.
    gguf.tqdm = lambda items, **_: _counted(items, len(items), what, show)
    try:
        yield
    finally:
        upstream.set_tqdm_hook(before)
        gguf.tqdm = of_gguf


def _counted(items: Iterable[Any], total: int, what: str, show: Show) -> Iterator[Any]:
    with show(what) as shown:
        shown.at(0, total)
        for number, item in enumerate(items, 1):
            yield item
            shown.at(number, total)
