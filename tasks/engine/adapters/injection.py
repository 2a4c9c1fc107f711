"""Step 3's work: inject an adapter into the base, and prove that it is where it should be.

A fresh one begins at the base's answers. One that continues another begins at the other's answers:
those of the base with the other loaded as any program loads it.
"""

import inspect
import sys
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import BaseModelSettings, Bias, Quantization
from tasks.engine.adapters import adapter_state, lora
from tasks.engine.adapters.activation import adapters_disabled
from tasks.engine.adapters.compatibility import fitting_weights
from tasks.engine.adapters.loading import load_folder, unload_adapter, verify_same
from tasks.engine.adapters.method_config import adapted_modules
from tasks.engine.adapters.plain_lora import ALTERS_BASE
from tasks.engine.adapters.source_adapters import folder_of
from tasks.engine.adapters.targets import count_matches
from tasks.engine.base import mixed_precision, seeded
from tasks.engine.eval_mode import eval_mode
from tasks.errors import VerificationError
from tasks.records import AdaptedLayer, FileRecord, InjectedRecord, LoraConfigRecord, LoraRecord

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# A fresh LoRA has B = 0 and changes no bit. These reproduce the base's outputs only up to rounding:
# initializations that move part of the base's weights into the adapter, orthogonal A and B (whose
# product is zero, though neither is), and DoRA's split into magnitude and direction. Tolerances are
# shares of the largest logit.
_INEXACT = (*ALTERS_BASE, "orthogonal")
_TOLERANCE_FLOAT32 = 1e-3
_TOLERANCE_LOW_PRECISION = 5e-2
_SOURCE = "adapterflow_source"
"""The name of the adapter to begin with, while it is in the model by itself."""


def inject(model: "PreTrainedModel", record: LoraRecord, weights: Path) -> InjectedRecord:
    """Add the adapter to the model, verify it, and write its initial weights to a file.

    Args:
        model: a loaded base without adapters.
        record: the resolved LoRA configuration.
        weights: the file for the initial weights.

    Raises:
        UserError: the adapter to begin with does not fit the base.
        VerificationError: an adapted layer is missing or unexpected, a parameter outside the
            adapter would train, the fresh adapter changes the base's outputs, or one that continues
            another has other outputs than that one.
    """
    prepare_for_training(model, record.base.settings)
    before = probe_logits(model, adapters=False)
    expected = _logits_of_source(model, record, before)
    _add_adapter(model, record)
    if record.source:
        _write_source(model, record)
    _verify_targets(model, record)
    _verify_trainable(model, record)
    difference = _verify_outputs(model, record, before)
    from_source = None if expected is None else _verify_source(model, record, expected)
    _verify_base(model, record, before)
    initial = adapter_state.read_adapter(model, record.adapter_name)
    adapter_state.save_weights(initial, weights)
    return InjectedRecord(
        lora=record,
        initial_weights=FileRecord.of(weights),
        base_checksum=adapter_state.base_checksum(model),
        num_trainable_parameters=sum(p.numel() for _, p in trainable(model)),
        num_total_parameters=record.num_total_parameters,
        layers=count_matches(record.chosen_by, _adapted(model, record)),
        logit_difference=difference,
        starts_at_base=difference <= _rounding(record, before.abs().max().item()),
        source_logit_difference=from_source,
    )


def reinject(model: "PreTrainedModel", record: InjectedRecord) -> None:
    """Bring a freshly loaded base to the state that a record describes.

    Raises:
        VerificationError: the base differs from the recorded one.
    """
    prepare_for_training(model, record.lora.base.settings)
    _add_adapter(model, record.lora)
    initial = adapter_state.load_weights(record.initial_weights.path)
    adapter_state.write_adapter(model, record.lora.adapter_name, initial)
    if adapter_state.base_checksum(model) != record.base_checksum:
        raise VerificationError(
            "the rebuilt base differs from the recorded one "
            f"({record.lora.base.location}); start a new run"
        )


