"""Several adapters of one base combined into one, by PEFT's `add_weighted_adapter`.

`METHODS` says what each method is for: the exact sum, its best approximation of a given rank, TIES
(https://arxiv.org/abs/2306.01708, section 4), and DARE (https://arxiv.org/abs/2311.03099) followed
by TIES.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import BaseModelSettings, Template
from tasks.engine.adapters import adapter_state, lora
from tasks.engine.adapters.compatibility import (
    check_base,
    check_fit,
    check_tokenizer,
    fitting_weights,
    template_of,
)
from tasks.engine.adapters.folders import PEFT_PREFIX, AdapterFolder
from tasks.engine.adapters.injection import probe_logits
from tasks.engine.adapters.loading import load_adapter, verify_same
from tasks.engine.adapters.merging import FULL_PRECISION
from tasks.engine.adapters.saving import write_files
from tasks.engine.base import find_base, load_base, load_skeleton, tokenizer_of
from tasks.engine.manifest import write_manifest
from tasks.errors import UserError
from tasks.records import BaseSource, ChatOptions, CombinedRecord, FileRecord
from tasks.runtime.atomic_files import atomic_folder, check_new

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

METHODS = {
    "cat": "the exact weighted sum, whose rank is the sum of the ranks",
    "svd": "the best approximation of the sum by a given rank",
    "ties": "for adapters that disagree: drops small values, elects a sign, and sums the rest",
    "dare_ties": "for many adapters: drops values at random, rescales the rest, then as ties",
}
"""The supported methods, and what each is for.

