"""HF Trainer's arguments, from the settings and what the base is."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from tasks.config import TrainingSettings
from tasks.config.training import Optimizer
from tasks.records import InjectedRecord

_OPTIMIZERS = {
    Optimizer.ADAMW_TORCH: "adamw_torch_fused",
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
}


def training_arguments(
    settings: TrainingSettings,
    injected: InjectedRecord,
    folder: Path,
    *,
    evaluates: bool,
) -> TrainingArguments:
    """Give the arguments of a training whose checkpoints go into `folder`."""
    base = injected.lora.base
    every = "epoch" if settings.eval_steps is None else "steps"
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        optim=_OPTIMIZERS[settings.optim],
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type.value,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        eval_strategy=every if evaluates else "no",
        save_strategy=every,
        eval_steps=settings.eval_steps,
        save_steps=settings.eval_steps or 500,
        # Patience and an early end are part of the state, too.
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=settings.load_best_model_at_end and evaluates,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        seed=injected.lora.seed,
        data_seed=injected.lora.seed,
        # float32 adapters on a half-precision base: products in half precision, sums in float32.
        bf16=base.dtype == "bfloat16",
        fp16=base.dtype == "float16" and on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