def trainable(model: "PreTrainedModel") -> list[tuple[str, "torch.nn.Parameter"]]:
    """Return the trainable parameters with their names."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def probe_logits(model: "PreTrainedModel", *, adapters: bool = True) -> "torch.Tensor":
    """Return the model's logits on a fixed probe, on the CPU.

    Args:
        model: in any mode, which is restored.
        adapters: whether the active adapters take effect.

    Returns:
        float32 [2, 16, vocabulary]; [2, labels] if the model classifies sequences, [2, 16, labels]
        if it classifies tokens.
    """
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    # A prime stride spreads the probe over the vocabulary without random numbers.
    ids = torch.arange(32).mul(7919).remainder(vocabulary).reshape(2, 16).to(model.device)
    inputs: dict[str, Any] = {"input_ids": ids}
    # Encoders do not take it; a decoder would fill a cache that nobody reads.
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    silenced = not adapters and getattr(model, "_hf_peft_config_loaded", False)
    with (
        eval_mode(model),
        adapters_disabled(model) if silenced else nullcontext(),
        mixed_precision(model),
        torch.no_grad(),
    ):
        logits = model(**inputs).logits
    return logits.float().cpu()  # type: ignore[no-any-return]


def prepare_for_training(model: "PreTrainedModel", settings: BaseModelSettings) -> None:
    """Prepare a loaded base for training: gradient checkpointing, and float32 norms if quantized.

    It must precede `add_adapter`, as PEFT's preparation freezes all parameters.
    """
    checkpointing = {"use_reentrant": False}
    if settings.quantization is not Quantization.NONE:
        from peft import prepare_model_for_kbit_training

        prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=settings.gradient_checkpointing,
            gradient_checkpointing_kwargs=checkpointing,
        )
    elif settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(checkpointing)


def _add_adapter(model: "PreTrainedModel", record: LoraRecord) -> None:
    """Inject and activate the adapter; its weights are float32, and only they train."""
    config = lora.build_config(record.peft_config)
    with seeded(record.seed):
        model.add_adapter(config, adapter_name=record.adapter_name)
    model.set_adapter(record.adapter_name)
    for name, parameter in model.named_parameters():
        # Small updates would be lost in half precision, so the adapter's weights are float32.
        if adapter_state.is_adapter_parameter(name) and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def _verify_targets(model: "PreTrainedModel", record: LoraRecord) -> None:
    """Verify that just the expected layers are adapted, each with its rank and alpha.

    Raises:
        VerificationError: one is missing, unexpected, or has another rank or alpha.
    """
    if not isinstance(record.peft_config, LoraConfigRecord):
        _verify_names(model, record)
        return
    found = adapted_layers(model, record.adapter_name)
    names = found.keys() | record.adapted.keys()
    if wrong := sorted(n for n in names if found.get(n) != record.adapted.get(n)):
        first = wrong[0]
        raise VerificationError(
            f"{len(wrong)} adapter layers are not as configured, such as {first}: "
            f"{found.get(first) or 'missing'}; expected: {record.adapted.get(first) or 'none'}"
        )


def _verify_names(model: "PreTrainedModel", record: LoraRecord) -> None:
    found = set(_adapted(model, record))
    expected = {name for names in record.chosen_by.values() for name in names}
    if wrong := sorted(found ^ expected):
        what = "missing" if wrong[0] in expected else "not expected"
        raise VerificationError(
            f"{len(wrong)} adapter layers are not as configured: {wrong[0]} is {what}"
        )


def _adapted(model: "PreTrainedModel", record: LoraRecord) -> Collection[str]:
    """Return the names of what the adapter adapts, by any method."""
    if isinstance(record.peft_config, LoraConfigRecord):
        return adapted_layers(model, record.adapter_name)
    return adapted_modules(model)


def adapted_layers(model: "PreTrainedModel", adapter_name: str) -> dict[str, AdaptedLayer]:
    """Return rank and alpha of each module and parameter that an active adapter adapts.

    Modules are found by PEFT's class for adapted layers. One that adapts a parameter is around the
    module that holds it, or around another such layer.
    """
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer) or adapter_name not in module.active_adapters:
            continue
        if isinstance(module, ParamWrapper):
            name = f"{name.replace('.base_layer', '')}.{module.parameter_name}"  # noqa: PLW2901
        # An adapter that does not adapt this layer can be active in it, too.
        # Neither have layers that train single tokens a rank.
        if adapter_name in getattr(module, "r", ()):
            rank, alpha = module.r[adapter_name], module.lora_alpha[adapter_name]
            found[name] = AdaptedLayer(r=rank, lora_alpha=alpha)
    return found


def _verify_trainable(model: "PreTrainedModel", record: LoraRecord) -> None:
    bias = getattr(record.peft_config, "bias", Bias.NONE) not in (Bias.NONE, None, False)
    names = [name for name, _ in trainable(model)]
    outside = [
        name
        for name in names
        if not (
            adapter_state.is_adapter_parameter(name, record.adapter_name)
            or (bias and name.endswith(".bias"))
        )
    ]
    if outside or not names:
        what = f"{len(outside)} parameters outside it, such as {outside[0]}" if outside else "none"
        raise VerificationError(
            f"only adapter {record.adapter_name!r} should be trainable; trainable: {what}"
        )


def _logits_of_source(
    model: "PreTrainedModel", record: LoraRecord, before: "torch.Tensor"
) -> "torch.Tensor | None":
    """Return the logits of the base with the source, loaded by itself; None for a fresh adapter.

    The source is removed again.

    Raises:
        UserError: it does not fit the base.
        VerificationError: it did not load completely, or could not be removed.
    """
    if record.source is None:
        return None
    load_folder(model, folder_of(record.source), _SOURCE)
    logits = probe_logits(model)
    unload_adapter(model, _SOURCE)
    if not probe_logits(model, adapters=False).equal(before):
        raise VerificationError(
            f"{record.source.given} changed the base's own answers, so that nothing can begin with "
            "it"
        )
    return logits


def _write_source(model: "PreTrainedModel", record: LoraRecord) -> None:
    """Set the adapter's weights to those of the source, in float32."""
    assert record.source  # noqa: S101 - for the type checker
    weights = fitting_weights(folder_of(record.source), model)
    adapter_state.write_adapter(model, record.adapter_name, weights)


