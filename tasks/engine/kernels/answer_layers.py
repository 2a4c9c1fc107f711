"""Linear layers for answering: prepared once, for many small products without gradients.

Each token of an answer takes a product of every weight with a few rows. On a CPU, half of its time
goes into bringing the weight into the order in which the processor multiplies. Here the weights are
copied in that order once, in float32 with the adapter's product added. Otherwise a LoRA layer casts
A and B to the base's dtype once, and adds the low-rank product in place (PEFT casts its input, and
computes A, B and two sums in float32).

The modules and their weights stay as they are; only their `forward` is replaced for a while.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tasks.engine.kernels.adapter_layers import adapted_layers, is_fused
from tasks.engine.kernels.replaced_forwards import replaced_forwards

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# The operators of oneDNN that torch.compile uses for weights that stay as they are.
_ONEDNN: Any = torch.ops.mkldnn


@contextmanager
def answering_layers(model: "PreTrainedModel", *, most_copied_bytes: int) -> Iterator[None]:
    """Compute the linear layers of a model without gradients, and faster, for a while.

    Layers of other kinds, quantized ones for example, keep their own forward.

    Args:
        model: with its active adapter, which must not be switched in the block.
        most_copied_bytes: the base's weights are copied if all of them together are no larger;
            that pays off if many products follow.
    """
    layers = [one for one in adapted_layers(model) if is_fused(one, model)]
    adapted = {id(one.get_base_layer()): one for one in layers if "forward" not in vars(one)}
    replaced: list[tuple[Any, Callable[..., Tensor]]] = []
    for base in _to_copy(model, most_copied_bytes):
        layer, weight = base, base.weight.detach()
        # In half precision the sum would round away most of the adapter.
        if weight.dtype == torch.float32 and id(base) in adapted:
            layer = adapted.pop(id(base))
            a, b = _factors(layer)
            weight = torch.addmm(weight, b, a)
        replaced.append((layer, partial(_multiplied, _reordered(weight), base.bias)))
    for layer in adapted.values():
        a, b = _factors(layer)
        replaced.append((layer, partial(_adapted, layer.get_base_layer(), a.t(), b.t())))
    with replaced_forwards(replaced):
        yield


def _factors(layer: Any) -> "tuple[Tensor, Tensor]":  # noqa: ANN401
    """Return A and s·B of the active adapter, in the base's dtype."""
    [name] = layer.active_adapters
    dtype = layer.get_base_layer().weight.dtype
    a, b = (part[name].weight.detach() for part in (layer.lora_A, layer.lora_B))
    return a.to(dtype), (b * layer.scaling[name]).to(dtype)


def _adapted(base: Any, a: "Tensor", b: "Tensor", x: "Tensor") -> "Tensor":  # noqa: ANN401
    """Return W·x + bias + s·B·A·x; a is A transposed, b is s·B transposed."""
    result: Tensor = base(x)
    inner = x.reshape(-1, x.shape[-1]).to(a.dtype) @ a
    result.view(-1, result.shape[-1]).addmm_(inner, b)
    return result


def _to_copy(model: "PreTrainedModel", most_bytes: int) -> "list[torch.nn.Linear]":
    """Return the base's linear layers that can be copied; none if their weights are larger."""
    adapters = {
        id(part)
        for layer in adapted_layers(model)
        for kind in layer.adapter_layer_names
        for part in getattr(layer, kind).values()
    }
    layers = [
        module
        for module in model.modules()
        # Exact: a subclass may compute something else, and a forward may be replaced already.
        if type(module) is torch.nn.Linear
        and id(module) not in adapters
        and "forward" not in vars(module)
        and type(module.weight) is torch.nn.Parameter
        and module.weight.device.type == "cpu"
        and _can_pack(module.weight.dtype)
    ]
    return layers if sum(layer.weight.nbytes for layer in layers) <= most_bytes else []


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(_ONEDNN._is_mkldnn_bf16_supported())  # noqa: SLF001
    return dtype == torch.float32


def _reordered(weight: "Tensor") -> "Tensor":
    packed: Tensor = _ONEDNN._reorder_linear_weight(weight)  # noqa: SLF001
    return packed


def _multiplied(packed: "Tensor", bias: "Tensor | None", x: "Tensor") -> "Tensor":
    result: Tensor = _ONEDNN._linear_pointwise(x, packed, bias, "none", [], "")  # noqa: SLF001
    return result
