"""TRL's SFTTrainer, as its documentation shows it or with options."""

import time

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarks.harness.messages import Job, Outcome
from benchmarks.harness.rows import prompt_and_completion
from benchmarks.harness.watching import Watch
from benchmarks.tools.plain_trainer import arguments, four_bits, lora_config


def run(job: Job) -> Outcome:
    """Train an adapter and save it; with the option `four_bits` the base is quantized.

    The rows are in TRL's prompt-completion format, with which the loss is on the completion only.
    """
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    rows = load_dataset("json", data_files=str(job.train), split="train")
    rows = rows.map(
        prompt_and_completion, fn_kwargs={"tokenizer": tokenizer}, remove_columns=rows.column_names
    )
    options = dict(job.options)
    quantized = options.pop("four_bits", False)
    settings = {
        **arguments(job),
        "max_length": job.max_length,
        "model_init_kwargs": {"dtype": job.dtype},
        **options,
    }
    outcome = Outcome()
    trainer = SFTTrainer(
        model=str(job.base),
        args=SFTConfig(**settings),
        train_dataset=rows,
        quantization_config=four_bits(job) if quantized else None,
        peft_config=lora_config(job),
        callbacks=[Watch(job, outcome)],
    )
    trainer.train()
    trainer.save_model(str(job.adapter))
    outcome.adapter, outcome.adapter_done = job.adapter, time.time()
    return outcome
