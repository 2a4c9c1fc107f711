"""TRL's DPOTrainer, as its documentation shows it or with options."""

import time

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from benchmarks.harness.messages import Job, Outcome
from benchmarks.harness.rows import rendered_pair
from benchmarks.harness.watching import Watch
from benchmarks.tools.plain_trainer import arguments, lora_config


def run(job: Job) -> Outcome:
    """Train an adapter on pairs and save it; the reference is the base with the adapter off."""
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    rows = load_dataset("json", data_files=str(job.train), split="train")
    rows = rows.map(
        rendered_pair, fn_kwargs={"tokenizer": tokenizer}, remove_columns=rows.column_names
    )
    settings = {
        **arguments(job),
        "max_length": job.max_length,
        "model_init_kwargs": {"dtype": job.dtype},
        **job.options,
    }
    outcome = Outcome()
    trainer = DPOTrainer(
        model=str(job.base),
        args=DPOConfig(**settings),
        train_dataset=rows,
        peft_config=lora_config(job),
        callbacks=[Watch(job, outcome)],
    )
    trainer.train()
    trainer.save_model(str(job.adapter))
    outcome.adapter, outcome.adapter_done = job.adapter, time.time()
    return outcome
