"""An adapter merged into its base: a model that needs no PEFT, proven to answer as the two did.

W + B·A·alpha/r is added up in float32 on the base in full precision, also where the adapter was
trained on a packed one: packed weights would round the update away (QLoRA, arXiv:2305.14314).
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import BaseModelSettings, Dtype, Quantization
from tasks.engine.adapters.compatibility import check_base, check_tokenizer, fitting_weights
from tasks.engine.adapters.folders import AdapterFolder
from tasks.engine.adapters.injection import probe_logits
from tasks.engine.adapters.loading import load_adapter, verify_same
from tasks.engine.base.base_models import load_base, load_config, load_tokenizer
from tasks.engine.base.license import license_of
from tasks.engine.base.sources import find_base
from tasks.engine.base.task_traits import traits_of
from tasks.engine.manifest import write_manifest
from tasks.errors import VerificationError
from tasks.records import BaseSource, FileRecord, MergedRecord, PackedGap
from tasks.runtime.atomic_files import atomic_folder, check_new

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Score = Callable[["PreTrainedModel"], float]
"""Gives the share of answers that are right."""

TOLERANCES = {Dtype.FLOAT32: 1e-4, Dtype.FLOAT16: 5e-3, Dtype.BFLOAT16: 2e-2}
"""How far the merged model's logits may be from the adapter's, as a share of the largest, by the
type that its weights are saved in."""


def export_merged(
    adapter: AdapterFolder,
    base: BaseModelSettings,
    folder: Path,
    dtype: Dtype = Dtype.AUTO,
    score: Score | None = None,
) -> MergedRecord:
    """Write base and adapter as one model, complete and proven, or nothing.

    Three models are loaded for it in float32, one after the other: base with adapter, the two
    merged, and what was written, read back. A fourth is the packed base that the adapter was
    trained on, if there was one.

    Args:
        adapter: what to merge.
        base: into what; its packing says what the adapter was trained on.
        folder: the model's own folder, which must not be there yet.
        dtype: in which the weights are saved; `auto` is the base's own.
        score: if given, base with adapter and merged model must score alike.

    Raises:
        UserError: the folder is there, or adapter and base don't go together.
        VerificationError: the merged model answers otherwise.
    """
    check_new(folder)
    log.info("the adapter on its base in float32 ...")
    source = find_base(base.model_copy(update=FULL_PRECISION))
    remarks = check_base(adapter, source)
    saved_as = _saved_dtype(source, dtype)
    expected, expected_score = _with_adapter(adapter, source, score)
    log.info("merging, saving in %s ...", saved_as.value)
    with atomic_folder(folder) as partial:
        is_untied = _write_merged(adapter, source, partial, saved_as)
        log.info("reading it back ...")
        read_back = base.model_copy(
            update={**FULL_PRECISION, "source": str(partial), "revision": None}
        )
        merged = load_base(find_base(read_back))
        logits, merged_score = probe_logits(merged), score(merged) if score else None
        num_parameters = merged.num_parameters()
        del merged
        largest = expected.abs().max().item()
        difference = (logits - expected).abs().max().item()
        verify_same(difference, largest, "the merged model", TOLERANCES[saved_as])
        if expected_score != merged_score:
            raise VerificationError(
                f"the merged model gets {merged_score:.2%} of the answers right, the adapter "
                f"{expected_score:.2%}; save it in another type, such as float32"
            )
        record = MergedRecord(
            folder=folder,
            base_model=source.reference,
            base_fingerprint=source.fingerprint,
            adapter_sha256=FileRecord.of(adapter.weights_file).sha256,
            dtype=saved_as.value,
            num_parameters=num_parameters,
            largest_logit=largest,
            logit_difference=difference,
            tolerance=TOLERANCES[saved_as] * largest,
            is_untied=is_untied,
            score=merged_score,
            packed=_packed_gap(adapter, base, logits, score),
            remarks=remarks,
        )
        (partial / "README.md").write_text(_card(record, source), encoding="utf-8")
        write_manifest(partial, record.model_dump(mode="json", exclude={"folder"}))
    return record


FULL_PRECISION: dict[str, object] = {"quantization": Quantization.NONE, "dtype": Dtype.FLOAT32}


def _saved_dtype(source: BaseSource, wanted: Dtype) -> Dtype:
    if wanted is not Dtype.AUTO:
        return wanted
    own = str(load_config(source).dtype).removeprefix("torch.")
    return Dtype(own) if own in list(Dtype) else Dtype.FLOAT32


def _with_adapter(
    adapter: AdapterFolder, source: BaseSource, score: Score | None
) -> tuple["Tensor", float | None]:
    model = load_base(source)
    check_tokenizer(adapter, load_tokenizer(source.location, source.revision))
    load_adapter(model, adapter.path)
    return probe_logits(model), score(model) if score else None


def _write_merged(adapter: AdapterFolder, source: BaseSource, folder: Path, dtype: Dtype) -> bool:
    """Write model and tokenizer; tell whether input and output embeddings are two now."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    base = load_base(source)
    fitting_weights(adapter, base)
    is_untied = _untie(base, adapter)
    merged = PeftModel.from_pretrained(base, str(adapter.path)).merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, dtype.value)).save_pretrained(folder)
    own = adapter.path if adapter.has_tokenizer() else None
    # Not the padded one that is used here.
    tokenizer = AutoTokenizer.from_pretrained(own or source.location, revision=source.revision)
    tokenizer.save_pretrained(folder)
    return is_untied


