"""An adapter merged into its base: a model that needs no PEFT, proven to give the same logits.

W + B·A·alpha/r is summed in float32 on the base in full precision, even if the adapter was trained
on a quantized one (QLoRA, https://arxiv.org/abs/2305.14314): 4-bit weights are so coarse that they
would round most of the update away.
"""

import copy
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import BaseModelSettings, Dtype, Quantization
from tasks.engine.adapters.compatibility import (
    check_base,
    check_fit,
    check_tokenizer,
    fitting_weights,
)
from tasks.engine.adapters.folders import AdapterFolder
from tasks.engine.adapters.injection import probe_logits
from tasks.engine.adapters.loading import load_adapter, verify_same
from tasks.engine.adapters.method_config import injected_skeleton
from tasks.engine.adapters.methods import LORA
from tasks.engine.base import (
    find_base,
    license_of,
    load_base,
    load_config,
    load_skeleton,
    tokenizer_of,
    traits_of,
)
from tasks.engine.excerpts import reason
from tasks.engine.manifest import write_manifest
from tasks.errors import UserError, VerificationError
from tasks.records import BaseSource, FileRecord, MergedRecord, QuantizedGap
from tasks.runtime.atomic_files import atomic_folder, check_new

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Score = Callable[["PreTrainedModel"], float]
"""Returns the share of correct answers, in [0, 1]."""

TOLERANCES = {Dtype.FLOAT32: 1e-4, Dtype.FLOAT16: 5e-3, Dtype.BFLOAT16: 2e-2}
"""The allowed difference between the merged model's logits and the adapter's, as a share of the
largest logit, by the dtype of the saved weights."""


