"""Read the files of an adapter's folder: its configuration, its manifest and its weights."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .reading import reading


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return PEFT's configuration of an adapter.

    Raises:
        ValueError: the file can't be read.
    """
    with reading(f"the configuration of the adapter in {folder}"):
        return dict(json.loads((folder / "adapter_config.json").read_text()))


def chat_options(folder: str) -> dict[str, Any]:
    """Return what an adapter's chat template is given beside messages, by its manifest."""
    manifest = Path(folder) / "manifest.json"
    options = json.loads(manifest.read_text()).get("chat") if manifest.is_file() else None
    return options or {}


def fully_trained(folders: Iterable[Path]) -> list[str]:
    """Return the names of the modules that some adapter trained fully."""
    configs = [adapter_config(folder) for folder in folders]
    return sorted({name for one in configs for name in one.get("modules_to_save") or ()})


def is_plain(folder: str) -> bool:
    """Return whether PEFT can apply the adapter to single rows of a batch."""
    config = adapter_config(Path(folder))
    others = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")
    is_lora = config.get("peft_type") == "LORA"
    return is_lora and config.get("bias", "none") == "none" and not any(map(config.get, others))


def adapter_weights(folder: str) -> dict[str, Any]:
    """Read an adapter's weights; transformers expects `.weight` in DoRA's keys, PEFT omits it."""
    from safetensors.torch import load_file

    with reading(f"the weights of the adapter in {folder}"):
        weights = load_file(Path(folder) / "adapter_model.safetensors")
    return {re.sub(r"\.lora_magnitude_vector$", r"\g<0>.weight", k): w for k, w in weights.items()}
