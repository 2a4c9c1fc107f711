"""HF Trainer's arguments, from the training settings and the base model's properties."""

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
    """Return Trainer's arguments for a training run with checkpoints in `folder`.

    Args:
        settings: the training settings.
        injected: the model with its adapter; its dtype and seed are used.
        folder: for checkpoints.
        evaluates: whether there are held-out rows to evaluate on.
    """
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
        # Otherwise a resumed run would forget its early-stopping patience and that it had stopped.
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=settings.load_best_model_at_end and evaluates,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        seed=injected.lora.seed,
        data_seed=injected.lora.seed,
        # float32 adapters on a half-precision base: autocast multiplies in half precision and
        # accumulates in float32. float16 autocast with gradient scaling needs a GPU.
        bf16=base.dtype == "bfloat16",
        fp16=base.dtype == "float16" and on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
