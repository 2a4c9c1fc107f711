"""An adapter as one GGUF file, which llama.cpp and programs built on it load beside a GGUF base.

llama.cpp finds A and B by the name of the base's tensor that they adapt, and adds B·A·alpha/r, with
r the rank of B. The tensors have names of llama.cpp's own, and in Llama models the rows of the
query and key projections are permuted.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import BaseModelSettings, Task
from tasks.engine.adapters.compatibility import check_base, fitting_weights
from tasks.engine.adapters.folders import AdapterFolder
from tasks.engine.base import find_base, load_skeleton
from tasks.errors import UserError
from tasks.records import FileRecord, GgufRecord
from tasks.runtime.atomic_files import atomic_file, check_new

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
"""llama.cpp's architectures by transformers' `model_type`; the tests compare each of them."""

_PARTS = (".lora_A.weight", ".lora_B.weight")


def write_gguf(adapter: AdapterFolder, base: BaseModelSettings, file: Path) -> GgufRecord:
    """Write an adapter as a GGUF file in float32, atomically.

    Only the base's configuration is needed, not its weights.

    Args:
        adapter: to write.
        base: that it was made for.
        file: to write; it must not exist.

    Raises:
        UserError: the file exists, the adapter does not fit the base, or llama.cpp does not support
            the architecture or a weight of the adapter.
    """
    check_new(file)
    _check_contents(adapter, base)
    source = find_base(base)
    warnings = check_base(adapter, source)
    model = load_skeleton(source)
    config = model.config.get_text_config()
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise UserError(
            f"the base of {adapter.source} is a {config.model_type}; a GGUF adapter can be written "
            f"for {', '.join(_ARCHITECTURES)}; use export --merged"
        )
    weights = fitting_weights(adapter, model)
    scales = _scales(adapter, model)
    tensors = dict(_tensors(adapter, weights, scales, architecture, config))
    with atomic_file(file) as sibling:
        _write(sibling, tensors, architecture, adapter.config.lora_alpha, source.reference)
    return GgufRecord(
        file=FileRecord.of(file),
        base_model=source.reference,
        base_fingerprint=source.fingerprint,
        adapter_sha256=FileRecord.of(adapter.weights_file).sha256,
        architecture=architecture,
        num_adapter_parameters=sum(tensor.size for tensor in tensors.values()),
        warnings=warnings,
    )


def _check_contents(adapter: AdapterFolder, base: BaseModelSettings) -> None:
    """Check that the adapter only has A and B of linear layers, as llama.cpp supports no more."""
    adapter.require_lora("a GGUF adapter can only be", "use export --merged")
    if base.task is not Task.CAUSAL_LM:
        raise UserError(
            f"{adapter.source} is for {base.task.value}; a GGUF adapter can only be written for "
            "causal-lm"
        )
    if parameters := adapter.config.target_parameters:
        raise UserError(
            f"{adapter.source} adapts parameters ({', '.join(sorted(parameters))}), such as those "
            "of experts, which a GGUF adapter can't contain; use export --merged"
        )
    if other := sorted(key for key in adapter.shapes if not key.endswith(_PARTS)):
        raise UserError(
            f"{adapter.source} has {len(other)} weights that a GGUF adapter can't contain, such as "
            f"{other[0]} (DoRA, biases, embeddings, fully trained modules); use export --merged"
        )


def _scales(adapter: AdapterFolder, model: "PreTrainedModel") -> dict[str, float]:
    """Return the scale of each module's B·A, as PEFT derives it from the configuration."""
    import torch
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = copy.deepcopy(adapter.config)
    config.init_lora_weights = False  # the model has no weights to start from
    with torch.device("meta"):
        modules = inject_adapter_in_model(config, model, "default").named_modules()
    return {
        name: float(module.scaling["default"])
        for name, module in modules
        if isinstance(module, LoraLayer)
    }


def _tensors(
    adapter: AdapterFolder,
    weights: Mapping[str, "Tensor"],
    scales: Mapping[str, float],
    architecture: str,
    config: "PretrainedConfig",
) -> Iterator[tuple[str, "np.ndarray"]]:
    """Yield A and B of each module with their names in the file.

    The file has one alpha for all modules. A module with another scale (rsLoRA, or a rank or alpha
    of its own) has the ratio of the two multiplied into its B.
    """
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for module, scale in scales.items():
        name = names.get_name(module)
        if name is None or (name == "output" and config.tie_word_embeddings):
            raise UserError(
                f"{adapter.source} adapts {module}, which is not a separate tensor in a GGUF base; "
                "use export --merged"
            )
        a, b = (weights[f"{module}{part}"].float() for part in _PARTS)
        b = b * (scale * b.shape[1] / adapter.config.lora_alpha)
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
            is_query = module.endswith("q_proj")
            b = _interleaved(
                b, config.num_attention_heads if is_query else config.num_key_value_heads
            )
        yield f"{name}.weight.lora_a", a.contiguous().numpy()
        yield f"{name}.weight.lora_b", b.contiguous().numpy()


def _interleaved(rows: "Tensor", num_heads: int) -> "Tensor":
    """Permute each head's rows from transformers' rotary layout to llama.cpp's.

    A rotation pairs row i of a head with row i + width/2 in transformers, and with the next row in
    llama.cpp's Llama.

    Args:
        rows: [heads · width, r], in transformers' order.
        num_heads: of the projection.
    """
    halves = rows.reshape(num_heads, 2, -1, rows.shape[1])
    return halves.transpose(1, 2).reshape(rows.shape)


def _write(
    file: Path,
    tensors: Mapping[str, "np.ndarray"],
    architecture: str,
    alpha: float,
    base_model: str,
) -> None:
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base_model)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
