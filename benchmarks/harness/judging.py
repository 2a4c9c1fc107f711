"""Evaluate all tools' adapters alike: `python -m benchmarks.harness.judging REQUEST.json`.

Each is loaded by PEFT on a fresh float32 base, and a plain forward pass gives the mean loss of the
answers' tokens, or DPO's loss of pairs, over training rows and over held-out rows. So "at equal
loss" does not rely on what the tools report themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import load_dataset
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from benchmarks.harness.answering import answer, read_request
from benchmarks.harness.messages import Candidate, JudgingRequest, Verdict
from benchmarks.harness.pair_judging import log_probabilities, mean_pair_loss
from benchmarks.harness.rows import IGNORED, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS_AT_ONCE = 8

References = dict[tuple[Path, str], list[float]]
"""By the file and the split of it that is judged on."""


def verdicts(request: JudgingRequest) -> Iterator[Verdict]:
    """Return the losses of each candidate."""
    references: References = {}
    return (judge(request, candidate, references) for candidate in request.candidates)


def judge(request: JudgingRequest, candidate: Candidate, references: References) -> Verdict:
    """Load a candidate and measure its losses.

    Args:
        request: the rows.
        candidate: the base, or an adapter on it.
        references: the base's log-probabilities of pairs, which the first candidate adds.
    """
    tokenizer = AutoTokenizer.from_pretrained(request.base)

    def loss(file: Path, split: str) -> float:
        rows = load_dataset("json", data_files=str(file), split=split)
        items = [one for row in rows for one in tokenized(row, tokenizer, request.max_length)]
        if request.objective == "sft":
            return mean_loss(model, items)
        if (file, split) not in references:
            with base_of(model) as base:
                references[file, split] = log_probabilities(base, items)
        return mean_pair_loss(model, references[file, split], items)

    model = _load(request, candidate)
    return Verdict(
        train_loss=loss(request.train, f"train[:{request.num_rows}]"),
        held_out_loss=loss(request.held_out, "train"),
    )


@contextmanager
def base_of(model: "PreTrainedModel | PeftModel") -> "Iterator[PreTrainedModel]":
    """Yield the model without its adapter, if it has one."""
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        yield model


def mean_loss(model: "PreTrainedModel", items: list[dict[str, list[int]]]) -> float:
    """Return the mean loss over all labels of all rows, in nats, padded on the right."""
    total, count = 0.0, 0
    items = sorted(items, key=lambda item: len(item["input_ids"]))
    for start in range(0, len(items), _ROWS_AT_ONCE):
        rows = items[start : start + _ROWS_AT_ONCE]
        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([_padded(row["input_ids"], length, 0) for row in rows])
        mask = torch.tensor([_padded([1] * len(row["input_ids"]), length, 0) for row in rows])
        labels = torch.tensor([_padded(row["labels"], length, IGNORED) for row in rows])[:, 1:]
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        total += cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        count += int((labels != IGNORED).sum())
    return total / count


def _load(request: JudgingRequest, candidate: Candidate) -> "PreTrainedModel":
    packing = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model = AutoModelForCausalLM.from_pretrained(
        candidate.model or request.base,
        dtype=torch.float32,
        quantization_config=packing if candidate.quantized else None,
    )
    if candidate.adapter:
        model = PeftModel.from_pretrained(model, str(candidate.adapter))
    return model.eval()  # type: ignore[no-any-return]


def _padded(values: list[int], length: int, filler: int) -> list[int]:
    return values + [filler] * (length - len(values))


if __name__ == "__main__":
    answer(verdicts(read_request(JudgingRequest)))
