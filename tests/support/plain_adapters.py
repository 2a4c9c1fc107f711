"""Adapters as plain PEFT makes and saves them, for tests of what others' adapters need."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def lora_folder(base: Path, folder: Path, *, seed: int = 3, **config: Any) -> Path:  # noqa: ANN401
    """Save an adapter with random weights, of which none is the base's."""
    given = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**given))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder
