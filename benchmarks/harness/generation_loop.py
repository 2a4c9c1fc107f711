"""Answer rows as a plain script does: `python -m benchmarks.harness.generation_loop REQUEST.json`.

transformers' `generate` on a base with the adapter, over the rows in their order.
"""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.answering import answer, read_request
from benchmarks.harness.messages import Message


class Asked(Message):
    """Rows to answer."""

    base: Path
    adapter: Path
    rows: Path
    dtype: str
    batch_size: int
    max_new_tokens: int


class Generated(Message):
    """The answers, and the seconds they took."""

    seconds: float
    answers: list[str]


def generate(asked: Asked) -> Generated:
    """Answer all rows."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked.base, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(asked.base, dtype=getattr(torch, asked.dtype))
    model.load_adapter(str(asked.adapter))
    model.eval()
    lines = asked.rows.read_text().splitlines()
    conversations = [json.loads(line)["messages"][:-1] for line in lines]
    prompts = [
        tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        for conversation in conversations
    ]
    answers: list[str] = []
    began = time.perf_counter()
    for start in range(0, len(prompts), asked.batch_size):
        batch = prompts[start : start + asked.batch_size]
        inputs = tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=asked.max_new_tokens, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new, skip_special_tokens=True)
    return Generated(seconds=time.perf_counter() - began, answers=answers)


if __name__ == "__main__":
    answer([generate(read_request(Asked))])