def _untie(base: "PreTrainedModel", adapter: AdapterFolder) -> bool:
    """Give the output layer weights of its own where the adapter changes only one of the two.

    Otherwise what is merged into one end of the model changes the other, or is lost on saving.
    """
    import torch

    config = base.config.get_text_config()
    if adapter.config.trainable_token_indices:  # PEFT changes both ends alike
        return False
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    names = tuple(f"{name}." for name, module in base.named_modules() if module in ends)
    if not config.tie_word_embeddings or not any(key.startswith(names) for key in adapter.shapes):
        return False
    head = ends[1]
    if head is None:  # a classifier has no other end
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    config.tie_word_embeddings = base.config.tie_word_embeddings = False
    return True


def _packed_gap(
    adapter: AdapterFolder, base: BaseModelSettings, merged: "Tensor", score: Score | None
) -> PackedGap | None:
    """Compare with the adapter on the packed base that it was trained on, if it was on one."""
    if base.quantization is Quantization.NONE:
        return None
    log.info("the adapter on its base in %s ...", base.quantization.value)
    model = load_base(find_base(base))
    load_adapter(model, adapter.path)
    logits = probe_logits(model)
    return PackedGap(
        quantization=base.quantization.value,
        logit_difference=(logits - merged).abs().max().item(),
        same_next_token=(logits.argmax(-1) == merged.argmax(-1)).float().mean().item(),
        score=score(model) if score else None,
    )


def _card(record: MergedRecord, source: BaseSource) -> str:
    licence = "".join(f"{k}: {json.dumps(v)}\n" for k, v in license_of(source).items())
    packed = ""
    if record.packed:
        packed = (
            f"\nThe adapter was trained on the base in {record.packed.quantization}. Against it "
            f"this model's logits differ by up to {record.packed.logit_difference:.3g}; the "
            f"likeliest next token is the same at {record.packed.same_next_token:.0%} of the "
            "places tried.\n"
        )
    scored = "" if record.score is None else f"\n| answers right, both | {record.score:.1%} |"
    return f"""---
base_model: {record.base_model}
base_model_relation: finetune
library_name: transformers
pipeline_tag: {traits_of(source.settings.task).pipeline_tag}
{licence}tags: [adapterflow, merged-lora]
---
# {record.base_model} with a LoRA adapter merged in

Made by adapterflow; loads with transformers alone.

| | |
|---|---|
| base | `{record.base_model}` ({record.base_fingerprint}) |
| adapter weights sha256 | `{record.adapter_sha256}` |
| weights | {record.num_parameters:,} in {record.dtype} |
| logits, against base with adapter in float32 | within {record.logit_difference:.3g} of \
{record.largest_logit:.3g} (allowed: {record.tolerance:.3g}) |{scored}
{packed}"""
