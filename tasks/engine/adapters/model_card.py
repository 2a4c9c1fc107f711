"""The adapter's model card: what it is, how to load it, its training data and its results."""

import json

import yaml

from tasks.config import OutputSettings
from tasks.engine.base import license_of, traits_of
from tasks.records import (
    BaseModelRecord,
    DataRecord,
    LoraConfigRecord,
    LoraRecord,
    PeftConfigRecord,
    TrainedRecord,
)


def write_card(trained: TrainedRecord, data: DataRecord, output: OutputSettings) -> str:
    """Return the model card as Markdown, with the metadata that the Hub reads at its top.

    Args:
        trained: the adapter's training.
        data: that it was trained on.
        output: its license and language, if set.
    """
    return f"{_metadata(trained, output)}\n{_body(trained, data)}"


def _metadata(trained: TrainedRecord, output: OutputSettings) -> str:
    base = trained.injected.lora.base
    fields = {
        "base_model": base.reference,
        "library_name": "peft",
        "pipeline_tag": traits_of(base.settings.task).pipeline_tag,
        "tags": [trained.injected.lora.peft_config.method, *_objective(trained), "adapterflow"],
        **({"license": output.license} if output.license else license_of(base)),
        "language": output.language or None,
    }
    given = {key: value for key, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(given, sort_keys=False)}---\n"


def _objective(trained: TrainedRecord) -> list[str]:
    return [trained.preferences.objective.value] if trained.preferences else []


def _body(trained: TrainedRecord, data: DataRecord) -> str:
    lora, base = trained.injected.lora, trained.injected.lora.base
    num_trainable = trained.injected.num_trainable_parameters
    share = num_trainable / trained.injected.num_total_parameters
    held_out = data.eval.num_rows if data.eval else 0
    eval_loss = "not measured" if trained.eval_loss is None else f"{trained.eval_loss:.4f}"
    revision = f', revision="{base.revision}"' if base.revision else ""
    own = data.chat_template is not None or bool(base.settings.new_tokens)
    tokenizer = '"path/to/this/folder"' if own else f'"{base.reference}"{revision}'
    targets = _in_cell(", ".join(lora.matches.per_target))
    auto_class = traits_of(base.settings.task).auto_class
    tokens = f" ({data.train.num_trained_tokens:,} trained tokens)" if not data.labels else ""
    return f"""# {_kind(lora.peft_config)} adapter for {base.reference}

Trained with adapterflow: only the weights in this folder were trained.

## Use

```python
from transformers import {auto_class}, AutoTokenizer
{_labels(data)}
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
model = {auto_class}.from_pretrained("{base.reference}"{revision}{_label_arguments(data)})
{_resizing(base)}model.load_adapter("path/to/this/folder")
```

## Training

| | |
|---|---|
| base | `{base.reference}` at `{base.revision or base.fingerprint}`, {base.dtype} |
{_shape(lora.peft_config)}
| adapted layers | {targets} |
{_patterns(lora)}{_start(lora)}| trainable parameters | {num_trainable:,} ({share:.2%}) |
| task | {base.settings.task.value} |
| training rows | {data.train.num_rows:,}{tokens} |
| training data sha256 | `{data.train.sha256}` |
{_preferences(trained, data)}{_sources(data)}| held-out rows | {held_out:,} |
| optimizer steps | {trained.num_steps:,} |
| training loss (last steps) | {trained.train_loss:.4f} |
| held-out loss | {eval_loss} |
{_eval_metrics(trained)}{_chat_options(data)}"""


def _preferences(trained: TrainedRecord, data: DataRecord) -> str:
    """Return rows of the table with how preferences were learned, if they were."""
    learned, lengths = trained.preferences, data.train.answer_lengths
    if learned is None or lengths is None:
        return ""
    chosen, rejected = lengths
    reference = "| reference | the model before training |\n" if learned.reference_sha256 else ""
    return (
        f"| learned | preferences: {learned.kind} ({learned.text}) |\n"
        f"{reference}"
        f"| mean tokens of an answer | chosen {chosen:.0f}, rejected {rejected:.0f} |\n"
    )


def _resizing(base: BaseModelRecord) -> str:
    """Return the line that gives the base rows for the new tokens, which the adapter contains."""
    if not base.settings.new_tokens:
        return ""
    return (
        "rows = max(len(tokenizer), model.get_input_embeddings().num_embeddings)\n"
        "model.resize_token_embeddings(rows, mean_resizing=False)\n"
    )


def _kind(config: PeftConfigRecord) -> str:
    return "LoRA" if isinstance(config, LoraConfigRecord) else config.peft_type


def _shape(config: PeftConfigRecord) -> str:
    """Return a row of the table with what determines the adapter's size."""
    if isinstance(config, LoraConfigRecord):
        values = f"{config.r}, {config.lora_alpha:g}, {config.lora_dropout:g}"
        return f"| rank, alpha, dropout | {values} |"
    return f"| PEFT's method | {config.peft_type}; its options are in `adapter_config.json` |"


def _start(lora: LoraRecord) -> str:
    """Return rows of the table with the adapter that this one began as."""
    if lora.source is None:
        return ""
    named = lora.source.public_reference
    sha256 = f"sha256 `{lora.source.weights.sha256}`"
    rows = f"| began as | {f'`{named}`, ' if named else 'an adapter with '}{sha256} |\n"
    if learned := lora.source.learned:
        number = "" if learned.num_rows is None else f"{learned.num_rows:,} rows, "
        rows += f"| which was trained on | {number}sha256 `{learned.sha256}` |\n"
    return rows


def _in_cell(text: str) -> str:
    return text.replace("|", r"\|")


def _patterns(lora: LoraRecord) -> str:
    """Return rows of the table with what narrows the targets down, and with ranks of their own."""
    fields = lora.peft_config.to_json()
    given = {
        setting: _in_cell(json.dumps(fields[setting]))
        for setting in ("exclude_modules", "layers_to_transform", "rank_pattern", "alpha_pattern")
        if fields.get(setting)
    }
    return "".join(f"| {setting} | `{value}` |\n" for setting, value in given.items())


def _chat_options(data: DataRecord) -> str:
    kwargs, rows = data.chat.chat_template_kwargs, ""
    if kwargs:
        rows += f"| chat template variables | `{json.dumps(kwargs, ensure_ascii=False)}` |\n"
    if data.chat.system_in_user:
        rows += "| system messages | at the beginning of the next user message |\n"
    return rows


def _sources(data: DataRecord) -> str:
    """Return a row of the table with the sources, where there are several."""
    parts = [f"{part.name} ({part.num_rows:,} rows)" for part in data.train.parts]
    return f"| training sources | {', '.join(parts)} |\n" if parts else ""


def _labels(data: DataRecord) -> str:
    return f"\nlabels = {list(data.labels)!r}" if data.labels else ""


def _label_arguments(data: DataRecord) -> str:
    if not data.labels:
        return ""
    return ", id2label=dict(enumerate(labels)), label2id={x: i for i, x in enumerate(labels)}"


def _eval_metrics(trained: TrainedRecord) -> str:
    metrics = trained.eval_metrics_text
    return f"| held-out metrics | {metrics} |\n" if metrics else ""
