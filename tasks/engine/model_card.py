"""The adapter's model card: what it is, how to load it, what it was trained on, how it did."""

import yaml

from tasks.config import OutputSettings
from tasks.records import DataRecord, TrainedRecord


def write_card(trained: TrainedRecord, data: DataRecord, output: OutputSettings) -> str:
    """Give the card as Markdown, with the metadata that the Hub reads on top."""
    return f"{_metadata(trained, output)}\n{_body(trained, data)}"


def _metadata(trained: TrainedRecord, output: OutputSettings) -> str:
    fields = {
        "base_model": trained.injected.lora.base.reference,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "adapterflow"],
        "license": output.license,
        "language": output.language or None,
    }
    given = {key: value for key, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(given, sort_keys=False)}---\n"


def _body(trained: TrainedRecord, data: DataRecord) -> str:
    lora, base = trained.injected.lora, trained.injected.lora.base
    config = lora.peft_config
    share = trained.injected.num_trainable_parameters / trained.injected.num_total_parameters
    held_out = data.eval.num_rows if data.eval else 0
    eval_loss = "not measured" if trained.eval_loss is None else f"{trained.eval_loss:.4f}"
    revision = f', revision="{base.revision}"' if base.revision else ""
    targets = ", ".join(lora.matches.per_target)
    return f"""# LoRA adapter for {base.reference}

Trained with adapterflow: only the weights in this folder were trained.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base.reference}"{revision})
model = AutoModelForCausalLM.from_pretrained("{base.reference}"{revision})
model.load_adapter("path/to/this/folder")
```

## Training

| | |
|---|---|
| base | `{base.reference}` at `{base.revision or base.fingerprint}`, {base.dtype} |
| rank, alpha, dropout | {config["r"]}, {config["lora_alpha"]:g}, {config["lora_dropout"]:g} |
| adapted layers | {targets} |
| trainable parameters | {trained.injected.num_trainable_parameters:,} ({share:.2%}) |
| training rows | {data.train.num_rows:,} ({data.train.num_trained_tokens:,} trained tokens) |
| training data sha256 | `{data.train.sha256}` |
| held-out rows | {held_out:,} |
| optimiser steps | {trained.num_steps:,} |
| training loss (last steps) | {trained.train_loss:.4f} |
| held-out loss | {eval_loss} |
"""
