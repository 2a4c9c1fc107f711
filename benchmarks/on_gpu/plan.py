"""What is measured, and in which order: smallest shapes first, LoRA before QLoRA."""

from collections.abc import Iterator

from benchmarks.on_gpu.messages import Item
from benchmarks.on_gpu.peers import FALLBACK, LIGER, OURS, PEERS, REFERENCE

_CPU_LIMIT = 300
CARD = Item(kind="card", name="matrix product", expected_seconds=5, limit_seconds=_CPU_LIMIT)
_CHECK_SECONDS = (2, 60)
_SECONDS = {"tiny": (10, _CPU_LIMIT), "135m": (8, 60), "1b": (12, 75), "8b": (40, 150)}
"""What a check, and a training at each shape, is expected to take, and allowed to. Guesses."""
_PARTS = (
    ("135m", "LoRA", ("demo", "long")),
    ("1b", "LoRA", ("demo", "long")),
    ("8b", "LoRA", ("long",)),
    ("1b", "QLoRA", ("long",)),
    ("8b", "QLoRA", ("long",)),
)
_TOOLS = (OURS, REFERENCE, "trl", LIGER)


def checks(names: list[str], *, on_gpu: bool) -> list[Item]:
    """Return the items of all checks."""
    expected, limit = _CHECK_SECONDS if on_gpu else _SECONDS["tiny"]
    return [
        Item(kind="check", name=name, expected_seconds=expected, limit_seconds=limit)
        for name in names
    ]


def tiny_trainings() -> list[Item]:
    """Return the trainings for a machine without a GPU."""
    return [_training(name, "tiny", "LoRA", "demo") for name in _TOOLS]


def trainings() -> Iterator[list[Item]]:
    """Yield the trainings on a GPU, those of a tool on a base together.

    TRL without Liger's kernels stands in for TRL with them where they are not installed.
    """
    for shape, method, workloads in _PARTS:
        tools = [*_TOOLS, FALLBACK] if PEERS[LIGER].why_not(method) else _TOOLS
        for name in tools:
            yield [_training(name, shape, method, workload) for workload in workloads]


def _training(name: str, shape: str, method: str, workload: str) -> Item:
    expected, limit = _SECONDS[shape]
    return Item.model_validate(
        {
            "kind": "training",
            "name": name,
            "shape": shape,
            "method": method,
            "workload": workload,
            "expected_seconds": expected,
            "limit_seconds": limit,
        }
    )
