"""The tools that are compared on a GPU."""

import importlib.util
from dataclasses import dataclass
from typing import Any

OURS = "ours"
REFERENCE = "trainer"
"""The tool whose losses are those of equal work."""
FALLBACK, LIGER = "trl-tuned", "trl-liger"
_FAST = {"gradient_checkpointing": False}


@dataclass(frozen=True)
class Peer:
    """A tool."""

    module: str
    """In `benchmarks.tools`."""
    title: str
    needs: tuple[str, ...]
    """Libraries that must be there, beside those that ours needs."""
    options: dict[str, dict[str, Any]]
    """By method."""

    def why_not(self, method: str) -> str:
        """Describe what is missing; empty if the tool can run."""
        needed = (*self.needs, *(["bitsandbytes"] if method == "QLoRA" else []))
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        return f"{' and '.join(missing)} not installed" if missing else ""


def _like_transformers(**options: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - as JSON
    return {"LoRA": options, "QLoRA": options | {"four_bits": True}}


PEERS = {
    OURS: Peer(
        "ours",
        "adapterflow",
        (),
        {"LoRA": {}, "QLoRA": {"base_model": {"quantization": "4bit"}}},
    ),
    REFERENCE: Peer("plain_trainer", "Trainer + PEFT", (), _like_transformers()),
    "trl": Peer("trl_sft", "TRL as documented", ("trl",), _like_transformers()),
    LIGER: Peer(
        "trl_sft",
        "TRL, Liger, no checkpointing",
        ("trl", "liger_kernel"),
        _like_transformers(use_liger_kernel=True, **_FAST),
    ),
    FALLBACK: Peer("trl_sft", "TRL, no checkpointing", ("trl",), _like_transformers(**_FAST)),
}
