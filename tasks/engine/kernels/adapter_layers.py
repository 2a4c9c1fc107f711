"""The adapter's linear layers, with exact gradients and fewer passes over memory than PEFT's own.

PEFT computes W·x + s·B·(A·x) from several autograd operations: it casts x to float32 and back,
keeps both copies for the backward pass, and adds up three full-size results. Here a layer is one
operation. It keeps x once, accumulates the low-rank product into W·x in place, and has the
gradients of LoRA (https://arxiv.org/abs/2106.09685, section 4.1) written out, with g the gradient
of the layer's output and ' for the transpose:

    ∂x = W'·g + A'·h,  ∂A = h·x',  ∂B = s·g·(A·x)'   with h = s·B'·g

The modules and their weights remain PEFT's; only their `forward` is replaced for a while.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D

from tasks.engine.kernels.replaced_forwards import replaced_forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def fused_adapter_layers(model: "PreTrainedModel") -> Iterator[None]:
    """Compute each plain LoRA layer of the active adapter in one operation, for a while.

    Layers of other kinds (see `num_unfused`) keep PEFT's forward.
    """
    layers = [layer for layer in adapted_layers(model) if is_fused(layer, model)]
    with replaced_forwards((layer, partial(_forward, layer)) for layer in layers):
        yield


def num_unfused(model: "PreTrainedModel") -> int:
    """Return the number of adapter layers that keep PEFT's forward.

    These are layers of methods other than LoRA, on quantized weights, DoRA, adapted embeddings, and
    others of PEFT's variants.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return sum(not is_fused(layer, model) for layer in layers)


def adapted_layers(model: "PreTrainedModel") -> list[Any]:
    """Return PEFT's wrappers around layers with LoRA."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def is_fused(layer: Any, model: "PreTrainedModel") -> bool:  # noqa: ANN401 - PEFT has no types
    """Return whether a layer computes W·x + bias + s·B·A·x of one active adapter, and only that."""
    # What is left as it was beside quantized layers, such as T5's `wo`, is in float32, and is
    # computed in the type of the others: autocast and PEFT do that.
    is_quantized = getattr(model, "is_quantized", False)
    return not is_quantized and _is_plain(layer, model.dtype)


def _is_plain(layer: Any, dtype: torch.dtype) -> bool:  # noqa: ANN401 - PEFT has no types
    # Exact classes: layers on quantized weights are subclasses, and so may be layers of a model's
    # own. A base weight that trains would need a gradient that is not computed here.
    if type(layer) is not Linear or len(layer.active_adapters) != 1:
        return False
    [name] = layer.active_adapters
    base = layer.get_base_layer()
    return (
        type(base) in {torch.nn.Linear, Conv1D}
        and base.weight.dtype == dtype
        and not base.weight.requires_grad
        and name in layer.lora_A
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
        and not layer.disable_adapters
        and not layer.merged
    )


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    base = layer.get_base_layer()
    [name] = layer.active_adapters
    # Without dropout this is an Identity, and A sees x itself: one tensor is kept, not two.
    dropped = layer.lora_dropout[name](x)
    return _AdaptedLinear.apply(  # type: ignore[no-untyped-call,no-any-return]
        x,
        None if dropped is x else dropped,
        base.weight.t() if isinstance(base, Conv1D) else base.weight,
        base.bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
    )


class _AdaptedLinear(torch.autograd.Function):
    """W·x + bias + s·B·A·x in the dtype of W; the adapter's matrices keep their own dtype."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd's signature
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Compute the layer.

        Args:
            ctx: of autograd.
            x: [..., in].
            dropped: what A sees of `x`, [..., in]; `x` itself if None.
            weight: W, [out, in].
            bias: [out].
            lora_a: A, [r, in].
            lora_b: B, [out, r].
            scaling: s.

        Returns:
            [..., out], in the dtype of `weight`.
        """
        # A and B are float32, and multiplied in the base's dtype, as autocast would do.
        dtype = weight.dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        seen = rows if dropped is None else dropped.reshape(rows.shape).to(dtype)
        a, b = lora_a.to(dtype), lora_b.to(dtype)
        inner = seen @ a.t()
        result = torch.nn.functional.linear(rows, weight, bias).addmm_(inner, b.t(), alpha=scaling)
        ctx.save_for_backward(seen, weight, a, b, inner)
        ctx.scaling, ctx.shape = scaling, x.shape
        ctx.is_dropped = dropped is not None
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: ANN401
        """Return the gradients of x, `dropped`, the bias, A and B.

        Autograd casts each to the dtype of its input.
        """
        seen, weight, a, b, inner = ctx.saved_tensors
        needs_x, needs_seen, _, needs_bias, needs_a, *_ = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_inner = (rows @ b).mul_(ctx.scaling)
        of_x = rows @ weight if needs_x else None
        of_seen = None
        if ctx.is_dropped:
            of_seen = of_inner @ a if needs_seen else None
        elif of_x is not None:
            of_x.addmm_(of_inner, a)
        return (
            None if of_x is None else of_x.view(ctx.shape),
            None if of_seen is None else of_seen.view(ctx.shape),
            None,
            rows.sum(0) if needs_bias else None,
            of_inner.t() @ seen if needs_a else None,
            (rows.t() @ inner).mul_(ctx.scaling),
            None,
        )
