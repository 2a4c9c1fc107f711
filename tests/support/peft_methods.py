"""PEFT's other methods in tests: options for tiny layers, and what PEFT 0.21 can't do with some."""

from typing import Any

from tasks.config import LoraSettings
from tasks.engine.adapters import methods

SMALL: dict[str, dict[str, Any]] = {
    # PEFT's defaults are for large layers.
    "adamss": {"r": 8, "num_subspaces": 2},
    "c3a": {"block_size": 16},
}
"""Options for layers of 64 inputs; a method that is not named has its defaults."""
LAYERS = ["q_proj", "down_proj"]
TARGETS = {"ln_tuning": ["input_layernorm"]}
"""Of methods that adapt no linear layers."""
ALONE = {"randlora"}
"""Methods of which PEFT 0.21 can't load two on one base."""
NOT_MERGED = {"beft"}
"""Methods that PEFT can't merge into linear layers without a bias."""
OTHERS = [name for name in methods.usable_methods() if name != methods.LORA]


def settings(method: str, **more: object) -> LoraSettings:
    """Return settings for a method on two layers."""
    targets = TARGETS.get(method, LAYERS)
    given = {"method": method, "target_modules": targets, "options": SMALL.get(method, {})}
    return LoraSettings.model_validate(given | more)
