"""The bases: random weights at the shapes of known models, made where they are needed."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tasks.engine.base import device, release_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Shape:
    """A model's sizes."""

    title: str
    sizes: dict[str, Any]
    """Arguments of LlamaConfig."""

    def config(self, tokenizer: "PreTrainedTokenizerBase") -> LlamaConfig:
        """Return the configuration, with a vocabulary that has all of the tokenizer's tokens."""
        sizes = {"vocab_size": len(tokenizer)} | self.sizes
        return LlamaConfig(
            **sizes,
            max_position_embeddings=8192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


TINY = "tiny"
SHAPES = {
    TINY: Shape(
        "tiny",
        {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            # The usual 0.02 makes all logits of so small a model almost equal.
            "initializer_range": 0.08,
        },
    ),
    "135m": Shape(
        "SmolLM2-135M",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "1b": Shape(
        "Llama 3.2 1B",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
    ),
    "8b": Shape(
        "Llama 3.1 8B",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
}
"""From small to large. Their rotations are the plain ones, which take as long."""


def random_base(shape: str, tokenizer: Path, folder: Path) -> Path:
    """Return the folder of a base in bfloat16, which is made on first use.

    Args:
        shape: the name of its shape.
        tokenizer: the folder of the tokenizer, which is saved with it.
        folder: for all bases.
    """
    place = folder / shape
    if place.exists():
        return place
    saved = AutoTokenizer.from_pretrained(tokenizer)
    unfinished = folder / f"{shape}-{os.getpid()}"
    # On the device, where drawing eight billion numbers takes no time.
    with torch.random.fork_rng(), torch.device(device()):
        torch.manual_seed(0)
        config = SHAPES[shape].config(saved)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(unfinished)
    saved.save_pretrained(unfinished)
    unfinished.rename(place)
    del model
    release_memory()
    return place


def num_linear_weights(config: LlamaConfig) -> int:
    """Return the number of weights of all linear layers but the output layer."""
    hidden, width = config.hidden_size, config.hidden_size // config.num_attention_heads
    keys = config.num_key_value_heads or config.num_attention_heads
    heads = 2 * config.num_attention_heads + 2 * keys
    return config.num_hidden_layers * hidden * (heads * width + 3 * config.intermediate_size)
