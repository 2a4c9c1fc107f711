"""Step 5's work: write an adapter's folder atomically, and prove it by loading it.

The folder contains `adapter_model.safetensors`, `adapter_config.json`, the model card `README.md`
and `manifest.json`, which is written last: if it exists, the rest is complete.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tasks.config import Template
from tasks.engine.adapters import adapter_state
from tasks.engine.adapters.adapter_files import CONFIG_FILE
from tasks.engine.adapters.compatibility import tokenizer_identity
from tasks.engine.adapters.folders import PEFT_PREFIX
from tasks.engine.adapters.injection import prepare_for_training, probe_logits
from tasks.engine.adapters.loading import load_adapter, verify_same
from tasks.engine.adapters.plain_lora import alters_base, to_plain
from tasks.engine.base import give_back, load_base, tokenizer_of
from tasks.engine.data.rendering import ChatTemplate
from tasks.engine.manifest import MANIFEST_FILE, write_manifest
from tasks.errors import VerificationError
from tasks.records import (
    BaseModelRecord,
    ChatOptions,
    DataRecord,
    FileRecord,
    LearnedPreferences,
    LearnedRows,
    PeftConfigRecord,
    SavedRecord,
    SourceRecord,
    TrainedRecord,
)
from tasks.runtime.atomic_files import atomic_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD_FILE = "README.md"


@dataclass(frozen=True)
class Prompting:
    """How prompts were written in training, and must be in use."""

    template: str = ""
    """`chat` or `plain`."""
    options: ChatOptions = field(default_factory=ChatOptions)
    """What the chat template is given beside a conversation."""
    chat_template: str | None = None
    """The chat template, if it is not the base's own."""

    @classmethod
    def of(cls, data: DataRecord) -> Self:
        """Return how the prompts of a training's data were written."""
        return cls(data.template, data.chat, data.chat_template)

    def facts(self, base: BaseModelRecord) -> dict[str, object]:
        """Return what an adapter's manifest says about it."""
        tokenizer = self.tokenizer(base)
        facts: dict[str, object] = {"template": self.template}
        if self.template == Template.CHAT:
            form = ChatTemplate(tokenizer, self.options).call_form
            facts["chat"] = {**self.options.model_dump(mode="json"), "message_form": asdict(form)}
        return {**facts, "tokenizer": tokenizer_identity(tokenizer)}

    def tokenizer(self, base: BaseModelRecord) -> "PreTrainedTokenizerBase":
        """Return the base's tokenizer, with the chat template of the training."""
        return tokenizer_of(base, self.chat_template)


@dataclass(frozen=True)
class AdapterFiles:
    """What is written to an adapter's folder."""

    name: str
    base: BaseModelRecord
    weights: dict[str, "Tensor"]
    config: dict[str, Any]
    prompting: Prompting = field(default_factory=Prompting)
    card: str = ""
    warnings: tuple[str, ...] = ()
    """The warnings about the configuration and the training."""
    lineage: Mapping[str, object] = field(default_factory=dict)
    """What it learned from, for the manifest."""
    preferences: LearnedPreferences | None = None
    """How it learned from pairs, if it did."""
    is_converted: bool = False
    """Whether it was trained on a base that its initialization altered, and is now for the original
    base."""


def lineage_of(source: SourceRecord | None, data: DataRecord) -> dict[str, object]:
    """Return what an adapter's manifest says of its training rows, and of what it began as.

    A folder of this machine is left out, as others get the manifest, too.
    """
    learned = LearnedRows(sha256=data.train.sha256, num_rows=data.train.num_rows)
    lineage: dict[str, object] = {"trained_on": learned.model_dump(mode="json")}
    if source:
        lineage["began_as"] = {
            "reference": source.public_reference,
            "weights_sha256": source.weights.sha256,
            "config_sha256": source.config.sha256,
            "trained_on": source.learned and source.learned.model_dump(mode="json"),
        }
    return lineage


def files_to_save(
    model: "PreTrainedModel",
    trained: TrainedRecord,
    prompting: Prompting,
    card: str,
    lineage: Mapping[str, object] | None = None,
) -> AdapterFiles:
    """Read the trained adapter from the model, as plain LoRA, with its configuration completed.

    Args:
        model: with the trained adapter.
        trained: the state that it is in.
        prompting: how prompts were written in training.
        card: the model card.
        lineage: what `lineage_of` returned.
    """
    record = trained.injected.lora
    weights, config = to_plain(
        adapter_state.read_adapter(model, record.adapter_name),
        adapter_state.load_weights(trained.injected.initial_weights.path),
        record.peft_config,
    )
    return AdapterFiles(
        name=record.adapter_name,
        base=record.base,
        weights=weights,
        config=_completed(config, record.base),
        prompting=prompting,
        card=card,
        warnings=(*record.warnings, *trained.warnings),
        lineage=lineage or {},
        preferences=trained.preferences,
        is_converted=alters_base(record.peft_config),
    )


