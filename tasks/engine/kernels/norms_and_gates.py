"""Norms and gated feed-forward layers that save less for the backward pass, and take less time.

transformers writes RMSNorm (https://arxiv.org/abs/1910.07467, equation 4) and SwiGLU
(https://arxiv.org/abs/2002.05202, equation 6) as several operations, and autograd saves the
intermediate results, some of them in float32. Here each is one operation that saves only its
inputs, with its gradient written out. A layer is replaced only if its output on a probe shows that
it computes just this formula.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import rms_norm, silu

from tasks.engine.base import mixed_precision
from tasks.engine.eval_mode import eval_mode
from tasks.engine.kernels.replaced_forwards import replaced_forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Forward = Callable[[torch.Tensor], torch.Tensor]

_TOLERANCE = 1e-5
_TOLERANCE_LOW_PRECISION = 2e-2
"""As shares of the output's norm: above rounding in another order, below any other formula."""


@contextmanager
def lean_layers(model: "PreTrainedModel") -> Iterator[None]:
    """Replace the forward of the model's frozen RMSNorms and of its SwiGLU layers for a while."""
    replaced = []
    with torch.no_grad(), mixed_precision(model):
        for module in model.modules():
            lean = _lean_forward(module)
            if lean is not None and _agree(module, *lean):
                replaced.append((module, lean[0]))
    # Only now: a module is compared with transformers' computation, that of its children included.
    with replaced_forwards(replaced):
        yield


def _lean_forward(module: Any) -> tuple[_Forward, torch.Tensor] | None:  # noqa: ANN401
    """Return a candidate for the module's forward, by its children, and a probe to test it with.

    Return None for a module that looks like neither RMSNorm nor SwiGLU.
    """
    children = {name for name, _ in module.named_children()}
    parameters = {name for name, _ in module.named_parameters(recurse=False)}
    # Some norms take a gate, too, and compute more.
    if len(inspect.signature(module.forward).parameters) != 1:
        return None
    # transformers 5.23 calls it by either name, depending on the model.
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not children and parameters == {"weight"} and eps and not module.weight.requires_grad:
        return partial(_normed, module.weight, eps), _probe(len(module.weight), module.weight)
    if not parameters and children == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        gate = module.gate_proj
        return partial(_swiglu, module), _probe(gate.in_features, next(gate.parameters()))
    return None


def _probe(size: int, like: torch.Tensor) -> torch.Tensor:
    # Not random: drawing would advance the generator, and at another point in a resumed run.
    values = torch.arange(2 * size, device=like.device).sin().mul(3).view(1, 2, size)
    return values.to(like.dtype) if like.is_floating_point() else values


def _agree(module: torch.nn.Module, forward: _Forward, probe: torch.Tensor) -> bool:
    with eval_mode(module):
        expected, given = module(probe), forward(probe)
    low = expected.dtype in {torch.bfloat16, torch.float16}
    tolerance = _TOLERANCE_LOW_PRECISION if low else _TOLERANCE
    return bool((given - expected).norm() <= tolerance * expected.norm())


def _normed(weight: torch.Tensor, eps: float, x: torch.Tensor) -> torch.Tensor:
    return _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call,no-any-return]


def _swiglu(layer: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    gated = _SiluProduct.apply(layer.gate_proj(x), layer.up_proj(x))  # type: ignore[no-untyped-call]
    return layer.down_proj(gated)  # type: ignore[no-any-return]


class _RmsNorm(torch.autograd.Function):
    """y = weight · x / rms(x), over the last dimension, with a weight that does not train."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:  # noqa: ANN401
        """Compute the norm in float32 and round once: x is [..., size], weight [size]."""
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return rms_norm(x, weight.shape, weight, eps).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: ANN401
        """Return ∂x = (g - x · mean(g · x) / rms²) / rms with g = weight · gradient."""
        x, weight = ctx.saved_tensors
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype)
        result = gradient * weight.to(dtype)
        mean_square = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(ctx.eps)
        along_x = torch.linalg.vecdot(result, wide).div_(mean_square).div_(-x.shape[-1])
        result.addcmul_(wide, along_x[..., None]).mul_(mean_square.rsqrt_()[..., None])
        return result.to(x.dtype), None, None


class _SiluProduct(torch.autograd.Function):
    """silu(gate) · up, elementwise."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Compute the product, saving only the inputs."""
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: ANN401
        """Return the gradients of gate and up, with silu(gate) computed again."""
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return of_gate, silu(gate).mul_(gradient)
