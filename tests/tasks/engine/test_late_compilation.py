"""What is decorated with `torch.compile` while bitsandbytes is imported is compiled when called."""

from typing import TYPE_CHECKING, Any

import torch

from tasks.engine.late_compilation import compiled_when_called

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_function_is_compiled_when_it_is_called() -> None:
    """Both forms of the decorator leave a function that is compiled once, with its options."""
    graphs: list[object] = []

    def backend(graph: Any, _: object) -> "Callable[..., Any]":  # noqa: ANN401 - torch's own
        graphs.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    given = torch.compile
    with compiled_when_called():
        assert torch.compile is not given
        decorated = torch.compile(backend=backend)(doubled)
        direct = torch.compile(doubled, backend=backend)
    assert torch.compile is given
    for function in (decorated, direct):
        torch._dynamo.reset()
        graphs.clear()
        assert [function(torch.ones(2)).tolist() for _ in range(2)] == [[2, 2], [2, 2]]
        assert len(graphs) == 1