def save_adapter(
    files: AdapterFiles, folder: Path, live_logits: "Tensor", push: Callable[[Path], str] | None
) -> SavedRecord:
    """Write the folder, verify it on a fresh base, and push it if asked to.

    Args:
        files: what to write.
        folder: the adapter's own folder; an existing one is replaced.
        live_logits: `probe_logits` of the trained model.
        push: pushes the finished folder and returns its URL; None to push nothing.

    Raises:
        VerificationError: the file's size is not that of the weights, or the adapter has other
            logits on a fresh base.
        AdapterflowError: the disk is full or the place is not writable, or the push failed.
    """
    with atomic_folder(folder) as partial:
        write_files(partial, files.weights, files.config, files.card)
        # Other programs read it there, too.
        if files.prompting.chat_template is not None or files.base.settings.new_tokens:
            files.prompting.tokenizer(files.base).save_pretrained(partial)
        header_bytes = _verify_size(partial / adapter_state.WEIGHTS_FILE, files.weights)
        difference = _verify_round_trip(files, partial, live_logits)
        write_manifest(partial, _facts(files))
    return SavedRecord(
        base=files.base,
        adapter_name=files.name,
        template=files.prompting.template,
        folder=folder,
        weights=FileRecord.of(folder / adapter_state.WEIGHTS_FILE),
        config=FileRecord.of(folder / CONFIG_FILE),
        manifest=FileRecord.of(folder / MANIFEST_FILE),
        num_adapter_parameters=sum(w.numel() for w in files.weights.values()),
        adapter_bytes=sum(w.nbytes for w in files.weights.values()),
        header_bytes=header_bytes,
        round_trip_logit_difference=difference,
        hub_url=push(folder) if push else None,
        warnings=_warnings(files.base),
    )


def _completed(config: PeftConfigRecord, base: BaseModelRecord) -> dict[str, Any]:
    return {
        **config.to_json(),
        "base_model_name_or_path": base.reference,
        "revision": base.revision,
        "inference_mode": True,
    }


def write_files(
    folder: Path, weights: dict[str, "Tensor"], config: dict[str, Any], card: str = ""
) -> None:
    """Write an adapter's weights, configuration and card to a folder.

    Args:
        folder: that exists.
        weights: by their names in the base.
        config: PEFT's configuration as JSON values.
        card: the model card; none is written if empty.
    """
    placed = {PEFT_PREFIX + key: weight for key, weight in weights.items()}
    adapter_state.save_weights(placed, folder / adapter_state.WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if card:
        (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _facts(files: AdapterFiles) -> dict[str, object]:
    base = files.base
    return {
        "adapter_name": files.name,
        "base_model": {
            "reference": base.reference,
            "revision": base.revision,
            "fingerprint": base.fingerprint,
            "source": _portable_source(base),
            "dtype": base.dtype,
            "quantization": base.settings.quantization,
            "task": base.settings.task,
            "labels": list(base.labels),
            "new_tokens": list(base.settings.new_tokens),
        },
        "warnings": list(files.warnings),
        **files.lineage,
        **_learned(files.preferences),
        **files.prompting.facts(base),
    }


def _learned(preferences: LearnedPreferences | None) -> dict[str, object]:
    """Return what the manifest says about how preferences were learned, if they were."""
    if preferences is None:
        return {}
    return {"preferences": preferences.model_dump(mode="json", exclude={"seconds_reference"})}


def _portable_source(base: BaseModelRecord) -> str | None:
    """Return the `base_model.source` to set on another machine; None for a local path."""
    is_package = base.settings.source.startswith("package:")
    return base.settings.source if is_package or not Path(base.location).is_absolute() else None


def _verify_size(file: Path, weights: dict[str, "Tensor"]) -> int:
    """Check that the file is its header and the weights' bytes; return the header's bytes."""
    with file.open("rb") as opened:
        # A safetensors file begins with the length of its JSON header, 8 bytes little-endian.
        (length,) = struct.unpack("<Q", opened.read(8))
    header_bytes = 8 + int(length)
    expected = header_bytes + sum(weight.nbytes for weight in weights.values())
    if file.stat().st_size != expected:
        raise VerificationError(
            f"{file.name} has {file.stat().st_size} bytes; expected {expected} (header and weights)"
        )
    return header_bytes


def _verify_round_trip(files: AdapterFiles, folder: Path, live_logits: "Tensor") -> float:
    fresh = load_base(files.base)
    prepare_for_training(fresh, files.base.settings)  # as the trained one was
    load_adapter(fresh, folder, files.name)
    difference = (probe_logits(fresh) - live_logits).abs().max().item()
    give_back(fresh)
    largest = live_logits.abs().max().item()
    verify_same(difference, largest, "the saved adapter on a fresh base", _tolerance(files))
    return float(difference)


def _tolerance(files: AdapterFiles) -> float:
    """Return the allowed difference as a share of the largest logit.

    The same computation gives the same logits. A plain LoRA made from one that altered the base
    sums the same terms in another order, and modules that were trained fully are loaded in the
    base's dtype: in half precision both round differently in each layer.
    """
    is_rounded = files.is_converted or bool(files.config.get("modules_to_save"))
    return 5e-2 if is_rounded and files.base.dtype != "float32" else 1e-4


def _warnings(base: BaseModelRecord) -> tuple[str, ...]:
    if not Path(base.reference).is_absolute():
        return ()
    warning = (
        f"adapter_config.json names the base by its local path {base.reference}; "
        "set base_model.hub_id so that the adapter loads on another machine"
    )
    return (warning,)
