"""The dtype of a base's weights, resolved once: `auto` may differ between machines."""

import os
from collections.abc import Mapping

from tasks.config import BaseModelSettings, Dtype
from tasks.engine.base.devices import device

_FAST = ("amx_bf16", "amx_tile", "avx512_bf16")
"""The instructions that multiply bfloat16, by torch's names."""
_WITHOUT_THEM = {
    "sse41",
    "avx",
    "avx2",
    "avx2_vnni",
    "avx2_vnni_2",
    "avx512_core",
    "avx512_core_vnni",
}
"""Values of ONEDNN_MAX_CPU_ISA with which oneDNN, torch's kernels on a CPU, uses none of them."""


def weight_dtype(settings: BaseModelSettings) -> str:
    """Return the dtype of the weights as torch names it; of quantized ones, that of computation."""
    if settings.dtype is not Dtype.AUTO:
        return settings.dtype.value
    return "bfloat16" if multiplies_bfloat16_fast() else "float32"


def multiplies_bfloat16_fast() -> bool:
    """Return whether this hardware multiplies bfloat16 faster than float32.

    Of Apple's GPUs the older ones emulate it, and none was measured: float32 there.
    """
    import torch

    kind = device().type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "mps":
        return False
    return cpu_multiplies_bfloat16_fast(torch.cpu.get_capabilities(), os.environ)


def cpu_multiplies_bfloat16_fast(
    capabilities: Mapping[str, object], environment: Mapping[str, str]
) -> bool:
    """Return whether a CPU multiplies bfloat16 faster than float32.

    Without AMX or AVX512-BF16 it is emulated, several times slower than float32.

    Args:
        capabilities: what the CPU has, as torch reports it.
        environment: the variables of the process: ONEDNN_MAX_CPU_ISA, or DNNL_MAX_CPU_ISA by its
            older name, keeps oneDNN from using what the CPU has.
    """
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    allowed = next((environment[name] for name in names if name in environment), "")
    return allowed.lower() not in _WITHOUT_THEM and any(map(capabilities.get, _FAST))
