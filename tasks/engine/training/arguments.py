"""HF Trainer's arguments, from the training settings and the base model's properties."""

from pathlib import Path

from transformers import TrainingArguments

from tasks.config import TrainingSettings
from tasks.config.training import Optimizer
from tasks.engine.base import device
from tasks.records import InjectedRecord

_OPTIMIZERS = {
    Optimizer.ADAMW_TORCH: "adamw_torch_fused",
    Optimizer.LORA_FA: "adamw_torch_fused",  # see `optimizers`, which makes it instead
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
}
"""Trainer's names. The fused kernel computes the same update in one pass over the weights."""


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
    kind = device().type
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
        # A number below 1 is a share of all steps; transformers 5 has no `warmup_ratio` beside it.
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        # Checkpoints at each evaluation: the best one can only be loaded if it was saved.
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
        # On, it would log the mean of earlier losses in place of one that is not finite, and the
        # check in `callbacks.Watch` would never see it.
        logging_nan_inf_filter=False,
        seed=injected.lora.seed,
        data_seed=injected.lora.seed,
        # float32 adapters on a half-precision base: autocast multiplies in half precision and
        # accumulates in float32. float16 autocast with gradient scaling needs an Nvidia GPU.
        bf16=base.dtype == "bfloat16",
        fp16=base.dtype == "float16" and kind == "cuda",
        use_cpu=kind == "cpu",
        dataloader_pin_memory=kind == "cuda",
        # Rows are made for the collator, whatever arguments the model's forward has.
        remove_unused_columns=False,
        # `Watch` reports to the caller instead.
        report_to=[],
        disable_tqdm=True,
    )