def export_merged(
    adapter: AdapterFolder,
    base: BaseModelSettings,
    folder: Path,
    dtype: Dtype = Dtype.AUTO,
    score: Score | None = None,
) -> MergedRecord:
    """Write base and adapter as one verified model to a folder, atomically.

    Three models are loaded in float32, one after the other: the base with the adapter, the merged
    model, and the saved model. If the adapter was trained on a quantized base, that is loaded as a
    fourth, to report how much the merged model differs from it.

    Args:
        adapter: to merge.
        base: to merge it into; its quantization is that of the adapter's training.
        folder: for the model; it must not exist.
        dtype: in which the weights are saved; `auto` is that of the base's files.
        score: if given, the base with the adapter and the merged model must have the same score.

    Raises:
        UserError: the folder exists, or the adapter does not fit the base.
        VerificationError: the merged model has other logits, or another score.
    """
    check_new(folder)
    log.info("the adapter on its base in float32 ...")
    source = find_base(base.model_copy(update=FULL_PRECISION))
    warnings = check_base(adapter, source)
    check_fit(adapter, load_skeleton(source))
    _check_mergeable(adapter, source)
    check_tokenizer(adapter, tokenizer_of(source))
    saved_as = _saved_dtype(source, dtype)
    expected, expected_score = _with_adapter(adapter, source, score)
    log.info("merging, saving in %s ...", saved_as.value)
    with atomic_folder(folder) as partial:
        is_untied = _write_merged(adapter, source, partial, saved_as)
        log.info("reading it back ...")
        read_back = base.model_copy(
            # The merged model has the new tokens as its own.
            update={**FULL_PRECISION, "source": str(partial), "revision": None, "new_tokens": ()}
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
                f"the merged model answers {merged_score:.2%} of the rows correctly, the base with "
                f"the adapter {expected_score:.2%}; save it in another dtype, such as float32"
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
            quantized_gap=_quantized_gap(adapter, base, logits, score),
            warnings=warnings,
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
    load_adapter(model, adapter.path)
    return probe_logits(model), score(model) if score else None


def _write_merged(adapter: AdapterFolder, source: BaseSource, folder: Path, dtype: Dtype) -> bool:
    """Write the merged model and its tokenizer; return whether the embeddings were untied."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    base = load_base(source)
    fitting_weights(adapter, base)
    is_untied = _untie(base, adapter)
    # `safe_merge` makes PEFT raise if a merged weight is not a number.
    model = PeftModel.from_pretrained(base, str(adapter.path))
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:
        raise _not_mergeable(adapter, error) from error
    merged.to(getattr(torch, dtype.value)).save_pretrained(folder)
    own = adapter.path if adapter.has_tokenizer() else None
    # Not the padded one that is used here.
    tokenizer = AutoTokenizer.from_pretrained(
        own or source.location, revision=source.revision, trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)
    return is_untied


def _check_mergeable(adapter: AdapterFolder, source: BaseSource) -> None:
    """Merge without weights, to find what PEFT refuses before any is loaded.

    Raises:
        UserError: PEFT can't merge the method, or not into this base.
    """
    if adapter.method == LORA:
        return
    config = copy.deepcopy(adapter.config)
    model = injected_skeleton(config, partial(load_skeleton, source))
    module: Any  # PEFT's layers have a method that torch's have not
    for module in model.modules() if model else ():
        if hasattr(module, "merge"):
            try:
                module.merge()
            except (NotImplementedError, RuntimeError, ValueError) as error:
                # Some compute what a model without weights has not; they are tried in earnest.
                if "meta" not in str(error):
                    raise _not_mergeable(adapter, error) from error
                return


def _not_mergeable(adapter: AdapterFolder, error: Exception) -> UserError:
    return UserError(
        f"PEFT can't merge {adapter.source}, which is {adapter.method}, into its base: "
        f"{reason(error)}; use base and adapter together"
    )


def _untie(base: "PreTrainedModel", adapter: AdapterFolder) -> bool:
    """Untie the input and output embeddings if the adapter changes only one; return whether it did.

    While they are tied, merging into one would change the other, or be lost on saving.
    """
    import torch

    config = base.config.get_text_config()
    # With trained tokens PEFT changes both in the same way.
    if getattr(adapter.config, "trainable_token_indices", None):
        return False
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    names = tuple(f"{name}." for name, module in base.named_modules() if module in ends)
    if not config.tie_word_embeddings or not any(key.startswith(names) for key in adapter.shapes):
        return False
    head = ends[1]
    if head is None:  # a classifier has no output embeddings
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    config.tie_word_embeddings = base.config.tie_word_embeddings = False
    return True


def _quantized_gap(
    adapter: AdapterFolder, base: BaseModelSettings, merged: "Tensor", score: Score | None
) -> QuantizedGap | None:
    """Compare with the adapter on the quantized base that it was trained on, if any."""
    if base.quantization is Quantization.NONE:
        return None
    log.info("the adapter on its base in %s ...", base.quantization.value)
    model = load_base(find_base(base))
    load_adapter(model, adapter.path)
    logits = probe_logits(model)
    return QuantizedGap(
        quantization=base.quantization.value,
        logit_difference=(logits - merged).abs().max().item(),
        same_next_token=(logits.argmax(-1) == merged.argmax(-1)).float().mean().item(),
        score=score(model) if score else None,
    )


def _card(record: MergedRecord, source: BaseSource) -> str:
    license_fields = "".join(f"{k}: {json.dumps(v)}\n" for k, v in license_of(source).items())
    quantized = ""
    if gap := record.quantized_gap:
        quantized = (
            f"\nThe adapter was trained on the base quantized to {gap.quantization}. "
            f"This model's logits differ from those by up to {gap.logit_difference:.3g}; "
            f"the most likely next token is the same at {gap.same_next_token:.0%} of the "
            "probed positions.\n"
        )
    scored = "" if record.score is None else f"\n| correct answers, both | {record.score:.1%} |"
    return f"""---
base_model: {record.base_model}
base_model_relation: finetune
library_name: transformers
pipeline_tag: {traits_of(source.settings.task).pipeline_tag}
{license_fields}tags: [adapterflow, merged-lora]
---
# {record.base_model} with a LoRA adapter merged in

Made by adapterflow; loads with transformers alone.

| | |
|---|---|
| base | `{record.base_model}` ({record.base_fingerprint}) |
| adapter weights sha256 | `{record.adapter_sha256}` |
| weights | {record.num_parameters:,} in {record.dtype} |
| largest logit difference to base with adapter in float32 | {record.logit_difference:.3g} \
(largest logit: {record.largest_logit:.3g}, allowed difference: {record.tolerance:.3g}) |{scored}
{quantized}"""
