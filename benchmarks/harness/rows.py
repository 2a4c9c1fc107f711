"""Rows in the form other tools need, with the loss on the tokens that adapterflow trains on.

The answer and the end token after it are trained on; what a chat template appends after that (a
line break) is left out. A test compares the tokens with those of the product.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


def prompt_and_completion(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, str]:
    """Render a chat row as the text before its answer, and the answer with its end token."""
    prompt = tokenizer.apply_chat_template(
        row["messages"][:-1], tokenize=False, add_generation_prompt=True
    )
    return {
        "prompt": str(prompt),
        "completion": row["messages"][-1]["content"] + str(tokenizer.eos_token),
    }


def rendered_pair(row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """Render a pair as the text before its answers, and the answers with their end tokens."""
    texts = [
        prompt_and_completion({"messages": row["prompt"] + row[name]}, tokenizer)
        for name in ("chosen", "rejected")
    ]
    return {
        "prompt": texts[0]["prompt"],
        "chosen": texts[0]["completion"],
        "rejected": texts[1]["completion"],
    }


def tokenized(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[dict[str, list[int]]]:
    """Tokenize a row of either kind: a chat row is one item, a pair its chosen and rejected one."""
    conversations = (
        [row["prompt"] + row[name] for name in ("chosen", "rejected")]
        if "chosen" in row
        else [row["messages"]]
    )
    return [tokens_and_labels({"messages": one}, tokenizer, max_length) for one in conversations]


def tokens_and_labels(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> dict[str, list[int]]:
    """Tokenize a chat row: `labels` is -100 before the answer."""
    text = prompt_and_completion(row, tokenizer)
    prompt = tokenizer(text["prompt"], add_special_tokens=False)["input_ids"]
    completion = tokenizer(text["completion"], add_special_tokens=False)["input_ids"]
    ids = [*prompt, *completion]
    labels = [IGNORED] * len(prompt) + [*completion]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}
