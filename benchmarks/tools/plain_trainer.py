"""Transformers' Trainer with PEFT: the script that a user would write."""

import time
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.harness.messages import Job, Outcome
from benchmarks.harness.rows import tokens_and_labels
from benchmarks.harness.watching import Watch


def run(job: Job) -> Outcome:
    """Train an adapter and save it.

    With the option `full` all weights are trained instead; with `four_bits` the base is quantized.
    """
    set_seed(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    rows = load_dataset("json", data_files=str(job.train), split="train")
    rows = rows.map(
        tokens_and_labels,
        fn_kwargs={"tokenizer": tokenizer, "max_length": job.max_length},
        remove_columns=rows.column_names,
    )
    options = dict(job.options)
    full, quantized = options.pop("full", False), options.pop("four_bits", False)
    # Full fine-tuning is in float32: bfloat16 weights would lose most of each small step.
    dtype = torch.float32 if full else getattr(torch, job.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        job.base, dtype=dtype, quantization_config=four_bits(job) if quantized else None
    )
    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if not full:
        model = get_peft_model(model, lora_config(job))
    outcome = Outcome()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments(job), **options),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Watch(job, outcome)],
    )
    trainer.train()
    model.save_pretrained(job.adapter)
    outcome.adapter, outcome.adapter_done = job.adapter, time.time()
    return outcome


def lora_config(job: Job) -> LoraConfig:
    """Return the LoRA configuration."""
    return LoraConfig(
        r=job.r, lora_alpha=job.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def four_bits(job: Job) -> BitsAndBytesConfig:
    """Return how QLoRA (https://arxiv.org/abs/2305.14314) quantizes the base, as ours does."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, job.dtype),
    )


def arguments(job: Job) -> dict[str, Any]:
    """Return Trainer's arguments; all others stay at their defaults."""
    return {
        "output_dir": str(job.folder / "checkpoints"),
        "per_device_train_batch_size": job.batch_size,
        "max_steps": job.num_steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": job.warmup_ratio,
        "bf16": job.dtype == "bfloat16",
        # Without it transformers 5.23 refuses bf16 on a machine without a GPU.
        "use_cpu": not torch.cuda.is_available(),
        "seed": job.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