PEFT's others are left out. Its `linear` methods sum A and B separately, which also adds products of
one adapter's A and another's B. Its `…_svd` variants of TIES and DARE need the full products B·A in
memory for the same purpose.
"""

_NAME = "combined"
_INSTEAD = "merge it into its base with `adapterflow export --merged`"


@dataclass(frozen=True)
class Combination:
    """How adapters are combined."""

    method: str = "cat"
    """One of `METHODS`."""
    density: float = 0.5
    """The share of values that TIES and DARE keep, in (0, 1]."""
    rank: int | None = None
    """Of the result, for `svd`; the largest rank of the adapters unless set."""
    seed: int = 0
    """Of the values that DARE drops."""


def combine(
    adapters: Sequence[AdapterFolder],
    weights: Sequence[float],
    base: BaseModelSettings,
    folder: Path,
    how: Combination,
) -> CombinedRecord:
    """Combine adapters into one, verify it, and write it to a folder, atomically.

    Args:
        adapters: two or more.
        weights: one per adapter.
        base: the base of all adapters; it is loaded in float32.
        folder: for the new adapter; it must not exist.
        how: the method and its settings.

    Raises:
        UserError: the folder exists, an adapter is for another base or not a plain LoRA, or PEFT
            cannot combine them by this method.
        VerificationError: the saved adapter has other logits than the combined one.
    """
    check_new(folder)
    source = find_base(base.model_copy(update=FULL_PRECISION))
    warnings = [warning for one in adapters for warning in check_base(one, source)]
    skeleton, prompting = load_skeleton(source), []
    for one in adapters:
        _check_plain(one)
        _check_ranks(one, how)
        check_fit(one, skeleton)
        tokenizer = check_tokenizer(one, tokenizer_of(source))
        options = ChatOptions.in_manifest(one.manifest)
        prompting.append((template_of(one, tokenizer), tokenizer.chat_template, options))
        if prompting[-1] != prompting[0]:
            warnings.append(
                f"{one.source} was trained with another prompt template, or other variables of "
                f"it, than {adapters[0].source}; the combined adapter uses the latter's"
            )
    model = load_base(source)
    unchanged = probe_logits(model)
    for one in adapters:
        fitting_weights(one, model)
    log.info("combining %d adapters by %s ...", len(adapters), how.method)
    combined = _combined(model, adapters, weights, how)
    expected = probe_logits(combined)
    read = adapter_state.read_adapter(combined, _NAME)
    state = {key.removeprefix(PEFT_PREFIX): value.contiguous() for key, value in read.items()}
    config = _configuration(combined, adapters[0])
    _check_complete(state, adapters)
    _check_rank(state, config["r"])
    del combined, model
    shares = _shares(adapters, weights)
    with atomic_folder(folder) as partial:
        write_files(partial, state, config, _card(source, how, shares))
        for file in adapters[0].tokenizer_files():
            shutil.copyfile(file, partial / file.name)
        difference = _verify(partial, source, expected)
        write_manifest(partial, _facts(adapters, prompting[0][0], how, shares))
    return CombinedRecord(
        folder=folder,
        base_model=source.reference,
        method=how.method,
        weights=shares,
        r=config["r"],
        num_adapter_parameters=sum(weight.numel() for weight in state.values()),
        round_trip_logit_difference=difference,
        logit_effect=(expected - unchanged).abs().max().item(),
        warnings=tuple(warnings),
    )


def _check_plain(adapter: AdapterFolder) -> None:
    """Refuse adapters with weights that PEFT 0.21 would silently leave out of the sum."""
    adapter.require_lora("only adapters of one kind can be summed, which is", _INSTEAD)
    config = adapter.config
    reasons = {
        "use_dora": config.use_dora,
        "modules_to_save": config.modules_to_save,
        "bias": config.bias != "none",
        "lora_bias": config.lora_bias,
        "trainable_token_indices": config.trainable_token_indices,
        "target_parameters": config.target_parameters,
    }
    if found := [name for name, is_set in reasons.items() if is_set]:
        raise UserError(
            f"{adapter.source} has {', '.join(found)}, but only plain LoRA can be combined; "
            f"{_INSTEAD}"
        )


def _check_ranks(adapter: AdapterFolder, how: Combination) -> None:
    """Refuse what PEFT 0.21 saves with ranks that are not those of the combined weights."""
    if how.method.endswith("ties") and adapter.config.rank_pattern:
        raise UserError(
            f"{adapter.source} has layers of different ranks (rank_pattern), which PEFT can't "
            f"combine by {how.method}; use cat or svd"
        )


def _combined(
    model: "PreTrainedModel",
    adapters: Sequence[AdapterFolder],
    weights: Sequence[float],
    how: Combination,
) -> "PeftModel":
    import torch
    from peft import PeftModel

    # Not plain numbers: PEFT would mistake the layers' numbers for adapters when it reads one.
    names = [f"adapter_{number}" for number in range(len(adapters))]
    loaded = PeftModel.from_pretrained(model, str(adapters[0].path), adapter_name=names[0])
    for name, one in zip(names[1:], adapters[1:], strict=True):
        loaded.load_adapter(str(one.path), adapter_name=name)
    for name in names:
        # The combined weights include each adapter's scale. With rsLoRA, PEFT 0.21 would apply the
        # scale a second time.
        loaded.peft_config[name].use_rslora = False
    extra: dict[str, Any] = {}
    if how.method == "svd":
        # The full square matrices are as large as the base's weights, and not needed.
        extra |= {"svd_rank": how.rank, "svd_full_matrices": False}
    if how.method.endswith("ties"):
        extra["density"] = how.density
    try:
        with torch.random.fork_rng():
            torch.manual_seed(how.seed)
            loaded.add_weighted_adapter(names, list(weights), _NAME, how.method, **extra)
    except ValueError as error:
        raise UserError(f"PEFT can't combine these adapters by {how.method}: {error}") from error
    loaded.set_adapter(_NAME)
    return loaded


def _check_complete(state: Mapping[str, "Tensor"], adapters: Sequence[AdapterFolder]) -> None:
    """Check that the sum has all adapted layers: PEFT 0.21 only takes those of the first adapter.

    Raises:
        UserError: some layers are missing.
    """
    adapted = {_layer(key) for one in adapters for key in one.shapes}
    if left_out := sorted(adapted - {_layer(key) for key in state}):
        raise UserError(
            f"PEFT would leave {len(left_out)} adapted layers out of the sum, such as "
            f"{left_out[0]}: the adapters select their layers differently (layers_to_transform, "
            "layers_pattern, exclude_modules); name the one with the most layers first, or merge "
            "them with `adapterflow export --merged`, one after the other"
        )


def _layer(key: str) -> str:
    return key.partition(".lora_")[0]


def _check_rank(state: dict[str, "Tensor"], r: int) -> None:
    lower = {key: w.shape[0] for key, w in state.items() if ".lora_A." in key and w.shape[0] < r}
    if lower:
        name, most = min(lower.items(), key=lambda one: one[1])
        raise UserError(f"rank {r} is too large for {name}; set a rank of at most {most}")


def _configuration(combined: "PeftModel", first: AdapterFolder) -> dict[str, Any]:
    made_for = first.config
    return {
        **lora.to_json(combined.peft_config[_NAME]),
        "base_model_name_or_path": made_for.base_model_name_or_path,
        "revision": made_for.revision,
        "inference_mode": True,
        "init_lora_weights": True,
    }


def _verify(folder: Path, source: BaseSource, expected: "Tensor") -> float:
    fresh = load_base(source)
    load_adapter(fresh, folder)
    difference = (probe_logits(fresh) - expected).abs().max().item()
    verify_same(difference, expected.abs().max().item(), "the combined adapter on a fresh base")
    return float(difference)


def _shares(adapters: Sequence[AdapterFolder], weights: Sequence[float]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        sha256 = FileRecord.of(adapter.weights_file).sha256
        shares[sha256] = shares.get(sha256, 0.0) + weight
    return shares


def _facts(
    adapters: Sequence[AdapterFolder],
    template: Template,
    how: Combination,
    shares: dict[str, float],
) -> dict[str, object]:
    first = adapters[0].manifest
    kept = {name: first[name] for name in ("base_model", "tokenizer", "chat") if name in first}
    return {
        "adapter_name": "default",
        "template": template,
        **kept,
        "combined": {**vars(how), "weights": shares},
    }


def _card(source: BaseSource, how: Combination, shares: dict[str, float]) -> str:
    rows = "\n".join(f"| `{sha256}` | {weight:g} |" for sha256, weight in shares.items())
    return f"""---
base_model: {source.reference}
library_name: peft
pipeline_tag: text-generation
tags: [lora, adapterflow, combined-lora]
---
# LoRA adapters for {source.reference}, combined by {how.method}

Made by adapterflow with PEFT's `add_weighted_adapter`.

| adapter weights sha256 | weight in the sum |
|---|---|
{rows}
"""
