"""The engine's steps on tiny models, as the pipeline calls them, for tests."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_models import tiny_tokenizer

from tasks import engine
from tasks.config import (
    BaseModelSettings,
    DataSettings,
    LoraSettings,
    OutputSettings,
    TrainingSettings,
)
from tasks.engine.adapters.injection import probe_logits, reinject
from tasks.engine.adapters.model_card import write_card
from tasks.engine.adapters.saving import Prompting, files_to_save, save_adapter
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.preparation import prepare_data
from tasks.records import BaseModelRecord, InjectedRecord, LoraRecord, SavedRecord, TrainedRecord

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from tasks.engine.training.callbacks import OnTraining

WORDS = ("card", "order", "transfer", "France", "fox", "dog", "help", "Paris", "question", "me")
ROWS = [{"prompt": f"The {one} is", "completion": f" {one}" * len(one)} for one in WORDS]


LABELS = ("animal", "money", "place")
LABELLED = [
    {"text": f"{start} {word} {'again ' * (n % 4)}", "label": label}
    for n, start in enumerate(("The", "What is the", "Tell me of the", "Where is the"))
    for label, word in zip(LABELS, ("fox", "card", "Paris"), strict=True)
]


def loaded(
    folder: Path, settings: BaseModelSettings | None = None
) -> tuple["PreTrainedModel", BaseModelRecord]:
    """Step 1: load the base in a folder, in float32 unless the settings say otherwise."""
    settings = settings or BaseModelSettings.model_validate(
        {"source": str(folder), "dtype": "float32"}
    )
    return engine.load_base(settings)


def configured(
    base: BaseModelRecord, settings: LoraSettings | None = None, *, seed: int = 0
) -> LoraRecord:
    """Step 2: resolve the LoRA configuration."""
    return engine.configure_lora(settings or LoraSettings(r=4), base, seed)


def injected(
    base: Path,
    folder: Path,
    settings: LoraSettings | None = None,
    base_settings: BaseModelSettings | None = None,
) -> tuple["PreTrainedModel", InjectedRecord]:
    """Steps 1 to 3: a base with a fresh adapter, whose initial weights go into the folder."""
    model, record = loaded(base, base_settings)
    configuration = configured(record, settings)
    file = folder / "initial" / f"{configuration.adapter_name}.safetensors"
    return model, engine.inject_adapter(model, configuration, file)


def rebuilt(record: InjectedRecord) -> "PreTrainedModel":
    """Return the injected model as a new process builds it."""
    model = loaded(Path(record.lora.base.location), record.lora.base.settings)[0]
    reinject(model, record)
    return model


def prepared(base: BaseModelRecord, folder: Path, num_eval_rows: int = 2) -> PreparedData:
    """Prepare some short rows for the base's task, of which the last ones are held out."""
    folder.mkdir(exist_ok=True)
    all_rows = LABELLED if base.labels else ROWS
    split = len(all_rows) - num_eval_rows
    files = {"train": all_rows[:split], "eval": all_rows[split:]}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings.model_validate(
        {name: str(folder / f"{name}.jsonl") for name, rows in files.items() if rows}
        | {"template": "plain", "eval_fraction": 0}
    )
    sets = read_examples(settings, 0, base.settings.task, base.labels)
    return prepare_data(sets, settings, 0, base, folder / "tokens")


def training(**changes: object) -> TrainingSettings:
    """Return settings for a short run at a high learning rate."""
    return TrainingSettings.model_validate(
        {"batch_size": 2, "max_steps": 4, "learning_rate": 0.02, "eval_steps": 2} | changes
    )


def at_question(number: int) -> Callable[[], bool]:
    """Return a function that says yes when it is called for the `number`th time."""
    count = itertools.count(1)
    return lambda: next(count) == number


def train_here(
    model: "PreTrainedModel",
    record: InjectedRecord,
    folder: Path,
    settings: TrainingSettings | None = None,
    on_progress: "OnTraining | None" = None,
) -> TrainedRecord:
    """Step 4: train the model that was injected, on from a checkpoint in the folder, if any."""
    data = prepared(record.lora.base, folder).record
    checkpoints = folder / "checkpoints"
    return engine.train_adapter(
        model, record, data, settings or training(), checkpoints, on_progress
    )


def trained(
    base: Path,
    folder: Path,
    settings: LoraSettings | None = None,
    base_settings: BaseModelSettings | None = None,
) -> tuple["PreTrainedModel", TrainedRecord]:
    """Steps 1 to 4: a base with a trained adapter."""
    model, record = injected(base, folder, settings, base_settings)
    return model, train_here(model, record, folder)


def save_here(
    model: "PreTrainedModel",
    record: TrainedRecord,
    folder: Path,
    push: Callable[[Path], str] | None = None,
) -> SavedRecord:
    """Step 5: save the model's adapter to `folder/adapters/<name>`."""
    plain = prepared(record.injected.lora.base, folder).record
    data = plain.model_copy(update={"template": "chat"})
    settings = OutputSettings(license="apache-2.0")
    folder = folder / "adapters" / record.injected.lora.adapter_name
    if push is None:
        return engine.save_adapter(model, record, data, settings, folder)
    files = files_to_save(model, record, Prompting.of(data), write_card(record, data, settings))
    return save_adapter(files, folder, probe_logits(model), push)


def logits(model: "PreTrainedModel") -> "Tensor":
    """Return the model's logits for a fixed input, with whatever adapter is active."""
    import torch

    with torch.no_grad():
        output = model.eval()(input_ids=torch.arange(24).reshape(2, 12)).logits
    return output.float()  # type: ignore[no-any-return]


def random_base(config: "PretrainedConfig", folder: Path) -> Path:
    """Save a random float32 model of another architecture with the tiny tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def gpt2_base(folder: Path) -> Path:
    """Save a tiny GPT-2, whose linear layers are `Conv1D`, with biases."""
    from transformers import GPT2Config

    return random_base(
        GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=64), folder
    )


def qwen2_base(folder: Path) -> Path:
    """Save a tiny Qwen2: biases on q, k and v, and an output layer tied to the embeddings."""
    from transformers import Qwen2Config

    return random_base(
        Qwen2Config(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        folder,
    )
