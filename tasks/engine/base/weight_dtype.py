"""The dtype of a base's weights, resolved once: `auto` may differ between machines."""

from tasks.config import BaseModelSettings, Dtype


def weight_dtype(settings: BaseModelSettings) -> str:
    """Return the dtype of the weights as torch names it; of quantized ones, that of computation."""
    if settings.dtype is not Dtype.AUTO:
        return settings.dtype.value
    return "bfloat16" if multiplies_bfloat16_fast() else "float32"


def multiplies_bfloat16_fast() -> bool:
    """Return whether this hardware multiplies bfloat16 faster than float32.

    A CPU without AMX or AVX512-BF16 emulates it, several times slower than float32.
    """
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return any(features.get(name) for name in ("amx_bf16", "amx_tile", "avx512_bf16"))
