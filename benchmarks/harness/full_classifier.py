"""All weights of a classifier trained by plain Trainer, in a process of its own."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.messages import Message
from tasks.config import BaseModelSettings


class Request(Message):
    """What to train, and on what."""

    base: str
    train: Path
    held_out: Path
    epochs: int
    batch_size: int
    learning_rate: float
    folder: Path


class Trained(Message):
    """The scores of the trained classifier, and what training took."""

    accuracy: float
    macro_f1: float
    num_parameters: int
    seconds_training: float


def main() -> None:
    """Train as the request's file says, and write the outcome beside it."""
    file = Path(sys.argv[1])
    trained = train(Request.model_validate_json(file.read_text()))
    file.with_suffix(".answers.json").write_text(trained.model_dump_json())


def train(request: Request) -> Trained:
    """Train all weights, and evaluate on the held-out rows."""
    import torch
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from tasks.engine.base import find_base, multiplies_bfloat16_fast

    location = find_base(BaseModelSettings(source=request.base)).location
    tokenizer = AutoTokenizer.from_pretrained(location)
    train_rows, held_out = (_read(one) for one in (request.train, request.held_out))
    labels = sorted({row["label"] for row in train_rows})
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        location, num_labels=len(labels), dtype=torch.float32
    )

    def tokens(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        ids = tokenizer([row["text"] for row in rows], truncation=True)["input_ids"]
        pairs = zip(ids, rows, strict=True)
        return [{"input_ids": one, "labels": labels.index(row["label"])} for one, row in pairs]

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(request.folder / "full"),
            num_train_epochs=request.epochs,
            per_device_train_batch_size=request.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=request.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            train_sampling_strategy="group_by_length",
            bf16=multiplies_bfloat16_fast(),
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=tokens(train_rows),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    judged = trainer.predict(tokens(held_out))  # type: ignore[arg-type]
    guesses = judged.predictions.argmax(axis=-1)  # type: ignore[union-attr]
    return Trained(
        accuracy=accuracy_score(judged.label_ids, guesses),
        macro_f1=f1_score(judged.label_ids, guesses, average="macro", zero_division=0),
        num_parameters=model.num_parameters(),
        seconds_training=seconds,
    )


def _read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
