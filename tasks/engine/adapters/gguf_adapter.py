"""An adapter as one GGUF file, which llama.cpp and what is built on it load beside a GGUF base.

In the file llama.cpp finds A and B by the base's tensor that they belong to, and adds B·A times
alpha and over B's rank. The base's tensors have names of llama.cpp's own there, and of Llamas the
rows of two are in another order.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import BaseModelSettings, Task
from tasks.engine.adapters.compatibility import check_base, fitting_weights
from tasks.engine.adapters.folders import AdapterFolder
from tasks.engine.base.base_models import load_skeleton
from tasks.engine.base.sources import find_base
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
"""llama.cpp's names by those of transformers; what is compared with llama.cpp in the tests."""

_PARTS = (".lora_A.weight", ".lora_B.weight")


def write_gguf(adapter: AdapterFolder, base: BaseModelSettings, file: Path) -> GgufRecord:
    """Write an adapter as a GGUF file in float32, whole or not at all.

    The base's weights are not needed, only its configuration.

    Args:
        adapter: what to write.
        base: what it was made for.
        file: the new file.

    Raises:
        UserError: the file is there, adapter and base don't go together, or llama.cpp has no place
            for what the adapter holds.
    """
    check_new(file)
    _check_contents(adapter, base)
    source = find_base(base)
    remarks = check_base(adapter, source)
    model = load_skeleton(source)
    config = model.config.get_text_config()
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise UserError(
            f"a GGUF adapter can be written for {', '.join(_ARCHITECTURES)}; the base of "
            f"{adapter.source} is a {config.model_type}. Use export --merged"
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
        remarks=remarks,
    )


def _check_contents(adapter: AdapterFolder, base: BaseModelSettings) -> None:
    """Check that the adapter is A and B of linear layers, as llama.cpp knows nothing else."""
    if base.task is not Task.CAUSAL_LM:
        raise UserError(f"{adapter.source} is for {base.task.value}; llama.cpp has language models")
    if other := sorted(key for key in adapter.shapes if not key.endswith(_PARTS)):
        raise UserError(
            f"{adapter.source} holds {len(other)} weights that a GGUF adapter has no place for, "
            f"such as {other[0]} (DoRA, biases, embeddings, modules trained whole). Use "
            "export --merged"
        )


def _scales(adapter: AdapterFolder, model: "PreTrainedModel") -> dict[str, float]:
    """Give what each module's B·A is multiplied with, whatever the configuration makes of it."""
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = copy.deepcopy(adapter.config)
    config.init_lora_weights = False  # the model has no weights to start from
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
    """Give A and B by their names in the file.

    The file has one alpha for all. A module of another scale (rsLoRA, ranks and alphas of its own)
    has the difference in its B.
    """
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for module, scale in scales.items():
        name = names.get_name(module)
        if name is None or (name == "output" and config.tie_word_embeddings):
            raise UserError(
                f"{adapter.source} adapts {module}, which is no tensor of its own in a GGUF base; "
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
    """Put each head's two halves, which a rotation pairs row by row, side by side.

    Args:
        rows: `[heads x width, anything]`, in transformers' order.
        num_heads: into how many parts the rows fall.
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
