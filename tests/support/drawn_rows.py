"""Rows of drawn tokens that begin alike, and a tiny model with an adapter to try them on."""

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def row(prompt: Iterable[int], answer: Iterable[int]) -> TokenizedRow:
    """Make a row that trains on its answer."""
    prompt, answer = list(prompt), list(answer)
    return TokenizedRow([*prompt, *answer], [IGNORED] * len(prompt) + answer)


def draw_rows(*sizes: tuple[int, int], prefix_length: int = 12) -> list[TokenizedRow]:
    """Make rows that begin alike, with so many own tokens of prompt and answer."""
    draw = random.Random(0)  # noqa: S311 - no secret

    def tokens(count: int) -> list[int]:
        return [draw.randrange(4, 380) for _ in range(count)]

    prefix = tokens(prefix_length)
    return [row([*prefix, *tokens(prompt)], tokens(answer)) for prompt, answer in sizes]


def draw_conversations(*turns: int, prefix_length: int = 12) -> list[TokenizedRow]:
    """Make conversations that begin alike and have so many turns, each a row in its own context.

    Every other answer stands in later contexts as it was given; the others are rewritten there, and
    only begin alike.
    """
    draw = random.Random(0)  # noqa: S311 - no secret

    def tokens(count: int) -> list[int]:
        return [draw.randrange(4, 380) for _ in range(count)]

    prefix, rows = tokens(prefix_length), []
    for conversation, count in enumerate(turns):
        context = [*prefix, *tokens(3 + conversation)]
        for turn in range(count):
            answer = tokens(4)
            rows.append(replace(row(context, answer), conversation=conversation))
            context += [*(answer if turn % 2 else [answer[0], *tokens(2)]), *tokens(3 + turn)]
    return rows


def adapted_llama(folder: Path) -> "PreTrainedModel":
    """Load the tiny Llama with an adapter that changes its answers, and freeze the rest."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(
            LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        )
    model.train()
    return model