def _verify_source(model: "PreTrainedModel", record: LoraRecord, expected: "torch.Tensor") -> float:
    """Verify that the model answers as the source does; return the largest difference."""
    assert record.source  # noqa: S101 - for the type checker
    difference = (probe_logits(model) - expected).abs().max().item()
    what = f"the adapter that begins with {record.source.given}, beside that one"
    verify_same(difference, expected.abs().max().item(), what)
    return float(difference)


def _verify_outputs(model: "PreTrainedModel", record: LoraRecord, before: "torch.Tensor") -> float:
    difference = (probe_logits(model) - before).abs().max().item()
    tolerance = _tolerance(record, before.abs().max().item())
    if not difference <= tolerance:  # not `>`, which is False for NaN
        raise VerificationError(
            f"the fresh adapter changes logits by {difference:.3g} (allowed: {tolerance:.3g})"
        )
    return float(difference)


def _verify_base(model: "PreTrainedModel", record: LoraRecord, before: "torch.Tensor") -> None:
    """Check that the base answers as before while the adapter is disabled.

    Methods other than LoRA could have changed its weights, and so could an adapter of unknown
    origin; `plain_lora` knows which fresh LoRA does.
    """
    if isinstance(record.peft_config, LoraConfigRecord) and not record.source:
        return
    if not probe_logits(model, adapters=False).equal(before):
        raise VerificationError(
            f"{record.peft_config.method} changes the base's own weights with these lora.options, "
            "so that the adapter could not be loaded or disabled; use other options"
        )


def _tolerance(record: LoraRecord, largest: float) -> float:
    """Return the allowed difference from the base's logits, of which the largest is given."""
    config = record.peft_config
    if record.source or not isinstance(config, LoraConfigRecord):
        # Where a method or a source starts is its own affair, if it is a number.
        return sys.float_info.max
    # A module that trains fully is float32, so a norm or an embedding rounds otherwise than a half-
    # precision base does.
    is_rounded = config.use_dora or (config.modules_to_save and record.base.dtype != "float32")
    if config.init_lora_weights not in _INEXACT and not is_rounded:
        return 0.0
    return _rounding(record, largest)


def _rounding(record: LoraRecord, largest: float) -> float:
    full = record.base.dtype == "float32"
    return largest * (_TOLERANCE_FLOAT32 if full else _TOLERANCE_LOW_PRECISION)
