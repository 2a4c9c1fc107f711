"""LLaMA-Factory's supervised fine-tuning, in a virtual environment of its own."""

import json
import time

from llamafactory.train.tuner import run_exp

from benchmarks.harness.messages import Job, Outcome
from benchmarks.harness.rows import prompt_and_completion
from benchmarks.harness.watching import Watch


def run(job: Job) -> Outcome:
    """Train an adapter, which LLaMA-Factory's trainer saves.

    The rows are rendered beforehand, since its own templates also train on the line break after an
    answer; the template `empty` leaves them unchanged.
    """
    _write_rows(job)
    outcome = Outcome()
    run_exp(_arguments(job), callbacks=[Watch(job, outcome)])
    outcome.adapter, outcome.adapter_done = job.adapter, time.time()
    return outcome


def _write_rows(job: Job) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base)
    rendered = (
        prompt_and_completion(json.loads(line), tokenizer)
        for line in job.train.read_text(encoding="utf-8").splitlines()
    )
    rows = [
        {"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in rendered
    ]
    (job.folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    information = {"rows": {"file_name": "rows.json"}}
    (job.folder / "dataset_info.json").write_text(json.dumps(information))


def _arguments(job: Job) -> dict[str, object]:
    return {
        "model_name_or_path": str(job.base),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": job.r,
        "lora_alpha": job.lora_alpha,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": str(job.folder),
        "template": "empty",
        "cutoff_len": job.max_length,
        "output_dir": str(job.adapter),
        "per_device_train_batch_size": job.batch_size,
        "max_steps": job.num_steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": job.warmup_ratio,
        "bf16": job.dtype == "bfloat16",
        "use_cpu": True,
        "seed": job.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **job.options,
    }
