"""On which device a model is loaded, and in which dtype, for hardware that is not here."""

import pytest

from tasks.engine.base import device
from tasks.engine.base.weight_dtype import cpu_multiplies_bfloat16_fast


@pytest.mark.parametrize(
    ("there", "used"),
    [({"mps"}, "mps"), ({"cuda"}, "cuda"), ({"cuda", "mps"}, "cuda"), (set[str](), "cpu")],
)
def test_a_model_is_loaded_where_torch_says_there_is_a_gpu(there: set[str], used: str) -> None:
    """Apple's GPU and Nvidia's are used where they are available, otherwise the CPU."""
    assert device(there.__contains__).type == used


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("capability", "allowed", "is_fast"),
    [
        ("avx512_bf16", None, True),
        ("amx_bf16", None, True),
        ("avx2", None, False),
        ("avx512_bf16", "AVX2", False),
        ("amx_tile", "avx512_core", False),
        ("amx_tile", "AVX512_CORE_BF16", True),
        ("amx_tile", "ALL", True),
        ("avx2", "ALL", False),
    ],
)
def test_bfloat16_is_chosen_where_it_is_computed(
    name: str, capability: str, allowed: str | None, *, is_fast: bool
) -> None:
    """A CPU's instructions count only as far as oneDNN is allowed to use them."""
    environment = {} if allowed is None else {name: allowed}
    assert cpu_multiplies_bfloat16_fast({capability: True}, environment) == is_fast
